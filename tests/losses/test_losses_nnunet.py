"""`losses.nnunet` is held to nnU-Net: to values it gave once, in golden/nnunet.json, and to itself where installed.

nnU-Net wants half a gigabyte of packages for two losses, so its numbers are kept. To make them again:

    pip download --no-deps nnunetv2==2.8.1 && unzip -q nnunetv2-2.8.1-*.whl -d unpacked
    PYTHONPATH=unpacked:.:tests python tests/losses/test_losses_nnunet.py
"""

import json

import pytest
import torch
from helpers.asserts import loss_and_gradient
from helpers.nnunet_cases import CASES, OPTIONS, build, inputs, numbers
from helpers.parity import about, outcome, signature
from helpers.paths import GOLDEN

from fastmtl import losses, ops

ours = losses.nnunet
EXPECTED = GOLDEN / "nnunet.json"


def _summary(result):
    """What is kept of a loss and its gradient, or the exception's name; a None stands for NaN."""
    if isinstance(result, Exception):
        return type(result).__name__
    value, gradient = (part.double() for part in result)
    dots = [(part.flatten() * numbers(part.numel())).sum() for part in (value, gradient)]
    return [list(value.shape), *(float(x) if x == x else None for x in (*dots, gradient.abs().sum()))]


def _case_result(library, name, case):
    def made():
        loss = build(library, name, case)
        # Of nothing that counts nnU-Net's loss is the number 0; ours may be a tensor.
        return lambda x, t: x.sum() * 0 + loss(x, t)

    return _summary(outcome(made, *inputs(name, case))[0])


def _golden():
    return json.loads(EXPECTED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", OPTIONS)
def test_parity(name):
    golden = _golden()["cases"]
    assert [described for described, _ in golden] == [list(case) for case in CASES], "make the golden values again"
    for case, expected in [(described[1], result) for described, result in golden if described[0] == name]:
        with about(case):
            found = _case_result(ours, name, case)
            if isinstance(expected, str) or isinstance(found, str):
                assert found == expected
                continue
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

    logits, target = inputs("DC_and_CE_loss", {"ignore_label": 1})
    loss = ours.DC_and_CE_loss({"size": 5.0}, {}, weight_ce=0, ignore_label=1, dice_class=Constant)(logits, target)
    assert loss == 5


@pytest.mark.parametrize("shape", ["2d", "one"])
@pytest.mark.parametrize("weight", [None, "channel"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_entropy_of_ignored_pixels_alone_is_nothing(shape, weight, smoothing):
    case = {"shape": shape, "ignore_label": 9, "target": "all ignored", "weight": weight, "weight_dice": 0}
    logits, target = inputs("DC_and_CE_loss", case)
    loss = build(ours, "DC_and_CE_loss", {**case, "label_smoothing": smoothing})
    value, gradient = loss_and_gradient(lambda x: loss(x, target), logits)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weight", [None, "channel"])
def test_label_smoothing_is_fused(weight, reduction, monkeypatch):
    case = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
    logits, target = inputs("DC_and_CE_loss", case)
    loss = build(ours, "DC_and_CE_loss", case).ce
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
    logits, target = inputs("DC_and_CE_loss", {})
    loss = build(ours, "DC_and_CE_loss", {})
    expected = loss(logits, target)
    loss.dc = Optimized(loss.dc)
    assert loss(logits, target) == expected
    assert calls == [(2, 5, 6)] * 2, "class numbers are read as they are, once"


@pytest.mark.parametrize("apply_nonlin", [torch.sigmoid, ours.softmax_helper_dim1, None, torch.square])
def test_dice_alone(apply_nonlin):
    """The Dice classes are modules of their own; fused or not, with or without a mask, they mean the same."""
    logits, target = inputs("DC_and_CE_loss", {})
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
