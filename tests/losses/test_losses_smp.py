"""`losses.smp` is held to segmentation-models-pytorch itself: values, gradients and errors, over its arguments."""

import re

import pytest
import torch
from helpers.inputs import generator
from helpers.pairwise import pairwise, singles
from helpers.parity import about, assert_same, outcome, signature

from fastmtl import losses, ops
from fastmtl.utils.torchvision_guard import make_torchvision_importable

make_torchvision_importable()
theirs = pytest.importorskip("segmentation_models_pytorch.losses", reason="smp comes with the extra [bench]")

ours = losses.smp
NAMES = ("DiceLoss", "JaccardLoss", "FocalLoss", "SoftBCEWithLogitsLoss")
SHAPES = {"2d": (2, 3, 5, 6), "3d": (2, 4, 3, 4, 2), "one channel": (3, 1, 5, 4), "1d": (2, 2, 9)}

DATA = {"shape": tuple(SHAPES), "target": ("hard", "soft", "empty", "full", "ignored"), "no_channel": (False, True)}
MODE = {"mode": ("multiclass", "multilabel", "binary"), "class_weights": (None, "sequence", "array")}
OVERLAP = {
    **DATA,
    **MODE,
    "classes": (None, [1, 0], torch.tensor([0])),
    "log_loss": (False, True),
    "from_logits": (True, False),
    "smooth": (0.0, 1.0, 1e-3),
    "ignore_index": (None, 255, 0, -100),
    "eps": (1e-7, 1e-2),
}
OPTIONS = {
    "DiceLoss": OVERLAP,
    "JaccardLoss": OVERLAP,
    "FocalLoss": {
        **DATA,
        **MODE,
        "alpha": (None, 0.25, 1.0),
        "gamma": (2.0, 1.5, 0.0),
        "ignore_index": (None, 255, 0),
        "from_logits": (True, False),
        "eps": (1e-7, 1e-2),
        "reduction": ("mean", "sum", "batchwise_mean", "none", None),
        "normalized": (False, True),
        "reduced_threshold": (None, 0.5),
    },
    "SoftBCEWithLogitsLoss": {
        "shape": tuple(SHAPES),
        "target": DATA["target"],
        "weight": (None, "number", "channel", "batched channel", "element", "pixel"),
        "ignore_index": (-100, None, 255, 0),
        "reduction": ("mean", "sum", "none", None),
        "smooth_factor": (None, 0.1, 0.0),
        "pos_weight": (None, "number", "channel", "batched channel", "element", "pixel"),
    },
}
CASES = [(name, case) for name in NAMES for case in singles(OPTIONS[name]) + pairwise(OPTIONS[name])]


def _tensor(kind, shape, source):
    ones = (1,) * (len(shape) - 2)
    sizes = {
        "number": (1,),
        "channel": (shape[1], *ones),
        "batched channel": (1, shape[1], *ones),
        "pixel": shape[2:],
        "element": shape,
    }
    return kind if kind is None else 0.5 + torch.rand(sizes[kind], generator=source, dtype=torch.float64)


def _arguments(name, case):
    """(constructor arguments, predictions, target) of a case."""
    arguments = dict(case)
    shape = SHAPES[arguments.pop("shape", "2d")]
    kind = arguments.pop("target", "hard")
    no_channel = arguments.pop("no_channel", False)
    source = generator(len(case))
    if name != "SoftBCEWithLogitsLoss":
        arguments.setdefault("mode", "multiclass")
    mode = arguments.get("mode", "multilabel")
    if arguments.get("class_weights") is not None:
        numbers = [0.5 + 0.25 * n for n in range(shape[1])]
        as_array = arguments["class_weights"] == "array"
        arguments["class_weights"] = torch.tensor(numbers).numpy() if as_array else numbers
    for key in ("weight", "pos_weight"):
        if key in arguments:
            arguments[key] = _tensor(arguments[key], shape, source)
    prediction = torch.randn(shape, generator=source, dtype=torch.float64) * 3
    if not arguments.get("from_logits", True):
        prediction = prediction.softmax(1) if mode == "multiclass" else prediction.sigmoid()
    ignored = arguments.get("ignore_index", -100 if name == "SoftBCEWithLogitsLoss" else None)
    if mode == "multiclass":
        labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=source)
        labels = {"empty": labels * 0, "full": labels * 0 + shape[1] - 1}.get(kind, labels)
        if kind == "ignored" and ignored is not None:
            labels[0] = ignored
        return arguments, prediction, labels
    target = (torch.rand(shape, generator=source, dtype=torch.float64) < 0.4).double()
    target = {"empty": target * 0, "full": target * 0 + 1}.get(kind, target)
    if kind == "soft":
        target = target * 0.7 + 0.2 * torch.rand(shape, generator=source, dtype=torch.float64)
    if kind == "ignored" and ignored is not None:
        target[0, :, 1:3] = ignored
    return arguments, prediction, target.squeeze(1) if no_channel and mode == "binary" else target


