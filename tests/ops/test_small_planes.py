"""Losses of classifiers and of maps of few pixels on the CPU: vector lanes run over planes, samples or classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.asserts import assert_bit_equal, loss_and_gradient
from helpers.op_backends import needs_cpp
from torch import Tensor

from fastmtl import ops

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    needs_cpp,
]

# One full and one partial group, whole and partial vectors, one pixel and several, many channels and one.
PLANES = [(700, 3), (3, 700), (513, 1), (2, 1024), (140, 2, 4), (65, 3, 3, 3), (33, 1, 31), (20, 16, 2)]
CLASSES = [(700, 3), (64, 5), (130, 4, 3), (70, 2, 5, 5), (40, 80), (3, 1040), (2, 2500), (24, 70, 4)]
ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "dice_bce": ops.dice_bce_loss,
    "dice_bce_squared_skip": partial(ops.dice_bce_loss, squared_pred=True, empty="skip"),
    "dice_bce_jaccard_zero": partial(ops.dice_bce_loss, jaccard=True, empty="zero", smooth_nr=0.5, smooth_dr=1.0),
    "dice_bce_batch": partial(ops.dice_bce_loss, batch=True),
    "bce": partial(ops.dice_bce_loss, dice_weight=0.0),
    "focal": ops.focal_loss,
    "focal_any": partial(ops.focal_loss, gamma=1.5, alpha=None),
    "mse": ops.mse_loss,
    "smooth_l1": partial(ops.smooth_l1_loss, beta=0.7),
}
OF_CLASSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": ops.cross_entropy,
    "cross_entropy_smoothed": partial(ops.cross_entropy, label_smoothing=0.1),
    "focal": partial(ops.focal_loss, activation="softmax", alpha=None),
    "focal_any": partial(ops.focal_loss, activation="softmax", alpha=None, gamma=0.5),
    "dice_ce": ops.dice_ce_loss,
    "dice_ce_squared_skip": partial(ops.dice_ce_loss, squared_pred=True, empty="skip", label_smoothing=0.1),
    "dice_ce_jaccard_zero": partial(ops.dice_ce_loss, jaccard=True, empty="zero", include_background=False),
}
# Samples fill lanes, classes do, or neither does; with and without contiguous memory.
DICE_CE = [(70, 5, 3), (130, 3), (40, 80), (2, 300, 9), (3, 1040), (6, 70, 4), (2, 3, 2, 2)]


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The tensor contiguous, with the channels before the samples, or with the channels last."""
    if layout == "turned":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else tensor.contiguous()


