"""`ops.pairwise_mask_cost`: the costs of transformers' Mask2Former, and the losses of single pairs."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.asserts import assert_within_budget
from helpers.inputs import generator
from helpers.parity import transformers_mask2former
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fastmtl import ops


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.bool, torch.float32], ids=str)
def test_pairwise_costs_equal_transformers(dtype, target_dtype):
    modeling, source = transformers_mask2former(), generator(0)
    logits = (torch.randn(2, 6, 300, generator=source) * 5).to(dtype)
    targets = torch.rand(2, 4, 300, generator=source)
    targets = targets if target_dtype.is_floating_point else (targets < 0.3).to(target_dtype)
    found = ops.pairwise_mask_cost(logits, targets, bce_weight=2.0, dice_weight=3.0)

    def peer(dtype: torch.dtype) -> Tensor:
        pairs = zip(logits.to(dtype), targets.to(dtype), strict=True)
        return torch.stack(
            [
                2 * modeling.pair_wise_sigmoid_cross_entropy_loss(x, t) + 3 * modeling.pair_wise_dice_loss(x, t)
                for x, t in pairs
            ]
        )

    if dtype == torch.float64:
        torch.testing.assert_close(found, peer(dtype), rtol=1e-12, atol=1e-12)
    else:
        assert found.dtype == torch.float32
        assert_within_budget(found, peer(dtype), peer(torch.float64), dtype)


def test_pairwise_diagonal_is_the_loss_of_pairs():
    logits = torch.randn(1, 3, 50, generator=generator(1), dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(1, 3, 50, generator=generator(2)) < 0.5).double()
    bce = binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(2)
    found = ops.pairwise_mask_cost(logits, targets, dice_weight=0.0).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found, bce)
    found = ops.pairwise_mask_cost(logits, targets, bce_weight=0.0).diagonal(dim1=1, dim2=2)
    dice = ops.dice_bce_loss(
        logits, targets, bce_weight=0.0, dice_weight=1.0, smooth_nr=1.0, smooth_dr=1.0, reduction="none"
    )
    torch.testing.assert_close(found, dice)
    torch.autograd.gradcheck(lambda x: ops.pairwise_mask_cost(x, targets), logits)


def test_pairwise_costs_of_large_and_infinite_logits():
    logits = torch.tensor([[[80.0, -80.0], [math.inf, 0.0], [0.0, 0.0]]])
    costs = ops.pairwise_mask_cost(logits, torch.tensor([[[1, 0], [0, 1]]], dtype=torch.uint8))[0]
    torch.testing.assert_close(costs[0], torch.tensor([0.0, 80.0 + 2 / 3]))
    assert costs[1].isnan().all()
    assert costs[2].isfinite().all()


_AT = torch.zeros(2, 3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.pairwise_mask_cost(_AT, _AT[:1]), r"`targets` \[B, T, N\]"),
        (lambda: ops.pairwise_mask_cost(_AT, _AT[..., :1]), r"`targets` \[B, T, N\]"),
        (lambda: ops.pairwise_mask_cost(_AT[..., :0], _AT[..., :0]), "N of 1 or more"),
        (lambda: ops.pairwise_mask_cost(_AT.long(), _AT), "`mask_logits` must be float"),
        (lambda: ops.pairwise_mask_cost(_AT, _AT, dice_weight=math.nan), "`dice_weight` must be finite"),
        (lambda: ops.pairwise_mask_cost(_AT, _AT.to("meta")), "`targets` must be on cpu"),
    ],
)
def test_arguments_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