def _ours(name, arguments):
    return lambda: getattr(ours, name)(**arguments)


def _theirs(name, arguments):
    return lambda: getattr(theirs, name)(**arguments)


@pytest.mark.parametrize("name", NAMES)
def test_parity(name):
    for case in (case for cls, case in CASES if cls == name):
        arguments, prediction, target = _arguments(name, case)
        tolerance = 1e-6 if arguments.get("class_weights") is not None else 1e-9  # the weights are float32 in smp
        with about(case):
            assert_same(_ours(name, arguments), _theirs(name, arguments), prediction, target, tolerance=tolerance)


def test_cases_are_mostly_valid_and_few_enough():
    """A parity of exceptions alone would say little."""
    for name in NAMES:
        mine = [_arguments(name, case) for n, case in CASES[::5] if n == name]
        results = [outcome(_ours(name, arguments), x, t)[0] for arguments, x, t in mine]
        assert sum(n == name for n, _ in CASES) <= 300
        valid = [result for result in results if not isinstance(result, Exception)]
        assert len(valid) >= 0.5 * len(results)  # binary mode refuses two arguments, multilabel focal a third
        assert sum(bool(value.isfinite().all()) for value, _ in valid) >= 0.9 * len(valid)


@pytest.mark.parametrize("name", NAMES)
def test_constructor_takes_the_same_arguments(name):
    found, expected = signature(getattr(ours, name)), signature(getattr(theirs, name))
    assert found == expected


BAD_ARGUMENTS = [
    *[(name, {"mode": "regions"}) for name in NAMES[:3]],
    *[(name, {"mode": "binary", "class_weights": [1.0]}) for name in NAMES[:3]],
    *[(name, {"mode": "binary", "classes": [0]}) for name in NAMES[:2]],
    *[(name, {"mode": "multilabel", "classes": [5]}) for name in NAMES[:2]],
    *[(name, {"mode": "multilabel", "class_weights": [1.0, 2.0]}) for name in NAMES[:3]],
    ("FocalLoss", {"mode": "multilabel", "ignore_index": 255}),
    ("FocalLoss", {"mode": "multilabel", "gamma": None}),
    ("SoftBCEWithLogitsLoss", {"weight": [1.0]}),
    ("SoftBCEWithLogitsLoss", {"pos_weight": torch.ones(5)}),
]


@pytest.mark.parametrize(("name", "arguments"), BAD_ARGUMENTS)
def test_odd_arguments_end_alike(name, arguments):
    prediction = torch.zeros(2, 3, 5, 6, dtype=torch.float64)
    assert_same(_ours(name, arguments), _theirs(name, arguments), prediction, torch.ones_like(prediction))


@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 5, 6), (2, 3, 5, 7), (2, 3, 5, 6), (2, 1, 5, 6)])
def test_targets_that_do_not_fit_end_alike(name, mode, ignore_index, shape):
    arguments = {"ignore_index": ignore_index} | ({"mode": mode} if name != "SoftBCEWithLogitsLoss" else {})
    prediction = torch.zeros(2, 3, 5, 6, dtype=torch.float64)
    target = torch.ones(shape, dtype=torch.int64 if mode == "multiclass" else torch.float64)
    target = target.double() if name == "SoftBCEWithLogitsLoss" else target
    assert_same(_ours(name, arguments), _theirs(name, arguments), prediction, target)


