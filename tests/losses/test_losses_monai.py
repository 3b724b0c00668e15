"""`losses.monai` is held to MONAI itself: values, gradients, shapes, warnings and errors, over its arguments."""

import pytest
import torch
from helpers.inputs import generator
from helpers.pairwise import pairwise, singles
from helpers.parity import assert_same, outcome, signature

from fastmtl import losses, ops

theirs = pytest.importorskip("monai.losses", reason="MONAI comes with the extra [bench]")
from monai.utils import LossReduction, Weight  # noqa: E402

ours = losses.monai
NAMES = ("DiceLoss", "DiceCELoss", "DiceFocalLoss", "GeneralizedDiceLoss", "TverskyLoss", "FocalLoss")
SHAPES = {"2d": (2, 3, 5, 6), "3d": (2, 4, 3, 4, 2), "one channel": (3, 1, 5, 4), "flat": (4, 3), "1d": (2, 2, 9)}

SHARED = {
    "shape": tuple(SHAPES),
    "target": ("hard", "soft", "empty", "full", "ignored"),
    "include_background": (True, False),
    "to_onehot_y": (False, True),
    "reduction": ("mean", "sum", "none"),
}
ACTIVATION = {"activation": ("softmax", "sigmoid", "none", "tanh")}
SMOOTH = {"smooth_nr": (1e-5, 0.0, 1), "smooth_dr": (1e-5, 0.1, 1), "batch": (False, True)}
DICE = {**ACTIVATION, "squared_pred": (False, True), "jaccard": (False, True), **SMOOTH}
WEIGHT = {"weight": (None, 0.7, "sequence", "tensor")}
IGNORE = {"ignore_index": (None, 1, 0, 255, -1)}
OPTIONS = {
    "DiceLoss": {**SHARED, **DICE, **WEIGHT, **IGNORE, "soft_label": (False, True)},
    "DiceCELoss": {
        **SHARED,
        **DICE,
        "reduction": ("mean", "sum"),
        "weight": (None, "tensor"),
        "lambda_dice": (1.0, 0.3, 0.0),
        "lambda_ce": (1.0, 0.2, 0.0),
        "label_smoothing": (0.0, 0.1),
    },
    "DiceFocalLoss": {
        **SHARED,
        **DICE,
        "gamma": (2.0, 0.5, 0),
        **WEIGHT,
        "lambda_dice": (1.0, 0.3, 0.0),
        "lambda_focal": (1.0, 0.2, 0.0),
        "alpha": (None, 0.25),
    },
    "GeneralizedDiceLoss": {
        **SHARED,
        **ACTIVATION,
        "w_type": ("square", "simple", "uniform", Weight.SIMPLE, " square "),
        **SMOOTH,
        "soft_label": (False, True),
    },
    "TverskyLoss": {
        **SHARED,
        **ACTIVATION,
        "alpha": (0.5, 0.3, 1),
        "beta": (0.5, 0.7, 0),
        **SMOOTH,
        "soft_label": (False, True),
        **IGNORE,
    },
    "FocalLoss": {
        **SHARED,
        "gamma": (2.0, 1.5, 0, 3),
        "alpha": (None, 0.25, "sequence", 1),
        **WEIGHT,
        "use_softmax": (False, True),
        **IGNORE,
    },
}
CASES = [(name, case) for name in NAMES for case in singles(OPTIONS[name]) + pairwise(OPTIONS[name])]


