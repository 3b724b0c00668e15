"""The loop: it learns, it resumes bit-equal, it never takes a bad step, it keeps the best."""

import dataclasses
import functools

import pytest
import torch
from helpers.memory_loader import CLASSES, MemoryLoader

from fastmtl import balance, models
from fastmtl.config import TrainingConfig
from fastmtl.tasks import create_task
from fastmtl.training import checkpoint
from fastmtl.training.checkpoint_names import history
from fastmtl.training.errors import Interrupted, NonFiniteError
from fastmtl.training.eval_loop import evaluate
from fastmtl.training.trainer import Trainer


def _trainer(folder=None, balancer="pcgrad", lr=3e-3, fused=False, **config):
    torch.manual_seed(0)
    tasks = [
        create_task("binary_segmentation", "mask", 0),
        create_task("classification", "side", 1, class_names=CLASSES),
    ]
    model = models.create_model("joint_unet", tasks={task.name: task.output for task in tasks}, base_channels=4)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    settings = TrainingConfig(**{"precision": "float32", "epochs": 2, "log_every": 2} | config)
    made = balance.create_balancer(balancer)
    update = balance.FusedStep(optimizer, clip_norm=settings.clip_norm) if fused else None
    return Trainer(model, tasks, made, optimizer, settings, scheduler=scheduler, folder=folder, update=update)


def _weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def _same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.long
@pytest.mark.parametrize("balancer", ["pcgrad", "linear"])
def test_it_learns(balancer):
    trainer = _trainer(balancer=balancer, epochs=6)
    before = trainer.evaluate(MemoryLoader(seed=9))
    trainer.fit(MemoryLoader(num_batches=8))
    after = trainer.evaluate(MemoryLoader(seed=9))
    assert after["tasks"]["mask"]["dice"] > max(0.9, before["tasks"]["mask"]["dice"] + 0.2)
    assert after["tasks"]["side"]["accuracy"] == 1.0
    assert set(after["tasks"]["side"]["per_class"]) == set(CLASSES)


def test_a_learning_rate_of_zero_learns_nothing():
    trainer = _trainer(lr=0.0)
    before = dict(trainer.model.named_parameters())
    before = {name: value.detach().clone() for name, value in before.items()}
    trainer.fit(MemoryLoader())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


@functools.cache
def _undisturbed(balancer, fused):
    """Weights and the number of steps of a training that nobody stopped."""
    whole = _trainer(balancer=balancer, fused=fused)
    whole.fit(MemoryLoader())
    return _weights(whole), whole.step_count


@pytest.mark.long
@pytest.mark.parametrize(
    ("stop_after", "balancer", "fused"),
    [
        *((1, "pcgrad", False), (3, "pcgrad", False), (4, "pcgrad", False), (6, "pcgrad", False)),
        *((3, "pcgrad", True), (6, "pcgrad", True), (5, "famo", False), (5, "decay", False)),
    ],
)
def test_stop_and_resume_is_bit_equal(tmp_path, stop_after, balancer, fused):
    weights, steps = _undisturbed(balancer, fused)
    first = _trainer(tmp_path, balancer=balancer, fused=fused)
    loader = MemoryLoader()
    step = first.step

    def counted(batch):
        done = step(batch)
        first.stop_requested = first.step_count == stop_after
        return done

    first.step = counted
    with pytest.raises(Interrupted, match=f"step {stop_after}"):
        first.fit(loader)
    second, fresh = _trainer(tmp_path, balancer=balancer, fused=fused), MemoryLoader()
    torch.manual_seed(123)
    second.resume(tmp_path / "last", fresh)
    record = second.fit(fresh)
    assert second.step_count == steps == 8
    assert _same(_weights(second), weights)
    assert record["epoch"] == 2


def test_losses_of_a_resumed_epoch_cover_the_whole_epoch(tmp_path):
    whole = _trainer(epochs=1).fit(MemoryLoader())
    first, loader = _trainer(tmp_path, epochs=1), MemoryLoader()
    step = first.step

    def counted(batch):
        done = step(batch)
        first.stop_requested = first.step_count == 2
        return done

    first.step = counted
    with pytest.raises(Interrupted):
        first.fit(loader)
    second, fresh = _trainer(tmp_path, epochs=1), MemoryLoader()
    second.resume(tmp_path / "last", fresh)
    assert second.fit(fresh)["loss"] == whole["loss"]


def test_a_second_look_is_at_the_same_batch_and_moves_nothing():
    trainer, batch = _trainer(balancer="famo", lr=0.0), next(iter(MemoryLoader()))
    looks = []
    trainer.model.register_forward_hook(lambda *_: looks.append(1))
    trainer.step(batch)
    assert len(looks) == 2
    counts = [value for name, value in trainer.model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 1 for count in counts)
    # With a learning rate of 0 nothing has changed: only the decay moves xi, and it starts at 0.
    assert (trainer.balancer.state_dict()["adam"][0] == 0).all()