@pytest.mark.parametrize("name", NAMES[:2])
def test_classes_of_the_wrong_kind_are_not_ignored(name):
    """smp takes a bare number for no selection at all."""
    with pytest.raises(TypeError, match="classes"):
        getattr(ours, name)("multilabel", classes=2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("name", NAMES)
def test_integer_targets_mean_what_floats_do(name, mode, dtype):
    if mode == "multiclass" and dtype == torch.bool:
        pytest.skip("three classes")
    arguments = {"mode": mode} if name != "SoftBCEWithLogitsLoss" else {}
    _, prediction, target = _arguments(name, arguments)
    assert_same(_ours(name, arguments), _theirs(name, arguments), prediction, target.to(dtype), their_target=target)


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("name", NAMES)
def test_float32(name, mode):
    arguments = {"mode": mode} if name != "SoftBCEWithLogitsLoss" else {}
    _, prediction, target = _arguments(name, {"shape": "3d", **arguments})
    target = target if mode == "multiclass" and name != "SoftBCEWithLogitsLoss" else target.float()
    assert_same(_ours(name, arguments), _theirs(name, arguments), prediction.float(), target, tolerance=1e-5)


@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("name", NAMES[:3])
def test_binary_mode_flattens_channels(name, ignore_index):
    """As in smp, where the mode's name is a promise that is not checked."""
    arguments = {"mode": "binary", "ignore_index": ignore_index}
    _, prediction, target = _arguments(name, {"mode": "multilabel", "target": "ignored", "ignore_index": ignore_index})
    assert_same(_ours(name, arguments), _theirs(name, arguments), prediction, target)


@pytest.mark.parametrize("mode", ["binary", "multiclass"])
def test_focal_of_ignored_pixels_alone_is_zero(mode):
    """smp gives NaN, and the training is lost."""
    for reduction in ("mean", "batchwise_mean"):
        logits = torch.randn(2, 1 if mode == "binary" else 3, 4, 4, requires_grad=True)
        loss = ours.FocalLoss(mode, ignore_index=255, reduction=reduction)(logits, torch.full((2, 4, 4), 255))
        loss.backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() == 0
        assert loss == 0


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_a_target_that_asks_for_it(name):
    arguments = {"mode": "multilabel"} if name != "SoftBCEWithLogitsLoss" else {}
    _, prediction, target = _arguments(name, {"target": "soft", **arguments})
    gradients = []
    for library in (ours, theirs):
        leaf = target.clone().requires_grad_()
        getattr(library, name)(**arguments)(prediction, leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_subclass_may_aggregate_otherwise():
    class WorstClass(ours.DiceLoss):
        def aggregate_loss(self, loss):
            return loss.max()

    _, prediction, target = _arguments("DiceLoss", {"mode": "multilabel"})
    assert WorstClass("multilabel")(prediction, target) > ours.DiceLoss("multilabel")(prediction, target)


PASSES = [
    ("DiceLoss", {"mode": "multiclass", "ignore_index": 255, "log_loss": True, "classes": [0, 1]}, 1),
    ("DiceLoss", {"mode": "multilabel", "ignore_index": 255, "class_weights": [1, 2, 3]}, 1),
    ("JaccardLoss", {"mode": "binary", "smooth": 1.0}, 1),
    ("JaccardLoss", {"mode": "binary", "from_logits": False}, 0),
    ("SoftBCEWithLogitsLoss", {"smooth_factor": 0.1, "weight": torch.ones(3, 1, 1)}, 1),
    ("SoftBCEWithLogitsLoss", {"reduction": "none"}, 0),
    ("SoftBCEWithLogitsLoss", {"weight": torch.ones(6)}, 0),
]


@pytest.mark.parametrize(("name", "arguments", "passes"), PASSES)
def test_fused_as_documented(name, arguments, passes, monkeypatch):
    calls = []
    plain = ops.overlap_sums
    monkeypatch.setattr(ops, "overlap_sums", lambda *a, **k: calls.append((a[1].shape, k["mask"])) or plain(*a, **k))
    case = {key: arguments[key] for key in ("mode", "from_logits") if key in arguments}
    _, prediction, target = _arguments(name, case)
    getattr(ours, name)(**arguments)(prediction, target.to(torch.uint8))
    assert len(calls) == passes
    if arguments.get("mode") == "multiclass":
        assert calls[0][0] == (2, 5, 6), "class numbers are read as they are"
    if name == "SoftBCEWithLogitsLoss" and passes:
        assert calls[0][1] is None, "a byte is never -100"


@pytest.mark.parametrize(("loss", "error"), [(ours.DiceLoss, AssertionError), (ours.FocalLoss, ValueError)])
@pytest.mark.parametrize("target", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 3)], ids=["one-hot", "channels last"])
def test_a_target_that_is_no_class_map_is_shown_as_it_was_given(loss, error, target) -> None:
    message = f"`y_true` must be [2, 4, 4] of class numbers for `y_pred` [2, 3, 4, 4]; got {list(target.shape)}"
    with pytest.raises(error, match=re.escape(message)):
        loss("multiclass")(torch.zeros(2, 3, 4, 4), target)
