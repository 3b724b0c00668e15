"""The logit-adjusted cross-entropy, and the shares of classes that it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmtl import data
from fastmtl.builders.class_shares import with_class_shares
from fastmtl.config import load_recipe
from fastmtl.evaluation.per_image import class_probabilities
from fastmtl.protocols import Batch
from fastmtl.tasks import create_task

SHARES = (0.9, 0.09, 0.01)


def _batch(labels: list[int]) -> Batch:
    found = torch.tensor(labels)
    return Batch(torch.zeros(len(labels), 3, 4, 4), {"grade": found}, (found >= 0)[:, None], ("",) * len(labels))


def _task(**options):
    return create_task("classification", "grade", 0, class_names=("a", "b", "c"), **options)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_loss_is_that_of_logits_shifted_by_the_log_shares(strength):
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), [0, 1, 2, -100, 1, 0]
    task = _task(logit_adjustment=strength, class_shares=[9, 0.9, 0.1], label_smoothing=0.1)
    moved = logits + strength * torch.tensor(SHARES).log()
    expected = torch.nn.functional.cross_entropy(moved, torch.tensor(labels), label_smoothing=0.1)
    torch.testing.assert_close(task.loss(logits, _batch(labels)), expected)


def test_uninformative_images_get_even_logits_and_not_the_training_frequencies():
    labels = [0] * 90 + [1] * 9 + [2]
    found = {}
    for strength in (0.0, 1.0):
        task, logits = _task(logit_adjustment=strength, class_shares=SHARES), torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(400):
            optimizer.zero_grad()
            task.loss(logits.expand(100, 3), _batch(labels)).backward()
            optimizer.step()
        found[strength] = logits.detach().softmax(0).tolist()
    assert found[0.0] == pytest.approx(SHARES, abs=0.01)
    assert found[1.0] == pytest.approx([1 / 3] * 3, abs=0.01)


def test_decisions_metrics_and_probabilities_are_of_shifted_logits():
    logits = torch.tensor([[2.0, 1.5, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, -3.0]])
    plain, moved = _task(), _task(decision_adjustment=0.5, class_shares=SHARES)
    shifted = logits - 0.5 * torch.tensor(SHARES).log()
    assert plain.predict(logits).tolist() == [0, 0, 0]
    assert moved.predict(logits).tolist() == shifted.argmax(1).tolist() == [1, 0, 1]
    torch.testing.assert_close(class_probabilities(moved, logits), shifted.softmax(1))
    torch.testing.assert_close(class_probabilities(plain, logits), logits.softmax(1))
    batch = _batch([1, 0, 1])
    assert torch.equal(moved.loss(logits, batch), plain.loss(logits, batch))
    accuracies = []
    for task in (plain, moved):
        metrics = task.metrics()
        task.update(metrics, logits, batch)
        accuracies.append(task.summary(metrics)["accuracy"])
    assert accuracies == [pytest.approx(1 / 3), 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decision_adjustment": -1}, "decision_adjustment"),
        ({"class_shares": [1, 2]}, "class_shares"),
        ({"class_shares": [1, 2, 0]}, "above 0"),
        ({"logit_adjustment": -1}, "logit_adjustment"),
    ],
)
def test_odd_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _task(**options)


def test_a_task_without_shares_says_so_at_its_loss():
    with pytest.raises(ValueError, match="needs `class_shares`"):
        _task(logit_adjustment=1.0).loss(torch.zeros(1, 3), _batch([0]))
    with pytest.raises(ValueError, match="`decision_adjustment` needs `class_shares`"):
        _task(decision_adjustment=1.0).predict(torch.zeros(1, 3))


def _folder(counts: dict[str, int]) -> data.Dataset:
    names = tuple(sorted(counts))
    labels = [name for name, count in counts.items() for _ in range(count)]
    tiles = tuple(
        data.Tile(id=f"{n}", image=Path(f"{n}.png"), mask=None, label=names.index(label), group=f"{n}")
        for n, label in enumerate(labels)
    )
    return data.Dataset(Path("."), names, tiles)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.9, 0.1]),
        ({"sampler": "balanced"}, [0.5, 0.5]),
        ({"sampler": "balanced", "balance_power": 0.5}, [0.75, 0.25]),
    ],
)
def test_shares_are_of_the_images_that_the_sampler_draws(options, expected):
    recipe = load_recipe("ebhi_joint_unet", {"tasks": {"classification": {"logit_adjustment": 1.0}}})
    recipe = replace(recipe, data=replace(recipe.data, **options))
    filled = with_class_shares(recipe, _folder({"Normal": 90, "Polyp": 10}))
    assert filled.tasks["classification"]["class_shares"] == pytest.approx(expected)
    assert with_class_shares(filled, _folder({"Normal": 1, "Polyp": 1})) == filled  # a resumed run keeps them
    assert "class_shares" not in filled.tasks["segmentation"]
