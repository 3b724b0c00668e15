"""Options of tasks that make no sense are refused by name."""

import pytest

from fastmtl import tasks


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("multilabel_segmentation", {"structures": ()}, "`structures`"),
        ("multiclass_segmentation", {"structures": ("a",)}, "`structures`"),
        ("multiclass_segmentation", {"structures": [str(i) for i in range(256)]}, "pass another `ignore_index`"),
        ("multiclass_segmentation", {"structures": ("a", "b"), "class_weights": [1.0]}, "`class_weights`"),
        ("binary_segmentation", {"threshold": 1.5}, "`threshold`"),
        ("binary_segmentation", {"empty": "none"}, "`empty`"),
        ("binary_segmentation", {"group_by": "orga", "groups": {"organ": ("a",)}}, "did you mean 'organ'"),
        ("binary_segmentation", {"thresholds": {"lung": 0.1}}, "`group_by`"),
        ("binary_classification", {"class_names": ("a", "b", "c")}, "is binary"),
        ("regression", {"std": 0.0}, "`std`"),
        ("regression", {"std": float("inf")}, "`std`"),
        ("regression", {"size": 1.5}, "`size`"),
        ("regression", {"mean": float("nan")}, "`mean`"),
        ("binary_segmentation", {"bce_weight": -1}, "`bce_weight` must be 0 or more"),
        ("binary_segmentation", {"dice_weight": float("nan")}, "`dice_weight` must be 0 or more"),
        ("binary_segmentation", {"bce_weight": "1"}, "`bce_weight` must be 0 or more"),
        ("multilabel_segmentation", {"structures": ("a", "a")}, "distinct"),
        ("multiclass_segmentation", {"structures": ("a", "b", "a")}, "distinct"),
        ("universal_segmentation", {"structures": ("a", "")}, "distinct"),
        ("multiclass_segmentation", {"structures": ("a", "b"), "class_weights": [1, -1]}, "`class_weights`"),
        ("multiclass_segmentation", {"structures": ("a", "b"), "label_smoothing": 2}, "`label_smoothing`"),
        ("classification", {"class_names": ("a", "b"), "class_weights": ["a", "b"]}, "`class_weights`"),
        ("classification", {"class_names": ("a", "b"), "label_smoothing": -1.0}, "`label_smoothing`"),
        ("binary_classification", {"class_names": ("a", "b"), "pos_weight": -1.0}, "`pos_weight`"),
        ("auxiliary_segmentation", {"downsample": "bilinear"}, "`downsample`"),
        ("contrastive", {"temperature": float("inf")}, "`temperature`"),
        ("regression", {"loss": "huber"}, "`loss`"),
        ("contrastive", {"temperature": 0.0}, "`temperature`"),
        ("classification", {"class_names": ("a",)}, "two classes"),
        ("binary_segmentation", {"threshold": "half"}, "`threshold`"),
        ("binary_segmentation", {"aggregate": "imagee"}, "`aggregate` must be 'image' or 'batch'"),
        ("multiclass_segmentation", {"structures": ("a", "b"), "aggregate": {"iou": "batch"}}, "dice and jaccard"),
        ("universal_segmentation", {"empty": "none"}, "`empty`"),
        ("binary_segmentation", {"thresholds": "low", "group_by": ""}, "must map groups to probabilities"),
        ("regression", {"std": "two"}, "`std` must be above 0; got 'two'"),
        ("segmentation", {}, "unknown kind"),
        ("binary_segmentation", {"bce_wieght": 1.0}, "bce_weight"),
        ("binary_segmentation", {"structures": ("a",)}, "has no option 'structures'"),
        ("multilabel_segmentation", {"structures": ("a",), "threshhold": 0.4}, "did you mean 'threshold'"),
        ("regression", {"size": 0}, "`size` must be a whole number above 0; got 0"),
    ],
)
def test_bad_options_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        tasks.create_task(kind, "it", 0, **options)
