"""`ops.nt_xent_loss`: every backend against the definition, and the definition against SimCLR's formula in torch."""

from __future__ import annotations

import pytest
import torch
from helpers.asserts import assert_bit_equal, assert_within_budget
from helpers.inputs import generator, laid_out, views
from helpers.op_backends import BACKENDS, KERNELS, dirty_memory, needs_cpp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastmtl import ops
from fastmtl.ops.core import backends
from fastmtl.reference.nt_xent import nt_xent_loss as reference

pytestmark = dirty_memory


def textbook(z1, z2, temperature):
    """Chen et al. 2020, algorithm 1, anchor by anchor."""
    z, total = torch.cat([z1, z2]), 0.0
    for i in range(len(z)):
        s = F.cosine_similarity(z[i : i + 1], z, eps=1e-12) / temperature
        others = torch.cat([s[:i], s[i + 1 :]])
        total += -torch.log(s[(i + len(z1)) % len(z)].exp() / others.exp().sum())
    return total / len(z)


def run(z1, z2, grad=1.5, **options):
    """Loss and both gradients."""
    z1, z2 = z1.detach().clone().requires_grad_(), z2.detach().clone().requires_grad_()
    loss = ops.nt_xent_loss(z1, z2, **options)
    return loss.detach(), *torch.autograd.grad(loss, (z1, z2), torch.tensor(grad, dtype=loss.dtype))


def check(backend, z1, z2, **options):
    """Loss and gradients within twice the error of plain torch in float32, plus a tolerance; then rounded."""
    truth = run(z1.double(), z2.double(), backend="reference", **options)
    plain = run(z1.float(), z2.float(), backend="reference", **options)
    found = run(z1, z2, backend=backend, **options)
    assert found[0].dtype == torch.float32
    # An error of 1e-7 in a similarity is one of 1e-7 / T in its exponent; half gradients are rounded in the end.
    step = max(
        1e-6, 3e-7 / options.get("temperature", 0.1), 0 if z1.dtype == torch.float32 else torch.finfo(z1.dtype).eps
    )
    # A loss of 0 (a single pair) is p - 1, with p rounded, over T and the number of rows.
    parts = 0.1 / options.get("temperature", 0.1) / len(z1)
    for name, a, b, exact in zip(("loss", "z1", "z2"), found, plain, truth, strict=True):
        largest = exact.abs().max().item()
        error, budget = (a.double() - exact).abs().max().item(), 2 * (b.double() - exact).abs().max().item()
        allowed = budget + (1e-6 * max(largest, 0.1) if name == "loss" else step * max(largest, parts))
        assert error <= allowed, (name, error, budget, largest)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (40, 70)], ids=str)
def test_matches_the_definition(backend, temperature, size):
    check(backend, *views(*size), temperature=temperature)
    check(backend, *views(*size), temperature=temperature, mask=torch.rand(size[0], generator=generator(1)) < 0.6)


@needs_cpp
@pytest.mark.parametrize("size", [(300, 64), (600, 33), (100, 700)], ids=str)
def test_several_blocks(size):
    for temperature in (0.01, 0.1):
        check("cpp", *views(*size), temperature=temperature)
    check("cpp", *views(*size), mask=torch.rand(size[0], generator=generator(2)) < 0.7)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_projections(backend, dtype):
    check(backend, *views(30, 48, dtype))
    check(backend, *views(30, 48, dtype), temperature=0.01, mask=torch.arange(30) % 3 > 0)