def test_epochs_are_told():
    trainer = _trainer(balancer="decay")
    trainer.fit(MemoryLoader(num_batches=1))
    assert trainer.balancer.state_dict()["epochs"] == 2


def _with_nan(batch, epoch, number):
    if number != 1:
        return batch
    return dataclasses.replace(batch, images=torch.full_like(batch.images, float("nan")))


@pytest.mark.parametrize("fused", [False, True])
def test_a_nan_loss_is_named_and_no_parameter_takes_the_step(fused):
    trainer, loader = _trainer(log_every=100, fused=fused), MemoryLoader(num_batches=2)
    batches = list(MemoryLoader(num_batches=2))
    trainer.step(batches[0])
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.step(_with_nan(batches[1], 0, 1))
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())

    trainer, loader = _trainer(fused=fused), MemoryLoader()
    loader.spoil = _with_nan
    with pytest.raises(NonFiniteError, match="loss of task 'mask' and of task 'side' was NaN or infinite"):
        trainer.fit(loader)
    assert all(value.isfinite().all() for value in trainer.model.parameters())


def test_optimizers_that_cannot_skip_on_the_device_do_not_step_either():
    trainer = _trainer(log_every=100)
    trainer.optimizer, trainer.scheduler = torch.optim.RMSprop(trainer.model.parameters()), None
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.step(_with_nan(next(iter(MemoryLoader())), 0, 1))
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def test_a_batch_without_labels_for_a_task_gives_zero_not_nan():
    trainer, loader = _trainer(epochs=1), MemoryLoader(label_some=True)
    record = trainer.fit(loader, MemoryLoader(seed=5))
    assert record["loss"]["side"] == 0.0
    assert record["loss"]["mask"] > 0


@pytest.mark.long
def test_patience_stops_and_best_is_kept(tmp_path):
    trainer = _trainer(tmp_path, lr=0.0, epochs=10, patience=3)
    record = trainer.fit(MemoryLoader(), MemoryLoader(seed=5))
    assert record["epoch"] < 10
    assert checkpoint.load(tmp_path / "best")["progress"]["best_score"] == trainer.best_score
    assert [one.step for one in history(tmp_path)] == [4, 12, 16], "the best one, and the last two"


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_follows_float32(precision):
    losses = {}
    for name in ("float32", precision):
        trainer = _trainer(epochs=2, precision=name)
        assert (trainer.scaler is not None) == (name == "float16")
        trainer.fit(MemoryLoader())
        losses[name] = trainer.losses(next(iter(MemoryLoader(seed=5))))["mask"].item()
    assert losses[precision] == pytest.approx(losses["float32"], abs=0.02)


def test_gradient_norm_is_clipped():
    trainer = _trainer(clip_norm=1e-3)
    seen = []

    def look(*_):
        seen.append(torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm())

    trainer.optimizer.register_step_pre_hook(look)
    trainer.step(next(iter(MemoryLoader())))
    assert seen[0] <= 1.001e-3


def test_observers_see_every_look_and_every_epoch():
    events = []

    class Watcher:
        def on_step(self, step, epoch, batch, num_batches, record):
            events.append((step, epoch, batch, num_batches, sorted(record["loss"])))

        def on_epoch(self, record):
            events.append(record["epoch"])

    trainer = _trainer()
    trainer.observers.append(Watcher())
    trainer.fit(MemoryLoader(num_batches=3))
    names = ["mask", "side"]
    assert events == [(2, 0, 2, 3, names), (3, 0, 3, 3, names), 1, (4, 1, 1, 3, names), (6, 1, 3, 3, names), 2]


@pytest.mark.parametrize(
    ("found", "score"), [((0.9, -17.7), -0.02), ((0.3, -17.6), -0.32), ((0.9, 0.5), 0.7), ((-1.0,), -0.5)]
)
def test_a_task_that_is_not_learnt_yet_does_not_choose_the_checkpoint_alone(found, score):
    class Scored:
        target = output = None
        primary_metric = "r2"

        def __init__(self, name, value):
            self.name, self.value = name, value

        def metrics(self):
            return torch.nn.Module()

        def summary(self, metrics):
            return {"r2": self.value}

    tasks = [Scored(str(place), value) for place, value in enumerate(found)]
    said = evaluate(torch.nn.Identity(), tasks, [], device=torch.device("cpu"))
    assert said["score"] == pytest.approx(score, abs=0.01)
    assert said["tasks"]["0"]["r2"] == found[0], "the metric itself is told as it is"
