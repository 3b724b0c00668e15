"""`ops.deep_supervision_loss` of a softmax: `dice_ce_loss` of each head, ignored pixels, heads that are off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.asserts import assert_bit_equal
from helpers.heads import HOW, values_and_gradients
from helpers.inputs import generator
from helpers.op_backends import dirty_memory
from torch.nn import functional as F

from fastmtl import ops

pytestmark = dirty_memory


@pytest.mark.parametrize("downsample", HOW)
def test_softmax_is_cross_entropy_and_dice_of_each_head(downsample):
    source = generator(5)
    heads = [torch.randn(2, 4, 24 // s, 16 // s, generator=source, dtype=torch.float64) for s in (1, 2, 8)]
    target = torch.randint(0, 4, (2, 24, 16), generator=source, dtype=torch.uint8)
    expected = 0.0
    for x, weight in zip(heads, (1.0, 0.5, 2.0), strict=True):
        one_hot = F.one_hot(target.long(), 4).movedim(-1, 1).double()
        if downsample == "area":
            t = F.interpolate(one_hot, x.shape[2:], mode="area")
        else:
            pick = F.max_pool2d if downsample == "max" else lambda t, s: t[..., ::s, ::s]
            index = pick(target.double().unsqueeze(1), 24 // x.shape[2]).squeeze(1).long()
            t = F.one_hot(index, 4).movedim(-1, 1).double()
        p = x.softmax(1)
        dice = 1 - (2 * (p * t).sum((2, 3)) + 1e-5) / ((p + t).sum((2, 3)) + 1e-5)
        expected += weight * (0.4 * F.cross_entropy(x, t) + 0.6 * dice.mean())
    options: dict[str, Any] = {"pointwise_weight": 0.4, "dice_weight": 0.6, "activation": "softmax"}
    found = ops.deep_supervision_loss(heads, target, weights=[1, 0.5, 2], downsample=downsample, **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("downsample", HOW)
@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax_head_of_weight_0_is_switched_off(downsample, moving, masked):
    source = generator(7)
    heads = [torch.randn(2, 3, 12 // s, 8 // s, generator=source) for s in (1, 2, 4)]
    target = torch.randint(0, 3, (2, 12, 8), generator=source)
    mask = torch.rand(2, 12, 8, generator=source) < 0.7 if masked else None
    weights = torch.tensor([1.0, 0.0, 0.5]) if moving else [1.0, 0.0, 0.5]
    options: dict[str, Any] = {"activation": "softmax", "downsample": downsample, "mask": mask}
    rest = values_and_gradients(
        heads[::2], lambda xs: ops.deep_supervision_loss(xs, target, weights=weights[::2], **options)
    )
    heads[1].fill_(float("nan"))
    loss, *gradients = values_and_gradients(
        heads, lambda xs: ops.deep_supervision_loss(xs, target, weights=weights, **options)
    )
    assert_bit_equal([rest, [loss, *gradients[::2]]])
    assert (gradients[1] == 0).all()