@pytest.mark.parametrize("backend", KERNELS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_odd_shapes_dtypes_temperatures_and_masks(backend, data):
    draw = data.draw
    pairs, dim = draw(st.integers(1, 150 if backend == "cpp" else 20)), draw(st.integers(1, 70))
    z1, z2 = views(pairs, dim, draw(st.sampled_from([torch.float32, torch.bfloat16])), draw(st.floats(0.01, 3)))
    if draw(st.booleans()):  # rows that are not adjacent
        z1, z2 = torch.stack([z1, z2], 1).unbind(1)
    mask = draw(st.sampled_from([None, torch.rand(pairs, generator=generator(3)) < 0.5]))
    mask = laid_out(draw, mask if mask is None else mask.to(draw(st.sampled_from([torch.bool, torch.uint8]))))
    check(backend, z1, z2, temperature=draw(st.sampled_from([0.005, 0.05, 0.5, 5.0])), mask=mask)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_is_within_the_naive_formulas(backend, dtype):
    for seed in range(3):
        z1, z2 = views(64, 32, dtype, seed=seed)
        truth = run(z1.double(), z2.double(), backend="reference")
        found = run(z1, z2, backend=backend)
        a, b = z1.clone().requires_grad_(), z2.clone().requires_grad_()
        y = F.normalize(torch.cat([a, b]))
        s = (y @ y.T / 0.1).masked_fill(torch.eye(128, dtype=torch.bool), -torch.inf)
        naive = F.cross_entropy(s, torch.arange(128).roll(64))
        plain = naive, *torch.autograd.grad(naive * 1.5, (a, b))
        for result, other, exact in zip(found, plain, truth, strict=True):
            scale = exact.abs().max()
            assert_within_budget(result / scale, other / scale, exact / scale, dtype)


def test_the_definition_is_the_papers():
    z1, z2 = views(9, 6, torch.float64)
    for temperature in (0.1, 0.5):
        torch.testing.assert_close(reference(torch.cat([z1, z2]), temperature), textbook(z1, z2, temperature))
    kept = torch.tensor([True, False, True, True, False, True, False, True, True])
    torch.testing.assert_close(
        ops.nt_xent_loss(z1, z2, mask=kept), ops.nt_xent_loss(z1[kept], z2[kept]), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_temperatures_neither_overflow_nor_underflow(backend):
    """Opposite views: a row's largest cosine is far below 1, so relative to 1 all of its terms would be 0."""
    z1 = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss, *_ = run(z1[:1], z1[1:], temperature=1e-3, backend=backend)
    assert loss.item() == 0  # only the positive
    loss, *gradients = run(torch.eye(2), -torch.eye(2), temperature=1e-3, backend=backend)
    assert loss.item() == pytest.approx(1000 + torch.log(torch.tensor(2.0)).item(), rel=1e-6)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_any_length(backend):
    z1, z2 = views(6, 8)
    expected = run(z1, z2, backend=backend)
    for factor in (1e-10, 1e15):
        found = run(z1 * factor, z2 * factor, backend=backend)
        for a, b in zip(found, (expected[0], *(g / factor for g in expected[1:])), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())
    z1[2] = 0  # as in normalize: the norm becomes 1e-12, a constant
    found = run(z1, z2, backend=backend)
    truth = run(z1.double(), z2.double(), backend="reference")
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6 * b.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_pairs_take_part_in_nothing(backend):
    z1, z2 = views(20, 7)
    kept = torch.rand(20, generator=generator(4)) < 0.5
    dirty1, dirty2 = z1.clone(), z2.clone()
    dirty1[~kept], dirty2[~kept] = float("nan"), float("inf")
    clean, dirty = run(z1, z2, mask=kept, backend=backend), run(dirty1, dirty2, mask=kept, backend=backend)
    assert_bit_equal([clean, dirty])
    assert (clean[1][~kept] == 0).all()
    assert (clean[2][~kept] == 0).all()
    alone = run(z1[kept], z2[kept], backend=backend)
    torch.testing.assert_close(clean[0], alone[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(clean[1][kept], alone[1], rtol=1e-4, atol=1e-6)
    nothing = run(dirty1, dirty2, mask=torch.zeros(20, dtype=torch.bool), backend=backend)
    assert all((part == 0).all() for part in nothing)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_not_hidden(backend, bad):
    for temperature in (0.1, 0.01):
        z1, z2 = views(5, 4)
        z1[3, 1] = bad
        loss, *gradients = run(z1, z2, temperature=temperature, backend=backend)
        assert loss.isnan()
        assert all(gradient.isnan().any() for gradient in gradients)


@needs_cpp
def test_memory_is_linear_in_the_batch():
    """At 2N = 2048 the similarities would take 16 MiB; no tensor of that size is allocated or kept for the backward."""
    from torch.profiler import ProfilerActivity, profile

    z1, z2 = (z.requires_grad_() for z in views(1024, 32))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = ops.nt_xent_loss(z1, z2)
    assert sorted(t.numel() for t in saved) == [2 * 2048 + 1, 2048 * 32]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        ops.nt_xent_loss(z1, z2).backward()
    sizes = [e.nbytes() for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert 2**18 < max(sizes) < 2**21
    assert loss.isfinite()


Z = torch.randn(4, 8)


BAD = [
    ((Z[0], Z[0]), {}, ValueError, r"`z1` must be \[N, D\], .*; got \[8\]"),
    ((Z, Z[:2]), {}, ValueError, r"`z2` must match `z1` \[4, 8\]; got \[2, 8\]"),
    ((Z, Z.double()), {}, ValueError, "`z2` must be torch.float32 like `z1`; got torch.float64"),
    ((Z, Z), {"temperature": 0.0}, ValueError, "`temperature` must lie in 1e-30 to 1e\\+30; got 0.0"),
    ((Z, Z), {"temperature": float("nan")}, ValueError, "`temperature` must be finite; got nan"),
    ((Z, Z), {"temperature": torch.tensor(0.1)}, TypeError, "`temperature` must be a number; got Tensor"),
    ((Z, Z), {"mask": torch.ones(8).bool()}, ValueError, r"`mask` must be \[4\], one per pair; got \[8\]"),
    ((Z.double(), Z.double()), {"backend": "cpp"}, backends.BackendError, "backend 'cpp' cannot run `nt_xent`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.nt_xent_loss(*arguments, **options)