def _check(loss: Callable[..., Tensor], x: Tensor, *others: Any, **options: Any) -> None:
    doubled = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in options.items()}
    expected = loss_and_gradient(lambda x: loss(x, *others, **doubled), x.double())
    ours = loss_and_gradient(lambda x: loss(x, *others, **options, backend="cpp"), x)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("layout", ["contiguous", "turned", "channels_last"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_planes_of_few_pixels_are_the_reference(name, layout):
    generator = torch.Generator().manual_seed(0)
    for shape in PLANES:
        x = _laid_out(4 * torch.randn(shape, generator=generator), layout)
        target = _laid_out(torch.randint(2, shape, generator=generator, dtype=torch.uint8), layout)
        mask = torch.rand(shape, generator=generator) > 0.3
        weight = {"weight": torch.rand(shape[1], generator=generator)} if "dice" in name or "focal" in name else {}
        if "bce" in name:
            weight["pos_weight"] = torch.rand(shape[1], generator=generator) + 0.5
        for reduction in ("none", "mean", "sum"):
            _check(ELEMENTWISE[name], x, target, reduction=reduction)
            _check(ELEMENTWISE[name], x, target, reduction=reduction, mask=mask, **weight)


@pytest.mark.parametrize("layout", ["contiguous", "turned", "channels_last"])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_classes_of_few_pixels_are_the_reference(name, layout):
    generator = torch.Generator().manual_seed(0)
    for shape in CLASSES:
        x = _laid_out(4 * torch.randn(shape, generator=generator), layout)
        target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
        target[::7] = -100
        weight = torch.rand(shape[1], generator=generator)
        one = "sample" if name.startswith("cross") and len(shape) > 2 else "none"
        for reduction in (one, "mean", "sum"):
            _check(OF_CLASSES[name], x, target, reduction=reduction)
            _check(OF_CLASSES[name], x, target.short(), reduction=reduction, weight=weight)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_dice_ce_of_few_pixels_under_every_target_and_mask(layout):
    generator = torch.Generator().manual_seed(1)
    for shape in DICE_CE:
        x = _laid_out(4 * torch.randn(shape, generator=generator), layout)
        flat = (shape[0], *shape[2:])
        classes = torch.randint(shape[1], flat, generator=generator)
        soft = _laid_out(torch.randn(shape, generator=generator).softmax(1), layout)
        mask = torch.rand(flat, generator=generator) > 0.4
        weight = torch.rand(shape[1], generator=generator)
        for target in (classes, soft):
            for options in ({}, {"mask": mask}, {"mask": mask[(slice(None), *(0,) * (len(flat) - 1))]}):
                for squared in (False, True):
                    given = options | {"squared_pred": squared, "label_smoothing": 0.2, "weight": weight}
                    _check(ops.dice_ce_loss, x, target, reduction="none", **given)
                    _check(ops.dice_ce_loss, x, target, **options, squared_pred=squared)
                    _check(ops.dice_ce_loss, x, target, batch=True, **given)


@pytest.mark.parametrize("batch", [False, True])
def test_counts_of_few_pixels_are_the_reference(batch):
    generator = torch.Generator().manual_seed(2)
    for shape in DICE_CE:
        x = torch.randint(-3, 4, shape, generator=generator).float()  # many equal maxima
        x[1, 1] = float("inf")
        target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
        target[0] = -100
        found = {
            backend: ops.dice_ce_loss(x, target, batch=batch, return_counts=True, backend=backend)[1]
            for backend in ("cpp", "reference")
        }
        for ours, expected in zip(found["cpp"], found["reference"], strict=True):
            assert torch.equal(ours, expected), shape


def test_tversky_of_few_pixels_is_the_reference():
    generator = torch.Generator().manual_seed(3)
    for shape in DICE_CE:
        x = 4 * torch.randn(shape, generator=generator)
        target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
        _check(partial(ops.tversky_loss, activation="softmax"), x, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_logits_of_few_pixels(dtype):
    x, target = torch.randn(300, 3).to(dtype), torch.randint(2, (300, 3))
    rows, classes = torch.randn(40, 100).to(dtype), torch.randint(100, (40,))
    for loss, logits, of in (
        (ops.dice_bce_loss, x, target),
        (ops.focal_loss, x, target),
        (ops.mse_loss, x, target),
        (ops.cross_entropy, x, target[:, 0]),
        (ops.cross_entropy, rows, classes),
        (ops.dice_ce_loss, x, target[:, 0]),
        (ops.dice_ce_loss, rows, classes),
    ):
        value, gradient = loss_and_gradient(lambda x, loss=loss, of=of: loss(x, of, reduction="none"), logits)
        exact = loss_and_gradient(lambda x, loss=loss, of=of: loss(x, of, reduction="none"), logits.double())
        torch.testing.assert_close(value.double(), exact[0], rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(gradient, exact[1].to(dtype), rtol=2e-2, atol=1e-6)


@pytest.mark.long
def test_bits_do_not_depend_on_the_thread_count():
    threads = torch.get_num_threads()
    x, t = torch.randn(9000, 4), torch.randint(2, (9000, 4))
    rows, classes = torch.randn(90, 2000), torch.randint(2000, (90,))
    runs: dict[str, list[tuple[Tensor, ...]]] = {}
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            for name, loss in ELEMENTWISE.items():
                for how in ("mean", "none"):
                    run = loss_and_gradient(lambda x, loss=loss, how=how: loss(x, t, reduction=how), x)
                    runs.setdefault(f"{name} {how}", []).append(run)
            for name, loss in OF_CLASSES.items():
                for logits, of in ((x, t[:, 0]), (rows, classes)):
                    run = loss_and_gradient(lambda x, loss=loss, of=of: loss(x, of, reduction="none"), logits)
                    runs.setdefault(f"{name} {tuple(logits.shape)}", []).append(run)
    finally:
        torch.set_num_threads(threads)
    for same in runs.values():
        assert_bit_equal(same)


def test_what_is_not_finite_stays_in_its_sample():
    x, t = torch.randn(100, 3), torch.randint(2, (100, 3))
    rows, classes = torch.randn(20, 200), torch.randint(1, 200, (20,))
    x[7, 0], rows[7, 0] = float("nan"), float("nan")
    for loss, logits, of in (
        (ops.dice_bce_loss, x, t),
        (ops.focal_loss, x, t),
        (ops.mse_loss, x, t),
        (ops.cross_entropy, x, t[:, 0]),
        (ops.cross_entropy, rows, classes),
        (ops.dice_ce_loss, x, t[:, 0]),
        (ops.dice_ce_loss, rows, classes),
    ):
        value, gradient = loss_and_gradient(lambda x, loss=loss, of=of: loss(x, of, reduction="none"), logits)
        rest = torch.arange(len(logits)) != 7
        assert value[7].isnan().any()
        assert gradient[7].isnan().any()
        assert value[rest].isfinite().all()
        assert gradient[rest].isfinite().all()


def test_a_class_number_that_does_not_exist_raises():
    for shape in ((100, 3), (20, 200)):
        target = torch.zeros(shape[0], dtype=torch.long)
        target[5] = shape[1]
        for loss in (ops.cross_entropy, ops.dice_ce_loss, partial(ops.focal_loss, activation="softmax", alpha=None)):
            with pytest.raises(ValueError, match="`target` "):
                loss(torch.randn(shape), target)
