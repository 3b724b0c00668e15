"""Thresholds and scores of groups of samples."""

import pytest
import torch

from fastmtl import tasks
from fastmtl.protocols import Batch

ORGANS = {"organ": ("kidney", "lung"), "source": ("HPA", "Hubmap")}


def _batch(count, metadata):
    """Images whose masks are all foreground."""
    targets = {"it": torch.ones(count, 1, 8, 8, dtype=torch.uint8)}
    return Batch(torch.zeros(count, 3, 8, 8), targets, torch.ones(count, 1, dtype=torch.bool), metadata)


def test_thresholds_of_two_columns():
    """HPA 0.5 and its lung 0.15, HuBMAP 0.4 and its lung 0.1, as Barve and Hussain have them."""
    task = tasks.create_task(
        "binary_segmentation",
        "it",
        0,
        groups=ORGANS,
        group_by="organ",
        threshold_by=["organ", "source"],
        thresholds={"lung, Hubmap": 0.1, "lung": 0.15, "Hubmap": 0.4, "lung, HPA": 0.15},
    )
    organs, sources = torch.tensor([0.0, 1, 0, 1]), torch.tensor([0.0, 0, 1, 1])
    batch = _batch(4, {"organ": organs, "source": sources[:, None]})
    for threshold, organ_and_source in zip((0.5, 0.15, 0.4, 0.1), range(4), strict=True):
        for shift, above in ((-0.01, False), (0.01, True)):
            logits = torch.full((4, 1, 8, 8), threshold + shift).logit()
            assert task.predict(logits, batch)[organ_and_source].all() == above
    assert not task.predict(torch.full((4, 1, 8, 8), 0.45).logit()).any()  # without a batch 0.5
    assert task.grouping.columns == ("organ", "source")


def test_thresholds_follow_the_samples_organ():
    task = tasks.create_task(
        "binary_segmentation", "it", 0, groups={"organ": ("lung", "kidney")}, group_by="organ", thresholds={"lung": 0.1}
    )
    logits = torch.full((2, 1, 8, 8), -1.0)  # a probability of 0.27: foreground in the lung, not in the kidney
    batch = _batch(2, {"organ": torch.arange(2.0)})
    assert task.predict(logits, batch).flatten(1).all(1).tolist() == [True, False]
    metrics = task.metrics()
    task.update(metrics, logits, batch)
    assert task.summary(metrics)["per_group"]["dice"] == {"lung": 1.0, "kidney": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold_by": ["organ", "sauce"]}, "`threshold_by` must be a label column; did you mean 'source'"),
        (
            {"threshold_by": ["organ", "source"], "thresholds": {"lung, HuBMAP": 0.1}},
            "did you mean 'Hubmap'",
        ),
        (
            {"threshold_by": ["organ", "source"], "thresholds": {"lung, kidney": 0.1}},
            "names 'lung, kidney', no class of 'organ' and",
        ),
        ({"thresholds": {"Hubmap": 0.1}}, "names 'Hubmap', no class of 'organ'"),
        ({"thresholds": {"lung": 1.0}}, "the threshold of 'lung' must be between 0 and 1"),
    ],
)
def test_thresholds_of_no_class_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.create_task("binary_segmentation", "it", 0, groups=ORGANS, group_by="organ", **options)