def _arguments(name, case):
    """(constructor arguments, logits, target) of a case."""
    arguments = dict(case)
    shape = SHAPES[arguments.pop("shape", "2d")]
    kind = arguments.pop("target", "hard")
    activation = arguments.pop("activation", "softmax" if name != "FocalLoss" else "none")
    arguments |= {"sigmoid": True} if activation == "sigmoid" else {}
    arguments |= {"softmax": True} if activation == "softmax" else {}
    arguments |= {"other_act": torch.tanh} if activation == "tanh" else {}
    counted = shape[1] - int(not arguments.get("include_background", True) and shape[1] > 1)
    for key in ("weight", "alpha"):
        if arguments.get(key) in ("sequence", "tensor"):
            length = shape[1] if name == "DiceCELoss" else counted
            numbers = [0.5 + 0.25 * n for n in range(length)]
            arguments[key] = numbers if arguments[key] == "sequence" else torch.tensor(numbers).double()
    source = generator(len(case))
    logits = torch.randn(shape, generator=source, dtype=torch.float64) * 3
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), generator=source)
    if kind == "empty":
        labels = torch.zeros_like(labels)
    if kind == "full":
        labels = torch.full_like(labels, shape[1] - 1)
    if arguments.get("to_onehot_y") and shape[1] > 1:
        ignored = arguments.get("ignore_index")
        if kind == "ignored" and ignored is not None:
            labels[0] = ignored
        return arguments, logits, labels.double() if kind == "soft" else labels  # MONAI's transforms leave floats
    if shape[1] == 1:
        target = (torch.rand(shape, generator=source) < 0.4).double()
        target = {"empty": torch.zeros_like(target), "full": torch.ones_like(target)}.get(kind, target)
    else:
        target = torch.zeros_like(logits).scatter_(1, labels, 1.0)
    if kind == "ignored" and len(shape) > 2:
        target[0, :, ..., :2] = (
            arguments.get("ignore_index") if shape[1] == 1 and arguments.get("ignore_index") else 0.0
        )
    if kind == "soft":
        target = target * 0.7 + 0.2 * torch.rand(shape, generator=source, dtype=torch.float64)
    return arguments, logits, target


def _tolerance(name, squared=False):
    """MONAI's focal loss is float32 whatever comes in, and so are the generalized weights and a one-hot map's norm."""
    return 3e-5 if "Focal" in name else 1e-6 if name == "GeneralizedDiceLoss" or squared else 1e-9


@pytest.mark.parametrize(("name", "case"), CASES)
def test_parity(name, case):
    arguments, logits, target = _arguments(name, case)
    assert_same(
        lambda: getattr(ours, name)(**arguments),
        lambda: getattr(theirs, name)(**arguments),
        logits,
        target,
        tolerance=_tolerance(name, arguments.get("squared_pred", False)),
    )


def test_cases_are_mostly_valid_and_few_enough():
    """A parity of exceptions alone would say little."""
    for name in NAMES:
        results = [outcome(lambda: getattr(ours, n)(**a), x, t)[0]
                   for n, case in CASES[::5] if n == name for a, x, t in [_arguments(n, case)]]  # fmt: skip
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
    _, logits, target = _arguments(name, {})
    assert_same(lambda: getattr(ours, name)(**arguments), lambda: getattr(theirs, name)(**arguments), logits, target,
                tolerance=_tolerance(name))  # fmt: skip


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
                torch.zeros(shape), tolerance=_tolerance(name))  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_weight_of_one_channel(name, channels):
    """MONAI's Dice ignores it, its focal loss refuses a sequence, its BCE takes it as pos_weight."""
    if "weight" not in signature(getattr(ours, name)):
        pytest.skip("has no weight")
    logits, target = torch.randn(2, 1, 4, channels, dtype=torch.float64), torch.ones(2, 1, 4, channels).double()
    weight = torch.tensor([0.5, 2.0, 3.0][:channels], dtype=torch.float64)
    assert_same(lambda: getattr(ours, name)(weight=weight), lambda: getattr(theirs, name)(weight=weight), logits,
                target, tolerance=_tolerance(name))  # fmt: skip


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
    _, logits, target = _arguments(name, {"to_onehot_y": arguments.get("to_onehot_y", False)})
    getattr(ours, name)(**arguments)(logits, target)
    assert len(calls) == passes
    if arguments.get("softmax") and arguments.get("to_onehot_y"):
        assert calls[0] == (2, 5, 6), "class numbers are read as they are"
