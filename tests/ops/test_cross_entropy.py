"""`ops.cross_entropy` against torch's, and the softmax half of `ops.overlap_sums` against its definition."""

from __future__ import annotations

import pytest
import torch
from helpers.asserts import loss_and_gradient
from helpers.classes import class_map, pixel_mask
from helpers.op_backends import BACKENDS, dirty_memory
from torch.nn import functional as F

from fastmtl import losses, ops
from fastmtl.reference.overlap import softmax_overlap

pytestmark = dirty_memory


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(7, 5), (33, 70), (2, 3, 9, 8), (2, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_is_torchs(backend, shape, reduction):
    if backend == "triton" and reduction == "none" and shape[0] > 9:
        pytest.skip("the interpreter takes a second for each sample")
    x, t = class_map(shape, target_dtype=torch.int64, ignored=-100)
    if reduction == "none" and len(shape) > 2:
        with pytest.raises(ValueError, match=r"`reduction` 'none' would be a loss for every pixel .* 'sample'"):
            ops.cross_entropy(x, t, reduction=reduction)
        return
    for options in ({}, {"weight": torch.rand(shape[1]), "label_smoothing": 0.2}):
        doubled = {k: v.double() if torch.is_tensor(v) else v for k, v in options.items()}
        expected = loss_and_gradient(lambda x: F.cross_entropy(x, t, reduction=reduction, **doubled), x.double())
        ours = loss_and_gradient(
            lambda x: ops.cross_entropy(x, t.short(), reduction=reduction, backend=backend, **options), x
        )
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=3e-6, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_are_torchs(backend):
    x, _ = class_map((3, 4, 5))
    t, weight = torch.randn(3, 4, 5).softmax(1), torch.rand(4)
    expected = loss_and_gradient(lambda x: F.cross_entropy(x, t, weight=weight, label_smoothing=0.1), x)
    ours = loss_and_gradient(lambda x: ops.cross_entropy(x, t, weight=weight, label_smoothing=0.1, backend=backend), x)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_without_a_label_take_part_in_nothing(backend):
    x, t = class_map((8, 4))
    has_label = torch.tensor([True, False, True, True, False, True, False, True])
    x[1], t[6] = float("nan"), 77
    value, gradient = loss_and_gradient(lambda x: ops.cross_entropy(x, t, mask=has_label, backend=backend), x)
    torch.testing.assert_close(value, F.cross_entropy(x[has_label], t[has_label].long()))
    assert (gradient[~has_label] == 0).all()
    each = ops.cross_entropy(x, t, mask=has_label, reduction="none", backend=backend)
    torch.testing.assert_close(each[has_label], F.cross_entropy(x[has_label], t[has_label].long(), reduction="none"))
    assert (each[~has_label] == 0).all()
    nobody = torch.zeros(8, dtype=torch.uint8)
    assert ops.cross_entropy(x, t, mask=nobody, backend=backend).item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_loss_a_sample(backend):
    x, t = class_map((3, 4, 6, 5), ignored=200)
    weight = torch.rand(4)
    found = ops.cross_entropy(x, t, weight=weight, ignore_index=200, reduction="sample", backend=backend)
    expected = [F.cross_entropy(x[[b]], t[[b]].long(), weight=weight, ignore_index=200) for b in range(3)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_bad_reduction_and_module():
    x, t = class_map((3, 4))
    with pytest.raises(ValueError, match="`reduction` must be one of 'mean', 'sum', 'sample', 'none'; got 'total'"):
        ops.cross_entropy(x, t, reduction="total")
    weight, mask = torch.rand(4), torch.tensor([True, True, False])
    loss = losses.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    assert torch.equal(loss(x, t, mask), ops.cross_entropy(x, t, weight=weight, label_smoothing=0.1, mask=mask))
    assert not list(loss.parameters())
    assert loss.double().weight.dtype == torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 40, 6)], ids=str)
def test_softmax_overlap_sums(backend, squared, soft, shape):
    x, t = class_map(shape, target_dtype=torch.int32, ignored=-1)
    t = torch.rand_like(x) if soft else t
    valid, slopes = pixel_mask("pixel", shape), torch.randn(5, *shape[:2])
    slopes[[2, 4]] = 0  # the sums of the target and the number of elements do not depend on the logits

    def ours(x):
        sums = ops.overlap_sums(
            x, t, activation="softmax", mask=valid, ignore_index=-1, squared_pred=squared, backend=backend
        )
        return torch.stack(sums)

    def exact(x):
        return torch.stack(softmax_overlap(x, t, valid, -1, squared))

    expected = loss_and_gradient(exact, x.double(), slopes.double())
    for a, b in zip(loss_and_gradient(ours, x, slopes), expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=5e-6, atol=5e-6)
    torch.library.opcheck(
        torch.ops.fastmtl.softmax_overlap.default,
        (x.requires_grad_(), t if soft else t.unsqueeze(1), valid.unsqueeze(1), -1, squared, "auto"),
    )


def test_softmax_overlap_arguments():
    x, t = class_map((2, 3, 4))
    for options, message in (
        ({"pos_weight": 2.0}, "`pos_weight` is for activation='sigmoid'"),
        ({"mask": torch.ones(4).bool()}, r"`mask` must be \[2\] or broadcastable to \[2, 4\]"),
        ({"backend": "gpu"}, "`backend` must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.overlap_sums(x, t, activation="softmax", **options)
    with pytest.raises(TypeError, match="`ignore_index` must be an integer; got str"):
        ops.overlap_sums(x, t, activation="softmax", ignore_index="none")
    with pytest.raises(ValueError, match="`target` must be class numbers"):
        ops.overlap_sums(x, t[:, :2], activation="softmax")
