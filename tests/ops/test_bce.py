"""`ops.bce_with_logits` equals torch's, for targets of any dtype and with missing labels."""

from __future__ import annotations

import pytest
import torch
from helpers.asserts import loss_and_gradient
from helpers.inputs import segmentation
from helpers.op_backends import BACKENDS, dirty_memory
from torch.nn import functional as F

from fastmtl import ops

pytestmark = dirty_memory


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_bce_is_torchs(backend, reduction):
    for shape in ((7,), (5, 3), (2, 3, 4), (2, 3, 4, 5), (1,), ()):
        x, t = torch.randn(shape) * 3, torch.rand(shape)
        for target in (t, (t < 0.4).to(torch.uint8), t < 0.4, (t < 0.4).long()):
            found = loss_and_gradient(lambda x: ops.bce_with_logits(x, target, reduction=reduction, backend=backend), x)
            expected = loss_and_gradient(
                lambda x: F.binary_cross_entropy_with_logits(x, target.float(), reduction=reduction), x
            )
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bce_weights_are_torchs(reduction):
    x, t = segmentation((2, 3, 4, 5), torch.float32, torch.float32)
    pos_weight = torch.rand(3, 1, 1) * 3
    for weight in (None, torch.tensor(2.0), torch.rand(3, 1, 1), torch.rand(2, 3, 1, 1), torch.rand(4, 5)):
        options = {"weight": weight, "pos_weight": pos_weight, "reduction": reduction}
        found = loss_and_gradient(lambda x, o=options: ops.bce_with_logits(x, t, **o), x)
        expected = loss_and_gradient(lambda x, o=options: F.binary_cross_entropy_with_logits(x, t, **o), x)
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bce_with_missing_labels(backend):
    x, t = torch.randn(6, 4), torch.rand(6, 4)
    for has_label in (torch.rand(6) < 0.6, torch.rand(6, 4) < 0.6):
        valid = has_label.view(6, -1).expand(6, 4)
        expected = loss_and_gradient(lambda x: F.binary_cross_entropy_with_logits(x[valid], t[valid]), x)
        holes = torch.where(valid, t, float("nan"))
        found = loss_and_gradient(lambda x: ops.bce_with_logits(x, holes, mask=has_label, backend=backend), x)
        torch.testing.assert_close(found, expected)
        weight = torch.rand(4)
        found = ops.bce_with_logits(x, holes, weight, mask=has_label, reduction="sum", backend=backend)
        elementwise = F.binary_cross_entropy_with_logits(x, t, weight, reduction="none")
        torch.testing.assert_close(found, elementwise[valid].sum())
        found = ops.bce_with_logits(x, holes, weight, mask=has_label, reduction="none", backend=backend)
        torch.testing.assert_close(found, torch.where(valid, elementwise, 0.0))
    off = loss_and_gradient(lambda x: ops.bce_with_logits(x, t, mask=torch.zeros(6).bool(), backend=backend), x)
    assert off[0].item() == 0
    assert (off[1] == 0).all()


@pytest.mark.long
def test_bce_of_a_few_outputs_a_sample_is_one_plane():
    """The flattening must not be visible: not in channel weights, other memory orders, vmap or the compiler."""
    x, t = torch.randn(40, 3, 2), torch.rand(40, 3, 2)
    turned = t.transpose(0, 1).contiguous().transpose(0, 1)
    for pos_weight in (None, 2.0, torch.tensor([3.0]), torch.rand(3, 1)):
        positive = None if pos_weight is None else torch.as_tensor(pos_weight)
        for target in (t, turned):
            found = loss_and_gradient(lambda x, t=target, w=pos_weight: ops.bce_with_logits(x, t, pos_weight=w), x)
            expected = loss_and_gradient(
                lambda x, w=positive: F.binary_cross_entropy_with_logits(x, t, pos_weight=w), x
            )
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)
    tasks = torch.stack([x, 2 * x], 1)
    each = torch.stack([F.binary_cross_entropy_with_logits(tasks[:, k], t) for k in range(2)])
    torch.testing.assert_close(torch.vmap(lambda x: ops.bce_with_logits(x, t), in_dims=1)(tasks), each)
    compiled = torch.compile(lambda x: ops.bce_with_logits(x, t), fullgraph=True, backend="aot_eager", dynamic=True)
    expected = loss_and_gradient(lambda x: F.binary_cross_entropy_with_logits(x, t), x)
    torch.testing.assert_close(loss_and_gradient(compiled, x), expected, rtol=2e-6, atol=1e-6)
