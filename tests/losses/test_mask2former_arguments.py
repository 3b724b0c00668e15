"""`losses.Mask2FormerLoss` names arguments and targets that do not fit."""

from __future__ import annotations

import pytest
import torch
from helpers.inputs import generator
from helpers.mask2former import CLASSES, POINTS, QUERIES, objects, predictions

from fastmtl.losses.mask2former import Mask2FormerLoss, pad_targets


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_logits": torch.zeros(2, QUERIES, CLASSES)}, r"`class_logits` must be \[B, Q, 5\]"),
        ({"mask_logits": torch.zeros(2, QUERIES + 1, 8, 8)}, "`mask_logits` must be"),
        ({"mask_logits": torch.zeros(2, QUERIES, 8, 8, dtype=torch.int64)}, "`mask_logits` must be floating"),
        ({"auxiliary": [(torch.zeros(2, 1, 5), torch.zeros(2, 1, 8, 8))]}, r"`auxiliary\[0\]`'s class_logits"),
        ({"labels": torch.zeros(2, 3, dtype=torch.int64)}, r"`labels` must be \[B, T\]"),
        ({"labels": torch.zeros(2, 4)}, "`labels` must be integers"),
        ({"masks": torch.zeros(3, 4, 8, 8)}, r"`masks` \[B, T, H', W'\] with B = 2"),
        ({"num_targets": torch.zeros(2)}, "`num_targets` int64"),
        (
            {"labels": [torch.zeros(4)] * 2, "masks": [torch.zeros(4, 8, 8)] * 2},
            "the lengths of lists give the numbers",
        ),
        ({"labels": [torch.zeros(4)], "masks": [], "num_targets": None}, "lists of one length"),
        ({"labels": [torch.zeros(4)], "masks": [torch.zeros(3, 8, 8)], "num_targets": None}, "for sample 0"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    arguments = {
        "class_logits": torch.zeros(2, QUERIES, CLASSES + 1), "mask_logits": torch.zeros(2, QUERIES, 8, 8),
        "labels": torch.zeros(2, 4, dtype=torch.int64), "masks": torch.zeros(2, 4, 8, 8),
        "num_targets": torch.tensor([4, 1]),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        Mask2FormerLoss(CLASSES, num_points=4)(**arguments | change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "`num_classes`"),
        ({"class_weight": -1.0}, "`class_weight`"),
        ({"class_weight": 0.0, "mask_weight": 0.0, "dice_weight": 0.0}, "all costs are 0"),
        ({"num_points": 0}, "`num_points`"),
        ({"oversample_ratio": 0.5}, "`oversample_ratio`"),
        ({"importance_sample_ratio": 1.5}, "`importance_sample_ratio`"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        Mask2FormerLoss(**{"num_classes": 3} | settings)


@pytest.mark.parametrize("label", [CLASSES, 255, -1, -100])
@pytest.mark.parametrize("padded", [False, True])
def test_a_label_without_a_class_is_named_with_its_place(label: int, padded: bool) -> None:
    """Classes counted from 1, or 255 for what is to be ignored: no target of "no object", and no index error."""
    labels, masks = objects([2, 3])
    labels[1][2] = label
    targets = pad_targets(labels, masks) if padded else (labels, masks)
    with pytest.raises(ValueError, match=rf"`labels` must lie in 0 to 3 .*got {label} for target 2 of sample 1"):
        Mask2FormerLoss(CLASSES, num_points=POINTS)(*predictions(2), *targets)


def test_labels_of_padding_and_of_samples_without_annotations_may_be_anything() -> None:
    loss = Mask2FormerLoss(CLASSES, num_points=POINTS)
    labels, masks, number = pad_targets(*objects([1, 3]))
    labels[0, 1:] = 255
    has_label = torch.tensor([True, False])
    spoilt = labels.clone()
    spoilt[1] = -1
    results = [
        loss(*predictions(2), one, masks, number, has_label=has_label, generator=generator(3))
        for one in (labels, spoilt)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_masks_of_255_are_named_with_their_place(dtype: torch.dtype) -> None:
    """Also where no sampled point meets the object."""
    labels, masks = objects([2, 3])
    masks = [mask.to(dtype) for mask in masks]
    masks[1][1] = 0
    masks[1][1, 7, 7] = 255
    with pytest.raises(ValueError, match="`masks` must lie in 0 to 1; got 255 in target 1 of sample 1"):
        Mask2FormerLoss(CLASSES, num_points=POINTS)(*predictions(2), labels, masks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o | {"labels": [label.float() for label in o["labels"]]}, r"`labels\[0\]` must be integers; got fl"),
        (lambda o: o | {"labels": [[1], [2]]}, r"`labels\[0\]` must be a Tensor; got list"),
        (lambda o: o | {"masks": [mask[:1] for mask in o["masks"]]}, r"\[2\] and \[1, 40, 40\] for sample 0"),
        (lambda o: o | {"labels": o["labels"][:1]}, "lists of one length; got 1 and 2"),
        (lambda o: o | {"auxiliary": [{"logits": None}]}, "`auxiliary` must hold class_queries_logits and masks_que"),
        (
            lambda o: o | pad_targets(o["labels"], o["masks"])._replace(num_targets=torch.tensor([2, 9]))._asdict(),
            r"`num_targets` must lie in 0 to 2.*got \[2, 9\]",
        ),
        (
            lambda o: o | {k: v.float() if k == "labels" else v for k, v in pad_targets(*o.values())._asdict().items()},
            "`labels` must be integers and `num_targets` int64",
        ),
    ],
)
def test_targets_that_do_not_fit_are_named(change, message: str) -> None:
    labels, masks = objects([2, 2])
    given = change({"labels": labels, "masks": masks})
    with pytest.raises((ValueError, TypeError), match=message):
        Mask2FormerLoss(CLASSES, num_points=POINTS)(*predictions(2), **given)


def test_where_nobody_may_look_a_strange_label_makes_the_loss_no_number(monkeypatch) -> None:
    """As on a GPU, for which the host would have to wait."""
    from fastmtl.losses import mask2former_targets

    monkeypatch.setattr(mask2former_targets, "may_look", lambda tensor: False)
    loss, (labels, masks) = Mask2FormerLoss(CLASSES, num_points=POINTS), objects([2, 3])
    assert loss.total(loss(*predictions(2), labels, masks)).isfinite()
    labels[1][2] = 255
    assert all(value.isnan() for value in loss(*predictions(2), labels, masks).values())
