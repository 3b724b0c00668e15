"""Forward-mode derivatives of every loss: never lost, whichever way they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.inputs import class_numbers, segmentation
from torch import Tensor
from torch.autograd import forward_ad

from fastmtl import ops

# torch prepares its own forward-mode formulas with what it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

SHAPE = (2, 3, 4, 6)
X, T = segmentation(SHAPE, torch.float64)
Y = class_numbers(SHAPE)
TANGENT = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "dice_bce": lambda x: ops.dice_bce_loss(x, T, reduction="none"),
    "dice_ce": lambda x: ops.dice_ce_loss(x, Y, reduction="none"),
    "cross_entropy": lambda x: ops.cross_entropy(x, Y),
    "sigmoid_focal": lambda x: ops.focal_loss(x, T),
    "softmax_focal": lambda x: ops.focal_loss(x, Y, activation="softmax"),
    "tversky": lambda x: ops.tversky_loss(x, T),
    "mse": lambda x: ops.mse_loss(x, T),
    "nt_xent": lambda x: ops.nt_xent_loss(x[0].flatten(1), x[1].flatten(1)),
    "deep_supervision": lambda x: ops.deep_supervision_loss([x, x[..., ::2].contiguous()], T, reduction="none"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_directional_derivative(name):
    loss = LOSSES[name]
    expected = torch.autograd.functional.jvp(loss, X, TANGENT)[1]  # twice backward
    torch.testing.assert_close(torch.func.jvp(loss, (X,), (TANGENT,))[1], expected)
    for x in (X, X.clone().requires_grad_()):
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, TANGENT))).tangent
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_forward_over_reverse(name):
    """What `torch.func.hessian` does; here one product with the Hessian."""

    def summed(x):
        return LOSSES[name](x).sum()

    found = torch.func.jvp(torch.func.grad(summed), (X,), (TANGENT,))[1]
    torch.testing.assert_close(found, torch.autograd.functional.hvp(summed, X, TANGENT)[1])
