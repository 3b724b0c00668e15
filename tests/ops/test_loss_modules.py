"""The losses as modules are the ops: settings at construction, buffers for weights, no parameters."""

from __future__ import annotations

import pytest
import torch
from helpers.heads import pyramid
from helpers.inputs import segmentation, views

from fastmtl import losses, ops

X, T = segmentation((2, 3, 8, 8))
Y, W = T.long().sum(1).clamp(max=2), torch.tensor([0.2, 0.7, 1.1])
HAS_LABEL = torch.tensor([True, False])
HEADS, TARGET = pyramid((8, 8), (1, 2))
CASES = [
    (losses.DiceBCELoss, ops.dice_bce_loss, {"bce_weight": 0.6, "weight": W, "empty": "skip"}, (X, T)),
    (losses.DiceCELoss, ops.dice_ce_loss, {"ce_weight": 0.6, "weight": W, "empty": "skip"}, (X, Y)),
    (losses.CrossEntropyLoss, ops.cross_entropy, {"weight": W, "label_smoothing": 0.1}, (X, Y)),
    (losses.FocalLoss, ops.focal_loss, {"gamma": 1.5, "weight": W}, (X, T)),
    (losses.TverskyLoss, ops.tversky_loss, {"alpha": 0.3, "beta": 0.7, "weight": W}, (X, T)),
    (losses.BCEWithLogitsLoss, ops.bce_with_logits, {"pos_weight": W}, (X, T)),
    (losses.MSELoss, ops.mse_loss, {"reduction": "none"}, (X, T)),
    (losses.L1Loss, ops.l1_loss, {}, (X, T)),
    (losses.SmoothL1Loss, ops.smooth_l1_loss, {"beta": 0.2}, (X, T)),
    (losses.NTXentLoss, ops.nt_xent_loss, {"temperature": 0.3}, views(2, 5)),
    (losses.DeepSupervisionLoss, ops.deep_supervision_loss, {"downsample": "max", "dice_weight": 0.7}, (HEADS, TARGET)),
]


@pytest.mark.parametrize(("module", "op", "settings", "arguments"), CASES, ids=[case[0].__name__ for case in CASES])
def test_module_is_the_op(module, op, settings, arguments):
    loss = module(**settings)
    assert torch.equal(loss(*arguments), op(*arguments, **settings))
    assert torch.equal(loss(*arguments, HAS_LABEL), op(*arguments, mask=HAS_LABEL, **settings))
    assert not list(loss.parameters())
    for name, value in settings.items():
        if isinstance(value, torch.Tensor):
            assert getattr(loss.double(), name).dtype == torch.float64
        else:
            assert f"{name}={value!r}" in repr(loss)


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="`smooth` is not a setting"):
        losses.DiceCELoss(smooth=1.0)


def test_weights_of_heads_can_move():
    heads, target = pyramid((8, 8), (1, 2))
    loss = losses.DeepSupervisionLoss(weights=torch.tensor([1.0, 0.5]))
    assert torch.equal(loss(heads, target), ops.deep_supervision_loss(heads, target, weights=[1.0, 0.5]))
    loss.weights[1] = 0.0
    heads[1].fill_(float("nan"))
    assert loss(heads, target).isfinite()
