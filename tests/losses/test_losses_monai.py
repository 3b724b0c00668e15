"""`losses.monai` is held to MONAI itself: values, gradients, shapes, warnings and errors, over its arguments."""

import pytest
import torch
from helpers.parity import about, assert_same, outcome, signature

from fastmtl import losses, ops

theirs = pytest.importorskip("monai.losses", reason="MONAI comes with the extra [bench]")
from helpers.monai_cases import CASES, NAMES, arguments_of, tolerance_of  # noqa: E402
from monai.utils.enums import LossReduction  # noqa: E402

ours = losses.monai


@pytest.mark.parametrize("name", NAMES)
def test_parity(name):
    for case in (case for cls, case in CASES if cls == name):
        arguments, logits, target = arguments_of(name, case)
        with about(case):
            assert_same(
                lambda: getattr(ours, name)(**arguments),
                lambda: getattr(theirs, name)(**arguments),
                logits,
                target,
                tolerance=tolerance_of(name, arguments.get("squared_pred", False)),
            )


def test_cases_are_mostly_valid_and_few_enough():
    """A parity of exceptions alone would say little."""
    for name in NAMES:
        results = [outcome(lambda: getattr(ours, n)(**a), x, t)[0]
                   for n, case in CASES[::5] if n == name for a, x, t in [arguments_of(n, case)]]  # fmt: skip
        assert sum(n == name for n, _ in CASES) <= 300
        valid = [r for r in results if not isinstance(r, Exception)]
        assert len(valid) >= 0.75 * len(results)
        assert sum(bool(value.isfinite().all()) for value, _ in valid) >= 0.9 * len(valid)


@pytest.mark.parametrize("name", NAMES)
def test_constructor_takes_the_same_arguments(name):
    assert signature(getattr(ours, name)) == signature(getattr(theirs, name))


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_same_keys(name):
    arguments = {"weight": torch.tensor([1.0, 2.0, 0.5])} if "weight" in signature(getattr(ours, name)) else {}
    expected = getattr(theirs, name)(**arguments).state_dict()
    found = getattr(ours, name)(**arguments).state_dict()
    assert found.keys() == expected.keys()


BAD_ARGUMENTS = [
    *[(name, {"sigmoid": True, "softmax": True}) for name in NAMES if name != "FocalLoss"],
    *[(name, {"softmax": True, "other_act": torch.tanh}) for name in NAMES if name != "FocalLoss"],
    *[(name, {"other_act": "tanh"}) for name in NAMES if name != "FocalLoss"],
    *[(name, {"reduction": reduction}) for name in NAMES for reduction in ("average", None, " mean", 3)],
    *[(name, {"reduction": LossReduction.SUM}) for name in NAMES],
    ("DiceCELoss", {"reduction": "none"}),
    ("DiceCELoss", {"lambda_dice": -1.0}),
    ("DiceCELoss", {"lambda_ce": -1.0}),
    ("DiceCELoss", {"weight": [1.0, 2.0, 3.0]}),
    ("DiceCELoss", {"weight": torch.ones(2)}),
    ("DiceCELoss", {"weight": torch.ones(3), "include_background": False}),
    ("DiceFocalLoss", {"lambda_dice": -1.0}),
    ("DiceFocalLoss", {"lambda_focal": -1.0}),
    ("GeneralizedDiceLoss", {"w_type": "cubic"}),
    ("DiceLoss", {"weight": [1.0, 2.0]}),
    ("DiceLoss", {"weight": [1.0, -2.0, 1.0]}),
    ("DiceLoss", {"weight": -1.0}),
    ("FocalLoss", {"weight": [1.0, 2.0]}),
    ("FocalLoss", {"weight": [1.0, -2.0, 1.0]}),
    ("FocalLoss", {"weight": -1.0}),
    ("FocalLoss", {"alpha": [0.5, 0.5]}),
    ("FocalLoss", {"alpha": [0.5, 0.5], "use_softmax": True}),
    ("FocalLoss", {"alpha": 0.3, "use_softmax": True, "include_background": False}),
    ("FocalLoss", {"alpha": [0.3, 0.4], "use_softmax": True, "include_background": False}),
    ("FocalLoss", {"alpha": torch.tensor(0.3), "use_softmax": True, "include_background": False}),
]


