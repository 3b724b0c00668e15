"""The overlap of masks and of boxes, as metrics."""

import pytest
import torch

from fastmtl.tasks.metrics import BoxOverlap, Overlap, box_overlap


@pytest.mark.parametrize(("empty", "expected"), [(1.0, 0.75), (0.0, 0.25), (None, 0.5)])
def test_empty_masks_follow_the_policy(empty, expected):
    metric = Overlap("dice", empty=empty)
    target = torch.zeros(2, 1, 2, 2)
    target[0, 0, 0, 0] = 1
    found = torch.zeros(2, 1, 2, 2)
    found[0, 0, 0] = torch.tensor([0.0, 1.0])
    found[0, 0, 0, 0] = 0
    found[0, 0, :, 0] = 1
    found[0, 0, 0, 1] = 1  # 1 of 3 found pixels is right: Dice 2 / 4
    metric.update(found, target)
    assert metric.compute().item() == pytest.approx(expected)


def test_batch_aggregation_takes_all_pixels_together():
    metric = Overlap("dice", aggregate="batch")
    target = torch.zeros(2, 1, 2, 2)
    target[0] = 1
    found = torch.ones(2, 1, 2, 2)
    metric.update(found, target)
    assert metric.compute().item() == pytest.approx(2 * 4 / (8 + 4))


def test_boxes_overlap_along_both_axes():
    """Shifted by a quarter of their side they share 3/4 of each: (w - s) h / (w h + s h) = 3/5."""
    box = torch.tensor([[0.5, 0.5, 0.4, 0.2]])
    for shift in ([0.1, 0, 0, 0], [-0.1, 0, 0, 0], [0, 0.05, 0, 0], [0, -0.05, 0, 0]):
        assert box_overlap(box + torch.tensor(shift), box) == pytest.approx(0.6)
    wider, taller = box * torch.tensor([1, 1, 2, 1]), box * torch.tensor([1, 1, 1, 2])
    assert box_overlap(wider, box) == box_overlap(box, taller) == pytest.approx(0.5)


def test_box_overlap():
    metric = BoxOverlap()
    metric.update(
        torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.2, 0.2, 0.2, 0.2]]), torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.8] * 4])
    )
    assert metric.compute().item() == pytest.approx(0.25)
