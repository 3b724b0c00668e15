"""`losses.nnunet` is held to nnU-Net: to values it gave once, in golden/nnunet.json, and to itself where installed.

nnU-Net wants half a gigabyte of packages for two losses, so its numbers are kept. To make them anew:

    pip download --no-deps nnunetv2==2.8.1 && unzip -q nnunetv2-2.8.1-*.whl -d unpacked
    PYTHONPATH=unpacked:. python tests/losses/test_losses_nnunet.py
"""

import json

import pytest
import torch
from helpers.asserts import loss_and_gradient
from helpers.pairwise import pairwise, singles
from helpers.parity import outcome, signature
from helpers.paths import GOLDEN

from fastmtl import losses, ops

ours = losses.nnunet
EXPECTED = GOLDEN / "nnunet.json"
SHAPES = {"2d": (2, 3, 5, 6), "3d": (2, 4, 3, 4, 2), "two": (3, 2, 5, 4), "one": (2, 1, 4, 4)}

SHARED = {
    "shape": tuple(SHAPES),
    "weight_ce": (1, 0.4, 0),
    "weight_dice": (1, 0.6, 0),
    "dice_class": ("SoftDiceLoss", "MemoryEfficientSoftDiceLoss"),
    "batch_dice": (False, True),
    "do_bg": (True, False),
    "smooth": (1.0, 1e-5, 0),
    "clip_tp": (None, 3.0),
}
OPTIONS = {
    "DC_and_CE_loss": {
        **SHARED,
        "target": ("numbers", "float numbers", "one class", "ignored", "all ignored", "no channel", "one-hot"),
        "ignore_label": (None, 1, 9),
        "weight": (None, "channel"),
        "label_smoothing": (0.0, 0.1),
        "reduction": ("mean", "sum", "none"),
        "ignore_index": (-100, 0),
    },
    "DC_and_BCE_loss": {
        **SHARED,
        "target": ("regions", "soft", "empty", "full", "bool"),
        "use_ignore_label": (False, True),
        "weight": (None, "channel", "pixel"),
        "pos_weight": (None, "channel", "number"),
        "reduction": ("mean", "sum", "none"),
    },
}
DICE_KEYS = ("batch_dice", "do_bg", "smooth", "clip_tp")
ENTROPY_KEYS = ("weight", "pos_weight", "label_smoothing", "reduction", "ignore_index")
CASES = [(name, case) for name, options in OPTIONS.items() for case in singles(options) + pairwise(options)]


def _numbers(*shape):
    """The same numbers on every machine and version: sines of an irregular progression, -1 to 1."""
    count = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return torch.sin(count * 1.7 + 0.3 * count**1.5).view(shape)


def _weight(kind, shape):
    sizes = {"channel": (shape[1], *(1,) * (len(shape) - 2)), "pixel": shape[2:], "number": (1,)}
    return 1.2 + _numbers(*sizes[kind]).float()


def _build(library, name, case):
    """The loss of a case, made as nnU-Net's trainer does."""
    shape = SHAPES[case.get("shape", "2d")]
    dice = {"ddp": False, **{key: case[key] for key in DICE_KEYS if key in case and case[key] is not None}}
    entropy = {key: case[key] for key in ENTROPY_KEYS if case.get(key) is not None}
    for key in ("weight", "pos_weight"):
        if key in entropy:
            entropy[key] = _weight(entropy[key], shape)
    if name == "DC_and_CE_loss" and "weight" in entropy:
        entropy["weight"] = entropy["weight"].flatten()
    arguments = {
        key: case[key] for key in ("weight_ce", "weight_dice", "ignore_label", "use_ignore_label") if key in case
    }
    arguments |= {"dice_class": getattr(library, case["dice_class"])} if "dice_class" in case else {}
    kwargs = "ce_kwargs" if name == "DC_and_CE_loss" else "bce_kwargs"
    return getattr(library, name)(**{kwargs: entropy, "soft_dice_kwargs": dice}, **arguments)