@pytest.mark.parametrize(("name", "arguments"), BAD_ARGUMENTS)
def test_odd_arguments_end_alike(name, arguments):
    _, logits, target = arguments_of(name, {})
    assert_same(lambda: getattr(ours, name)(**arguments), lambda: getattr(theirs, name)(**arguments), logits, target,
                tolerance=tolerance_of(name))  # fmt: skip


@pytest.mark.parametrize("to_onehot_y", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 7), (2, 1, 5, 7), (2, 1, 5, 6), (2, 2, 5, 6), (2, 5, 6), (3, 3, 5, 6), (2, 1, 5, 6, 1)]
)
def test_targets_that_do_not_fit_end_alike(name, to_onehot_y, shape):
    logits = torch.zeros(2, 3, 5, 6, dtype=torch.float64)
    arguments = {"to_onehot_y": to_onehot_y}
    # MONAI broadcasts a batch of one and refuses others only where it comes to multiply: not a contract to keep.
    assert_same(lambda: getattr(ours, name)(**arguments), lambda: getattr(theirs, name)(**arguments), logits,
                torch.zeros(shape), tolerance=tolerance_of(name))  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_weight_of_one_channel(name, channels):
    """MONAI's Dice ignores it, its focal loss refuses a sequence, its BCE takes it as pos_weight."""
    if "weight" not in signature(getattr(ours, name)):
        pytest.skip("has no weight")
    logits, target = torch.randn(2, 1, 4, channels, dtype=torch.float64), torch.ones(2, 1, 4, channels).double()
    weight = torch.tensor([0.5, 2.0, 3.0][:channels], dtype=torch.float64)
    assert_same(lambda: getattr(ours, name)(weight=weight), lambda: getattr(theirs, name)(weight=weight), logits,
                target, tolerance=tolerance_of(name))  # fmt: skip


PASSES = [
    ("DiceLoss", {"softmax": True, "to_onehot_y": True, "ignore_index": 255, "include_background": False}, 1),
    ("DiceLoss", {"sigmoid": True, "squared_pred": True, "jaccard": True, "batch": True, "weight": 2.0}, 1),
    ("DiceLoss", {"sigmoid": True, "soft_label": True}, 1),
    ("GeneralizedDiceLoss", {"softmax": True}, 1),
    ("TverskyLoss", {"sigmoid": True, "to_onehot_y": True}, 1),
    ("DiceCELoss", {"softmax": True, "to_onehot_y": True, "weight": torch.ones(3)}, 1),
    ("DiceCELoss", {"sigmoid": True}, 2),
    ("DiceCELoss", {"softmax": True, "label_smoothing": 0.1}, 2),
    ("DiceFocalLoss", {"softmax": True}, 1),
    ("DiceLoss", {"other_act": torch.tanh}, 0),
    ("DiceLoss", {}, 0),
]


@pytest.mark.parametrize(("name", "arguments", "passes"), PASSES)
def test_fused_as_documented(name, arguments, passes, monkeypatch):
    calls = []
    for op in ("overlap_sums", "cross_entropy"):
        fused = getattr(ops, op)
        monkeypatch.setattr(ops, op, lambda *a, fused=fused, **k: calls.append(a[1].shape) or fused(*a, **k))
    _, logits, target = arguments_of(name, {"to_onehot_y": arguments.get("to_onehot_y", False)})
    getattr(ours, name)(**arguments)(logits, target)
    assert len(calls) == passes
    if arguments.get("softmax") and arguments.get("to_onehot_y"):
        assert calls[0] == (2, 5, 6), "class numbers are read as they are"
