"""Softmax losses with few classes, which the Triton kernels keep in registers, against those with one class more, which
they read in tiles; classes as neighbours in memory; the cuts of NT-Xent."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.asserts import assert_bit_equal, loss_and_gradient
from helpers.classes import class_map, pixel_mask
from helpers.inputs import layout
from helpers.op_backends import dirty_memory, needs_triton

from fastmtl import ops

pytestmark = [*dirty_memory, needs_triton]
LAST = 32  # the most classes that registers hold

LOSSES = {
    "dice_ce": partial(ops.dice_ce_loss, squared_pred=True, label_smoothing=0.1),
    "dice": partial(ops.dice_ce_loss, ce_weight=0.0, dice_weight=1.0, reduction="none"),
    "cross_entropy": ops.cross_entropy,
    "focal": partial(ops.focal_loss, activation="softmax", gamma=1.5),
}


def _check(loss, x, t, **options) -> None:
    doubled = {k: v.double() if k == "weight" else v for k, v in options.items()}
    found = loss_and_gradient(lambda x: loss(x, t, backend="triton", **options), x)
    exact = loss_and_gradient(lambda x: loss(x, t, backend="reference", **doubled), x.double())
    torch.testing.assert_close(found[0].double(), exact[0], rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(found[1].double(), exact[1], rtol=1e-5, atol=3e-6 * exact[1].abs().max().item())


@pytest.mark.parametrize("classes", [LAST, LAST + 1])
@pytest.mark.parametrize("name", LOSSES)
def test_last_count_in_registers_and_first_beyond(classes, name):
    x, t = class_map((2, classes, 5, 9), ignored=250)
    t[0, 0, 0], t[1, 4, 8] = 0, classes - 1
    loss = LOSSES[name]
    _check(loss, x, t, ignore_index=250)
    _check(loss, x, t.clamp(max=classes - 1), weight=torch.rand(classes), mask=pixel_mask("pixel", x.shape))


@pytest.mark.parametrize("classes", [LAST, LAST + 1])
def test_counts_on_both_sides(classes):
    x, t = class_map((2, classes, 6, 7))
    found, expected = (ops.dice_ce_loss(x, t, return_counts=True, backend=name)[1] for name in ("triton", "reference"))
    for ours, exact in zip(found, expected, strict=True):
        assert ours.tolist() == exact.tolist()


@pytest.mark.parametrize("classes", [LAST, LAST + 1])
def test_probabilities_on_both_sides(classes):
    x, _ = class_map((2, classes, 4, 5))
    _check(LOSSES["dice_ce"], x, torch.randn(x.shape).softmax(1))


@pytest.mark.parametrize("classes", [2, 3, 8, 21])
@pytest.mark.parametrize("name", LOSSES)
def test_neighbouring_classes_have_the_values_of_distant_ones(classes, name):
    x, t = class_map((2, classes, 11, 13))
    mask = torch.tensor([True, False])
    results = [
        loss_and_gradient(lambda x: LOSSES[name](x, t, mask=mask, backend="triton"), layout(x, memory))
        for memory in ("contiguous", "channels_last")
    ]
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-7)
    assert results[1][1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("gap", [0.0, 0.5, 3.0, 9.0, 17.0, 40.0])
@pytest.mark.parametrize("right", [True, False])
def test_every_size_of_loss_keeps_its_digits(gap, right):
    """Eight pixels share one logarithm."""
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)) / 8
    t = torch.full((1, 64), 2)
    x[:, 2] += gap if right else -gap
    found = ops.cross_entropy(x, t, backend="triton")
    others = x.double()[:, [0, 1, 3, 4]].logsumexp(1)
    exact = torch.log1p((others - x[:, 2].double()).exp()).mean()  # log_softmax would round it to 0
    torch.testing.assert_close(found.double(), exact, rtol=3e-6, atol=0)


@pytest.mark.parametrize("loss", ["dice_ce", "focal"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_an_invalid_class_number_makes_its_sample_nan(loss, dtype):
    x, t = class_map((3, 4, 9, 8), target_dtype=dtype)
    clean = LOSSES[loss](x, t, reduction="none", backend="triton")
    t[1, 4, 4] = 4 if dtype == torch.uint8 else -7
    found = LOSSES[loss](x, t, reduction="none", backend="triton")
    assert found.isnan().tolist() == [False, True, False]
    assert_bit_equal([(found[::2],), (clean[::2],)])


@pytest.mark.parametrize("rows", [64, 128, 1024, 8448, 20000])
@pytest.mark.parametrize("tiles", [1, 4])
def test_the_parts_of_nt_xent_cover_each_column_once(rows, tiles):
    nt_xent_triton = pytest.importorskip("fastmtl.kernels.nt_xent_triton")
    padded = -(-rows // nt_xent_triton.ROWS) * nt_xent_triton.ROWS
    splits, columns = nt_xent_triton._splits(padded, tiles)
    assert columns % nt_xent_triton.ROWS == 0
    assert (splits - 1) * columns < padded <= splits * columns
    assert splits == 1 or padded // nt_xent_triton.ROWS * tiles * splits <= 132