def _inputs(name, case):
    shape = SHAPES[case.get("shape", "2d")]
    logits, noise = _numbers(*shape).float() * 4, _numbers(shape[0], 1, *shape[2:]).flip(-1)
    kind = case.get("target")
    if name == "DC_and_CE_loss":
        labels = ((noise + 1) * 1000).long() % shape[1]
        ignored = case.get("ignore_label")
        if kind == "one class":
            labels = labels * 0 + shape[1] - 1
        if kind in ("ignored", "all ignored") and ignored is not None:
            labels[: 1 if kind == "ignored" else None] = ignored
        if kind == "one-hot":
            labels = torch.zeros(shape).scatter_(1, labels, 1.0)
        return logits, labels[:, 0] if kind == "no channel" else labels.float() if kind == "float numbers" else labels
    soft = (_numbers(shape[0], shape[1] + int(case.get("use_ignore_label", False)), *shape[2:]).flip(-1) + 1) / 2
    target = (soft > 0.6).float()
    if kind == "soft":
        target[:, : shape[1]] = soft[:, : shape[1]].float()
    if kind in ("empty", "full"):
        target[:, : shape[1]] = float(kind == "full")
    return logits, target.bool() if kind == "bool" else target


def _summary(result):
    """What is kept of a loss and its gradient, or the exception's name; a None stands for NaN."""
    if isinstance(result, Exception):
        return type(result).__name__
    value, gradient = (part.double() for part in result)
    dots = [(part.flatten() * _numbers(part.numel())).sum() for part in (value, gradient)]
    return [list(value.shape), *(float(x) if x == x else None for x in (*dots, gradient.abs().sum()))]


def _case_result(library, name, case):
    def build():
        loss = _build(library, name, case)
        # Of nothing that counts nnU-Net's loss is the number 0; ours may be a tensor.
        return lambda x, t: x.sum() * 0 + loss(x, t)

    return _summary(outcome(build, *_inputs(name, case))[0])


