"""Tasks: losses count labelled samples alone, metrics know empty masks, options are checked by name."""

import pytest
import torch
import torch.nn.functional as F

from fastmtl import tasks
from fastmtl.protocols import Batch
from fastmtl.tasks.metrics import Overlap

NAMES = ("a", "b", "c")


def _batch(has_label, size=8):
    count = len(has_label)
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 2, (count, 1, size, size), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, 3, (count,), generator=generator)
    shown = torch.tensor(has_label)
    return Batch(torch.zeros(count, 3, size, size), {"seg": mask, "cls": label}, torch.stack([shown, shown], 1))


def _both():
    return tasks.create_task("binary_segmentation", "seg", 0), tasks.create_task(
        "classification", "cls", 1, class_names=NAMES
    )


def test_losses_are_those_of_the_labelled_samples():
    batch = _batch([True, False, True, True])
    logits = {"seg": torch.randn(4, 1, 8, 8), "cls": torch.randn(4, 3)}
    rows = batch.has_label[:, 0]
    only = Batch(batch.images[rows], {k: v[rows] for k, v in batch.targets.items()}, batch.has_label[rows])
    for task in _both():
        whole, part = task.loss(logits[task.name], batch), task.loss(logits[task.name][rows], only)
        torch.testing.assert_close(whole, part)


def test_without_labels_losses_are_zero_with_a_graph():
    batch = _batch([False, False])
    logits = {"seg": torch.randn(2, 1, 8, 8, requires_grad=True), "cls": torch.randn(2, 3, requires_grad=True)}
    for task in _both():
        loss = task.loss(logits[task.name], batch)
        assert loss.item() == 0.0
        loss.backward()
        assert (logits[task.name].grad == 0).all()


def test_class_weights_follow_torch():
    weights = [0.5, 1.0, 2.0]
    task = tasks.create_task("classification", "cls", 1, class_names=NAMES, class_weights=weights, label_smoothing=0.1)
    batch, logits = _batch([True] * 6), torch.randn(6, 3)
    expected = F.cross_entropy(logits, batch.targets["cls"], weight=torch.tensor(weights), label_smoothing=0.1)
    torch.testing.assert_close(task.loss(logits, batch), expected)


def test_metrics_count_labelled_samples_alone():
    batch = _batch([True, False, True])
    segmentation, classification = _both()
    logits = {"seg": torch.where(batch.targets["seg"] == 1, 5.0, -5.0), "cls": F.one_hot(batch.targets["cls"], 3) * 9.0}
    logits["seg"][1] *= -1  # wrong, and unlabelled
    logits["cls"][1] *= -1
    for task in (segmentation, classification):
        metrics = task.metrics()
        task.update(metrics, logits[task.name], batch)
        summary = task.summary(metrics)
        assert summary[task.primary_metric] == 1.0


def test_a_class_without_samples_has_no_accuracy():
    task = _both()[1]
    metrics, batch = task.metrics(), _batch([True] * 4)
    batch.targets["cls"].clamp_(max=1)
    task.update(metrics, F.one_hot(batch.targets["cls"], 3) * 9.0, batch)
    assert task.summary(metrics)["per_class"] == {"a": 1.0, "b": 1.0, "c": None}


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur():
    task = _both()[1]
    assert task.summary(task.metrics())["balanced_accuracy"] is None
    metrics, batch = task.metrics(), _batch([True] * 4)
    batch.targets["cls"] = torch.tensor([0, 0, 0, 1])
    task.update(metrics, F.one_hot(torch.tensor([0, 0, 2, 0]), 3) * 9.0, batch)
    found = task.summary(metrics)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["accuracy"] == 0.5


@pytest.mark.parametrize(("score", "half"), [("dice", 2 / 3), ("jaccard", 0.5)])
def test_overlap_per_image_and_of_empty_masks(score, half):
    empty, full = torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    left = full.clone()
    left[..., 2:] = False
    metric = Overlap(score)
    metric.update(torch.cat([left, empty, full]), torch.cat([full, empty, empty]))
    assert metric.compute().item() == pytest.approx((half + 1 + 0) / 3)
    zero = Overlap(score, empty=0.0)
    zero.update(empty, empty)
    assert zero.compute().item() == 0.0
    with pytest.raises(ValueError, match="'dice' or 'jaccard'"):
        Overlap("f1")


def test_options_that_a_constructor_hands_on_are_checked_and_given(monkeypatch):
    monkeypatch.setattr(tasks.registry, "_TASKS", dict(tasks.registry._TASKS))

    @tasks.register_task("own")
    class Own(tasks.Classification):
        def __init__(self, name, column, *, power=1, **options):
            super().__init__(name, column, **options)
            self.power = power

    task = tasks.create_task("own", "cls", 1, class_names=NAMES, groups={"organ": ("a",)}, power=2, label_smoothing=0.1)
    assert (task.power, task.class_names, task.criterion.label_smoothing) == (2, NAMES, 0.1)
    for wrong, near in (("smoothing", "label_smoothing"), ("powr", "power"), ("options", "known")):
        with pytest.raises(ValueError, match=f"has no option '{wrong}'; .*{near}"):
            tasks.create_task("own", "cls", 1, class_names=NAMES, **{wrong: 1})

    @tasks.register_task("open")
    def anything(name, column, **options):
        return options

    assert tasks.create_task("open", "cls", 1, class_names=NAMES, power=3)["power"] == 3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("clasification", {}, "did you mean 'classification'"),
        (
            "classification",
            {"class_names": NAMES, "smoothing": 1},
            "has no option 'smoothing'; did you mean 'label_smoothing'",
        ),
        ("classification", {"class_names": ("a",)}, "at least two classes"),
        ("classification", {"class_names": NAMES, "class_weights": [1.0]}, "one value for each of the 3 classes"),
    ],
)
def test_bad_tasks_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        tasks.create_task(kind, "cls", 0, **options)
