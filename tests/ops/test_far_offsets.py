"""Planes of more than 2^31 elements, made of a few bytes by strides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.asserts import assert_bit_equal
from helpers.op_backends import dirty_memory, needs_cpp, needs_triton

from fastmtl import ops
from fastmtl.ops.core import backends, planes
from fastmtl.ops.losses import dice_bce_backends

pytestmark = [*dirty_memory, pytest.mark.unchecked]


def far_bytes(count: int) -> torch.Tensor:
    """uint8 zeros; only touched pages use memory."""
    return torch.from_numpy(np.zeros(count, dtype=np.uint8))


@needs_cpp
@pytest.mark.slow
def test_a_plane_of_more_than_two_to_the_31_elements():
    number = 2**31 + 1000
    t, valid = far_bytes(number), far_bytes(number)
    t[-64:], valid[-128:], valid[:64] = 1, 1, 1
    x = torch.zeros(1, 1, 1).expand(1, 1, number)
    found = ops.overlap_sums(x, t.view(1, 1, -1))
    expected = [32.0, number / 2, 64.0, number * 0.6931471805599453, float(number)]
    torch.testing.assert_close([part.item() for part in found], expected, rtol=1e-6, atol=0)
    found = ops.overlap_sums(x, t.view(1, 1, -1), mask=valid.view(1, 1, -1))
    torch.testing.assert_close(
        [part.item() for part in found], [32.0, 96.0, 64.0, 192 * 0.6931471805599453, 192.0], rtol=1e-6, atol=0
    )


@needs_cpp
def test_gradients_past_two_to_the_31_elements():
    """Written through strides that reach past 2^31 elements, in storage with only its touched pages in memory."""
    far, x, t = 2**31 + 4096, torch.randn(2, 1, 64), torch.rand(2, 1, 64)
    storage = torch.from_numpy(np.zeros(far + 64, dtype=np.uint16).view(np.float16))
    gradient = storage.as_strided((2, 1, 64), (far, 64, 1))
    slopes, one = torch.rand(3, 2, 1), torch.ones(2, 1)
    backends.extension().dice_bce_backward(
        (1, 2, 1, 64), *map(planes.describe, (x, t, None)), 0, False, planes.describe(one.unsqueeze(-1)),
        slopes.data_ptr(), planes.describe(gradient), 1,
    )  # fmt: skip
    expected = dice_bce_backends.cpp_gradient(one, dice_bce_backends.Tensors(x, t, None, None, None), slopes, False, 1)
    torch.testing.assert_close(gradient, expected.half(), rtol=1e-3, atol=1e-6)


@needs_triton
def test_triton_reads_past_two_to_the_31_elements():
    far = 2**31 + 4096
    storage = far_bytes(far + 64)
    storage[far:] = 1
    t, x = storage.as_strided((2, 1, 64), (far, 64, 1)), torch.randn(2, 1, 64)
    expected = ops.overlap_sums(x, t.contiguous(), backend="triton")
    assert_bit_equal([tuple(ops.overlap_sums(x, t, backend="triton")), tuple(expected)])


@needs_cpp
@pytest.mark.parametrize("name", ["dice_bce", "dice_ce", "mse", "nearest", "area"])
def test_targets_past_two_to_the_31_elements(name):
    far, x = 2**31 + 4096, torch.randn(2, 1, 8, 8)
    storage = far_bytes(far + 64)
    storage[far:] = 1
    t = storage.as_strided((2, 1, 8, 8), (far, 64, 8, 1))

    def loss(t: torch.Tensor) -> torch.Tensor:
        if name == "dice_ce":
            return ops.dice_ce_loss(torch.cat([x, -x], 1), t, reduction="none")
        if name in ("nearest", "area"):
            return ops.deep_supervision_loss([x, x[..., ::2, ::2]], t, downsample=name, reduction="none")
        return (ops.mse_loss if name == "mse" else ops.dice_bce_loss)(x, t, reduction="none")

    assert_bit_equal([(loss(t),), (loss(t.contiguous()),)])