def _golden():
    return json.loads(EXPECTED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_parity(number):
    name, case = CASES[number]
    described, expected = _golden()["cases"][number]
    assert described == [name, case], "the cases changed: make the golden values anew"
    found = _case_result(ours, name, case)
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    assert found[0] == expected[0]
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert a == (b if b is None else pytest.approx(b, rel=2e-5, abs=2e-6))


def test_golden_cases_are_mostly_valid():
    golden = _golden()["cases"]
    for name in OPTIONS:
        kept = [result for (cls, _), result in golden if cls == name]
        assert len(kept) <= 300
        assert sum(not isinstance(result, str) for result in kept) >= 0.5 * len(kept)
        assert sum(None in result for result in kept if not isinstance(result, str)) <= 0.1 * len(kept)


def test_constructors_take_the_same_arguments():
    for name, expected in _golden()["signatures"].items():
        assert [[key, repr(default)] for key, default in signature(getattr(ours, name)).items()] == expected


def test_settings_of_the_caller_are_left_alone():
    """nnU-Net writes into them."""
    ce, bce = {}, {"reduction": "mean"}
    ours.DC_and_CE_loss({}, ce, ignore_label=3)
    ours.DC_and_BCE_loss(bce, {}, use_ignore_label=True)
    assert (ce, bce) == ({}, {"reduction": "mean"})


def test_unknown_dice_keyword():
    with pytest.raises(TypeError, match="clip_tp"):
        ours.DC_and_CE_loss({"clip_tp": 1.0}, {}, dice_class=ours.MemoryEfficientSoftDiceLoss)


def _fake_of_nnunet(name):
    """A class as Python would know nnU-Net's own."""
    return type(name, (torch.nn.Module,), {"__module__": "nnunetv2.training.loss.dice"})


@pytest.mark.parametrize("name", ["SoftDiceLoss", "MemoryEfficientSoftDiceLoss"])
def test_dice_classes_of_nnunet_are_replaced(name):
    loss = ours.DC_and_CE_loss({"ddp": False}, {}, dice_class=_fake_of_nnunet(name))
    assert type(loss.dc) is getattr(ours, name)


def test_any_other_dice_class_is_called():
    class Constant(torch.nn.Module):
        def __init__(self, apply_nonlin, size):
            super().__init__()
            self.size = size

        def forward(self, x, y, loss_mask=None):
            assert loss_mask is not None
            return x.sum() * 0 + self.size

    logits, target = _inputs("DC_and_CE_loss", {"ignore_label": 1})
    loss = ours.DC_and_CE_loss({"size": 5.0}, {}, weight_ce=0, ignore_label=1, dice_class=Constant)(logits, target)
    assert loss == 5


@pytest.mark.parametrize("shape", ["2d", "one"])
@pytest.mark.parametrize("weight", [None, "channel"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_entropy_of_ignored_pixels_alone_is_nothing(shape, weight, smoothing):
    case = {"shape": shape, "ignore_label": 9, "target": "all ignored", "weight": weight, "weight_dice": 0}
    logits, target = _inputs("DC_and_CE_loss", case)
    loss = _build(ours, "DC_and_CE_loss", {**case, "label_smoothing": smoothing})
    value, gradient = loss_and_gradient(lambda x: loss(x, target), logits)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weight", [None, "channel"])
def test_label_smoothing_is_fused(weight, reduction, monkeypatch):
    case = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
    logits, target = _inputs("DC_and_CE_loss", case)
    loss = _build(ours, "DC_and_CE_loss", case).ce
    expected = torch.nn.CrossEntropyLoss.forward(loss, logits, target[:, 0])
    calls, fused = [], ops.cross_entropy
    monkeypatch.setattr(ops, "cross_entropy", lambda *a, **k: calls.append(a[1].shape) or fused(*a, **k))
    torch.testing.assert_close(loss(logits, target), expected)
    assert calls == [(2, 5, 6)]


def test_compiled_dice_keeps_the_single_pass(monkeypatch):
    """nnU-Net's trainer sets `loss.dc = torch.compile(loss.dc)`; what that returns is stood in for, it takes long."""

    class Optimized(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self._orig_mod = module

    calls = []
    plain = ops.overlap_sums
    monkeypatch.setattr(ops, "overlap_sums", lambda *a, **k: calls.append(a[1].shape) or plain(*a, **k))
    logits, target = _inputs("DC_and_CE_loss", {})
    loss = _build(ours, "DC_and_CE_loss", {})
    expected = loss(logits, target)
    loss.dc = Optimized(loss.dc)
    assert loss(logits, target) == expected
    assert calls == [(2, 5, 6)] * 2, "class numbers are read as they are, once"


@pytest.mark.parametrize("apply_nonlin", [torch.sigmoid, ours.softmax_helper_dim1, None, torch.square])
def test_dice_alone(apply_nonlin):
    """The Dice classes are modules of their own; fused or not, with or without a mask, they mean the same."""
    logits, target = _inputs("DC_and_CE_loss", {})
    logits, mask = logits.abs(), target != 1
    dice = ours.SoftDiceLoss(apply_nonlin, ddp=False, smooth=0.5, do_bg=False)
    p = logits if apply_nonlin is None else apply_nonlin(logits)
    t = torch.zeros_like(p).scatter_(1, target, 1.0)
    i, total = (p * t * mask).sum((2, 3)), ((p + t) * mask).sum((2, 3))
    expected = -((2 * i + 0.5) / (total + 0.5))[:, 1:].mean()
    torch.testing.assert_close(dice(logits, target, mask), expected)
    torch.testing.assert_close(dice(logits, t, mask.float()), expected)


def _write_golden():
    from nnunetv2.training.loss import compound_losses as theirs  # names the Dice classes too

    torch.set_default_dtype(torch.float32)
    signatures = {
        name: [[key, repr(default)] for key, default in signature(getattr(theirs, name)).items()]
        for name in ("DC_and_CE_loss", "DC_and_BCE_loss", "SoftDiceLoss", "MemoryEfficientSoftDiceLoss")
    }
    rows = [json.dumps([[name, case], _case_result(theirs, name, case)]) for name, case in CASES]
    EXPECTED.parent.mkdir(exist_ok=True)
    EXPECTED.write_text(
        '{"source": "nnunetv2 2.8.1",\n"signatures": ' + json.dumps(signatures) + ',\n"cases": [\n'
        + ",\n".join(rows) + "\n]}\n",
        encoding="utf-8",
    )  # fmt: skip


if __name__ == "__main__":
    _write_golden()
