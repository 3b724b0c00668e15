"""R^2, MAE and RMSE of targets far from 0, against float64; samples that define none of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtl import tasks
from fastmtl.protocols import Batch
from fastmtl.tasks import metrics


def numbers(centre: float, spread: float, count: int = 400, size: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [count, size]: targets, and answers that are half a spread off them."""
    source = torch.Generator().manual_seed(0)
    wanted = (centre + spread * torch.randn(count, size, generator=source, dtype=torch.float64)).float()
    found = wanted.double() + spread / 2 * torch.randn(count, size, generator=source, dtype=torch.float64)
    return wanted, found.float()


def expected(wanted: torch.Tensor, found: torch.Tensor) -> dict[str, float]:
    y, x = wanted.double().numpy(), found.double().numpy()
    errors = y - x
    r2 = 1 - (errors**2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    return {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt((errors**2).mean())), "r2": float(r2.mean())}


FAR = [(2015, 3), (40000, 10), (311000, 8), (0.5, 0.001), (-1e7, 40), (1e-20, 1e-21), (1e15, 1e12), (0, 1)]


@pytest.mark.parametrize(("centre", "spread"), FAR)
@pytest.mark.parametrize("batch", [1, 16, 400])
def test_the_task_scores_as_float64_does(centre, spread, batch):
    wanted, found = numbers(centre, spread)
    task = tasks.create_task("regression", "x", 0, mean=float(centre), std=float(spread))
    collected = task.metrics()
    outputs = ((found.double() - task.mean) / task.std).float()
    for y, output in zip(wanted.split(batch), outputs.split(batch), strict=True):
        images, has_label = torch.zeros(len(y), 3, 2, 2), torch.ones(len(y), 1, dtype=torch.bool)
        task.update(collected, output, Batch(images, {"x": y[:, 0]}, has_label))
    assert task.summary(collected) == pytest.approx(expected(wanted, task.predict(outputs)), rel=1e-4)


def test_the_loss_of_targets_far_from_0_is_of_their_own_numbers():
    """(y - mean) / std in float32 would round a mean of 311000.1 by more than a hundredth."""
    wanted, _ = numbers(311000.1, 0.5)
    task = tasks.create_task("regression", "x", 0, mean=311000.1, std=0.5)
    batch = Batch(torch.zeros(400, 3, 2, 2), {"x": wanted[:, 0]}, torch.ones(400, 1, dtype=torch.bool))
    right = ((wanted.double() - 311000.1) / 0.5).square().mean().item()
    assert task.loss(torch.zeros(400, 1), batch).item() == pytest.approx(right, rel=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e3),
    st.integers(1, 3),
)
def test_batches_and_ranks_in_any_division_are_one_set_of_samples(counts, centre, spread, size):
    """Ranks without a sample too, as in torchmetrics' own reduction."""
    wanted, found = numbers(centre, spread, max(sum(counts), 1), size)
    whole, parts = metrics.RSquared(size), [metrics.RSquared(size) for _ in counts]
    whole.update(found, wanted)
    if sum(counts):
        for part, y, x in zip(parts, wanted.split(counts), found.split(counts), strict=True):
            part.update(x, y)
    else:
        parts[0].update(found, wanted)
    merged = metrics.RSquared(size)
    reduce = merged._reductions["moments"]
    assert callable(reduce)
    merged.moments = reduce(torch.stack([part.moments for part in parts]))
    torch.testing.assert_close(merged.moments, whole.moments, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 2015.0, 1e20, -3e-30])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_equal_targets_have_no_r2(value, count):
    task = tasks.create_task("regression", "x", 0)
    collected = task.metrics()
    for part in torch.full((count,), value).split(3):
        has_label = torch.ones(len(part), 1, dtype=torch.bool)
        task.update(
            collected, torch.zeros(len(part), 1), Batch(torch.zeros(len(part), 3, 2, 2), {"x": part}, has_label)
        )
    found = task.summary(collected)
    assert found["r2"] is None
    assert found["mae"] == pytest.approx(abs(value), rel=1e-6)


def test_of_several_numbers_those_that_vary_are_scored():
    wanted, found = numbers(7.0, 1.0, size=3)
    wanted[:, 1] = 5.0
    metric = metrics.RSquared(3)
    metric.update(found, wanted)
    assert metric.compute().item() == pytest.approx(expected(wanted[:, ::2], found[:, ::2])["r2"], rel=1e-5)


def test_the_smallest_difference_of_float32_is_a_difference():
    wanted = torch.full((1000,), 311000.0)
    wanted[3] = torch.nextafter(wanted[3], torch.tensor(torch.inf))
    metric = metrics.RSquared()
    metric.update(wanted, wanted)
    assert metric.compute() == 1


def test_shares_count_every_pixel_of_an_epoch():
    """A float32 sum stays at 16777216 however often 1 is added."""
    share = metrics.share_metrics("found")["found"]
    share.update(torch.ones(1), weight=2.0**24)
    for _ in range(8):
        share.update(torch.zeros(1))
    assert share.weight == 2**24 + 8


def test_numbers_of_another_size_are_told():
    with pytest.raises(ValueError, match=r"must have 1 numbers a sample, the `size`; got \[4, 2\] and \[4, 2\]"):
        metrics.RSquared().update(torch.rand(4, 2), torch.rand(4, 2))
    with pytest.raises(ValueError, match="must have 2 numbers"):
        metrics.RSquared(2).update(torch.rand(4), torch.rand(4, 2))
