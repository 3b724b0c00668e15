"""The momentum encoder and the queue of contrastive learning."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import queue_rank
from helpers.memory_loader import MemoryLoader
from helpers.models import batch_of, build
from helpers.stages import recipe_of, same, stages_for, weights
from torch.multiprocessing.spawn import spawn

from fastmtl import models, tasks
from fastmtl.models import MomentumEmbedding, Output
from fastmtl.protocols import Batch
from fastmtl.training.errors import Interrupted

TASKS = {"organs": Output("map", 3), "pair": Output("momentum_embedding", 8, queue=6, momentum=0.75)}


def _moved(model, seed):
    """The model with other weights, as after a step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_the_encoder_is_followed_and_its_keys_queue_up():
    model, batch = build("small_unet", TASKS), batch_of(4)
    queue = model.queues["pair"]
    start = queue.keys.clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(6))
    _moved(model, 1)  # weights that were loaded after the model was built
    expected = [parameter.detach().clone() for parameter in model.encoder.parameters()]
    first = model(batch)["pair"]
    assert isinstance(first, MomentumEmbedding)
    assert torch.equal(first.queue, start)
    for old, new in zip(queue.encoder.parameters(), expected, strict=True):
        assert torch.equal(old, new)
    _moved(model, 2)
    second = model(batch)["pair"]
    for old, before, new in zip(queue.encoder.parameters(), expected, model.encoder.parameters(), strict=True):
        torch.testing.assert_close(old, 0.75 * before + 0.25 * new)
        assert not old.requires_grad
    assert torch.equal(second.queue, torch.cat([first.keys, start[4:]]))
    assert torch.equal(queue.keys, torch.cat([second.keys[2:], first.keys[2:4], second.keys[:2]]))
    assert second.queries.requires_grad
    assert not second.keys.requires_grad


def test_the_keys_are_those_of_the_momentum_encoder_in_evaluation_mode():
    model, batch = build("small_unet", TASKS), batch_of(4)
    made, queue = model(batch)["pair"], model.queues["pair"]
    assert not any(module.training for module in queue.encoder.modules())
    with torch.no_grad():
        keys = F.normalize(queue.projection(queue.encoder(batch.images)[-1]), dim=1)
    torch.testing.assert_close(made.keys, keys)


def test_keys_that_are_not_finite_do_not_join_the_queue():
    model, batch = build("small_unet", TASKS), batch_of(4)
    queue = model.queues["pair"]
    model(batch)
    before = queue.keys.clone()
    batch.images[1] = torch.nan
    made = model(batch)["pair"]
    bad = made.keys.isfinite().logical_not().any(1)
    assert bad[1]
    rows = torch.tensor([4, 5, 0, 1])
    assert torch.equal(queue.keys[rows], torch.where(bad[:, None], before[rows], made.keys))


def test_evaluation_and_a_second_look_change_nothing():
    model, batch = build("small_unet", TASKS), batch_of(4)
    model(batch)
    before = copy.deepcopy(model.queues.state_dict())
    with torch.no_grad():
        assert isinstance(model(batch)["pair"], MomentumEmbedding)
    assert isinstance(model.eval()(batch)["pair"], torch.Tensor)
    after = model.queues.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["small_unet_film", "joint_unet", "big_unet"])
def test_models_with_a_pyramid_have_a_queue(name):
    """FiLM's metadata reach the momentum encoder too."""
    assert build(name, TASKS)(batch_of(4))["pair"].keys.shape == (4, 8)


def test_other_models_refuse_a_queue():
    with pytest.raises(ValueError, match="requests 'momentum_embedding'"):
        models.create_model("mask2tasks", {"pair": TASKS["pair"]}, preset="tiny")


def test_the_loss_is_info_nce_of_the_queue():
    task = tasks.create_task("contrastive", "pair", 0, queue=5, dimensions=3, temperature=0.2)
    assert task.output == Output("momentum_embedding", 3, 5, 0.999)
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 3, generator=generator).requires_grad_()
    keys, queue = (F.normalize(torch.randn(5, 3, generator=generator), dim=1) for _ in range(2))
    batch = Batch(torch.zeros(5, 3, 8, 8), {"pair": torch.tensor([1, 0, 3, 2, -1])}, torch.ones(5, 1).bool())
    expected = []
    for first, second in ((0, 1), (2, 3)):  # the last has no partner
        query = queries[first] / queries[first].norm()
        scores = torch.cat([(query @ keys[second])[None], queue @ query]) / 0.2
        expected.append(-scores.log_softmax(0)[0])
    loss = task.loss(MomentumEmbedding(queries, keys, queue), batch)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    alone = Batch(batch.images, {"pair": torch.full((5,), -1)}, batch.has_label)
    none = task.loss(MomentumEmbedding(queries, keys, queue), alone)
    none.backward()
    assert none.item() == 0
    assert (queries.grad == 0).all()


@pytest.mark.parametrize(
    ("options", "message"), [({"queue": -1}, "`queue`"), ({"queue": 4, "momentum": 1}, "`momentum`")]
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.create_task("contrastive", "pair", 0, **options)


def _pairs(stages=None, stop_after=0):
    """Batches whose rows 2 i and 2 i + 1 are pairs; `stages` stop after a step."""
    loader = MemoryLoader()

    def spoil(batch, epoch, number):
        if 4 * epoch + number + 1 == stop_after:
            stages.stop()
        batch.targets["side"] = torch.arange(len(batch)) ^ 1
        return batch

    loader.spoil = spoil
    return loader


@pytest.mark.parametrize("average", ["", "ema"])
def test_resuming_with_a_queue_is_bit_equal(tmp_path, average):
    """The momentum encoder and the queue are part of the checkpoint."""
    task = {"kind": "contrastive", "queue": 10, "dimensions": 4, "momentum": 0.9}
    model = {"name": "small_unet", "preset": "tiny"}
    recipe = recipe_of(tmp_path, tasks={"side": task}, model=model, training={"average": average})
    whole, loader = stages_for(recipe, tmp_path / "whole"), _pairs()
    whole.begin(loader)
    whole.fit(loader, _pairs())
    first = stages_for(recipe, tmp_path / "cut")
    loader = _pairs(first, stop_after=6)
    first.begin(loader)
    with pytest.raises(Interrupted):
        first.fit(loader, _pairs())
    second, fresh = stages_for(recipe, tmp_path / "cut"), _pairs()
    torch.manual_seed(123)
    second.resume(fresh)
    second.fit(fresh, _pairs())
    found, expected = weights(second.model), weights(whole.model)
    assert {"queues.side.keys", "queues.side.place", "queues.side.encoder.stages.0.0.weight"} < found.keys()
    assert same(found, expected)
    assert found["queues.side.place"] == 4 * 8 % 10
    assert not torch.equal(found["queues.side.encoder.stages.0.0.weight"], found["encoder.stages.0.0.weight"])


@pytest.mark.long
def test_ranks_have_one_queue_of_all_their_keys(tmp_path):
    spawn(queue_rank.main, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first["queue"], second["queue"])
    steps = [torch.cat([one["keys"][step] for one in (first, second)]) for step in range(2)]
    assert torch.equal(first["queue"], torch.cat([steps[1][2:], steps[0][2:], steps[1][:2]]))
