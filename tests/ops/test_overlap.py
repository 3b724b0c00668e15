"""`ops.overlap_sums` of a sigmoid, optional counts, and common properties of the losses on these sums."""

from __future__ import annotations

import pytest
import torch
from helpers.asserts import assert_bit_equal, loss_and_gradient
from helpers.inputs import MASKS, TARGET_DTYPES, laid_out, mask, segmentation
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmtl import ops

pytestmark = dirty_memory


def sums(x, t, slopes=None, **options):
    """I, P, T, entropy and elements [5, B, C], or with slopes [3, B, C] those of I, P and the entropy, added up."""
    found = ops.overlap_sums(x, t, **options)
    if slopes is None:
        return torch.stack(found)
    return (torch.stack([found.intersection, found.prediction, found.entropy]) * slopes.to(found[0].dtype)).sum()


@pytest.mark.parametrize("backend", KERNELS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_overlap_sums_match_the_definition(backend, data):
    draw = data.draw
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 19), max_size=3)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    x, t = segmentation(shape, dtype, draw(st.sampled_from(TARGET_DTYPES)))
    x, t = laid_out(draw, x), laid_out(draw, t)
    options = {
        "mask": laid_out(draw, mask(draw(st.sampled_from(MASKS if len(shape) > 2 else MASKS[:3])), shape)),
        "squared_pred": draw(st.booleans()),
        "pos_weight": draw(st.sampled_from([None, 2.5])),
    }
    found = sums(x, t, backend=backend, **options)
    assert found.dtype == torch.float32
    expected = sums(x.double(), t, **options)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-5)
    slopes = torch.randn(3, *shape[:2])
    _, gradient = loss_and_gradient(lambda x: sums(x, t, slopes, backend=backend, **options), x)
    _, expected = loss_and_gradient(lambda x: sums(x, t, slopes, **options), x.double())
    step = 8e-3 if dtype == torch.bfloat16 else 5e-6
    torch.testing.assert_close(gradient.double(), expected, rtol=step, atol=step * 0.1)


def test_only_what_depends_on_the_logits_is_differentiable():
    x, t = segmentation((2, 3, 8, 8))
    found = ops.overlap_sums(x.requires_grad_(), t)
    assert [part.requires_grad for part in found] == [True, True, False, True, False]


def expected_counts(x, t, valid):
    predicted, wanted = (x > 0) & valid, (t >= 0.5) & valid
    kinds = predicted & wanted, predicted & ~wanted, ~predicted & wanted
    per_channel = [kind.flatten(2).sum(2) for kind in kinds]
    return (*per_channel, (~x.isfinite() & valid).flatten(1).sum(1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["none", "segment", "full"])
def test_counts_come_with_the_loss(backend, kind):
    shape = (2, 3, 25, 27)
    x, t = segmentation(shape, target_dtype=torch.float32)
    x[0, 1, 3, 3], x[0, 2, 4, :3], x[1, 0, 0, 0], x[1, 1, 0, 0] = float("nan"), float("inf"), -float("inf"), 0.0
    valid = mask(kind, shape)
    full = torch.ones(shape, dtype=torch.bool) if valid is None else valid.view(*valid.shape, *(1,) * (4 - valid.dim()))
    options = {"mask": valid, "reduction": "none", "backend": backend}
    loss, counts = ops.dice_bce_loss(x, t, return_counts=True, **options)
    for found, expected in zip(counts, expected_counts(x, t, full.expand(shape)), strict=True):
        assert found.dtype == torch.int64
        assert torch.equal(found, expected)
    assert_bit_equal([(loss,), (ops.dice_bce_loss(x, t, **options),)])


def test_counts_under_compile_and_vmap():
    x, t = segmentation((3, 2, 3, 8, 8))

    def both(x, t):
        loss, counts = ops.dice_bce_loss(x, t, return_counts=True)
        return loss, *counts

    expected = [torch.stack(parts) for parts in zip(*(both(x[k], t[k]) for k in range(3)), strict=True)]
    torch.testing.assert_close(list(torch.vmap(both)(x, t)), expected)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x[0], t[0]), both(x[0], t[0]))


X, T = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
BAD = [
    (ops.overlap_sums, (X, T), {"activation": "tanh"}, "`activation` must be one of"),
    (ops.overlap_sums, (X, T + 255), {}, "`target` must lie in 0 to 1"),
    (ops.overlap_sums, (X, T), {"mask": T}, "`mask` must be bool, uint8"),
    (ops.tversky_loss, (X, T), {"alpha": -1.0}, "`alpha` must be 0 or more"),
    (ops.tversky_loss, (X, T), {"gamma": 0.0}, "`gamma` must be above 0; got 0.0"),
    (ops.tversky_loss, (X, T), {"empty": "two"}, "`empty` must be one of"),
    (ops.tversky_loss, (X, T), {"reduction": "avg"}, "`reduction` must be one of"),
    (ops.tversky_loss, (X, T), {"ignore_index": 255}, "`ignore_index` names a class"),
    (ops.tversky_loss, (X[:, :1], T[:, :1]), {"include_background": False}, "`include_background` must be True"),
    (ops.tversky_loss, (X, T), {"weight": torch.ones(2)}, r"`weight` must be a number, \[3\]"),
    (ops.bce_with_logits, (X, T[:, 0]), {}, "`target` must match `input`"),
    (
        ops.bce_with_logits,
        (X, T),
        {"weight": torch.ones(2)},
        r"`weight` must be broadcastable to `input` \[2, 3, 8, 8\]",
    ),
    (ops.bce_with_logits, (X, T), {"reduction": "avg"}, "`reduction` must be one of"),
    (ops.bce_with_logits, (X, T + 2), {}, "`target` must lie in 0 to 1"),
    (ops.bce_with_logits, (X, T), {"mask": torch.ones(5, dtype=torch.bool)}, "`mask` must be"),
]


@pytest.mark.parametrize(("function", "arguments", "options", "message"), BAD, ids=[case[3][:30] for case in BAD])
def test_bad_arguments(function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments, **options)


def test_counts_must_be_asked_for_in_earnest():
    with pytest.raises(TypeError, match="`return_counts` must be True or False; got 'yes'"):
        ops.dice_bce_loss(X, T, return_counts="yes")  # pyright: ignore
