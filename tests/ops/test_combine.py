"""`ops.combine`: the weighted sum of K gradients, in the order the reference adds them."""

from __future__ import annotations

import pytest
import torch
from helpers.asserts import TOLERANCE
from helpers.gradients import gradients
from helpers.op_backends import BACKENDS, DTYPES, device_of, needs_cpp
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtl import ops


def weights(K: int, dtype=torch.float64, seed: int = 1) -> torch.Tensor:
    return torch.randn(K, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def check(J: torch.Tensor, w: torch.Tensor, backend: str) -> None:
    device = device_of(backend)
    out = ops.combine(J.to(device), w.to(device), backend=backend).cpu()
    assert out.dtype == (torch.float64 if J.dtype == torch.float64 else torch.float32)
    truth = w.double() @ J.double()
    scale = (w.double().abs() @ J.double().abs()).clamp(
        min=1e-300
    )  # a sum cannot be more exact than the rounding of its terms
    naive = sum(w[k].to(out.dtype) * J[k].to(out.dtype) for k in range(len(w)))
    error = ((out - truth) / scale).abs().max()
    budget = ((naive - truth) / scale).abs().max() + (1e-15 if J.dtype == torch.float64 else TOLERANCE[torch.float32])
    assert error <= budget


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("K", "P"), [(1, 1), (2, 7), (3, 1025), (8, 515), (64, 129)])
def test_against_float64(K, P, dtype, backend, poisoned_memory):
    check(gradients(K, P, dtype=dtype), weights(K), backend)


@needs_cpp
@pytest.mark.parametrize("K", [5, 8, 64])
def test_task_0_is_added_first_in_short_runs_too(K):
    J, w = gradients(K, 150), weights(K, torch.float32)
    # A short run alone, and inside whole blocks of columns.
    parts = [ops.combine(J[:, start : start + n], w, backend="cpp") for start, n in ((0, 64), (64, 64), (128, 22))]
    again = ops.combine(J[:, 100:], w, backend="cpp")
    assert torch.equal(torch.cat(parts), ops.combine(J, w, backend="cpp"))
    assert torch.equal(torch.cat(parts)[100:], again)


@needs_cpp
@settings(max_examples=50, deadline=None)
@given(
    K=st.integers(1, 20),
    P=st.integers(1, 3000),
    scale=st.sampled_from([0.0, 1e-15, 1.0, 1e15]),
    seed=st.integers(0, 99),
)
def test_matrices_by_scale(K, P, scale, seed):
    check(gradients(K, P, scale=scale, seed=seed), weights(K, torch.float32, seed), "cpp")


@needs_cpp
def test_large_outputs_go_past_the_cache():
    J = gradients(2, 4_200_017, rank=1)
    check(J, weights(2), "cpp")


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_lie_apart_and_out_is_written(backend):
    J = gradients(3, 700).to(device_of(backend))[:, 5:600]
    w = weights(3).to(J.device)
    out = torch.full((595,), float("nan"), device=J.device)
    assert ops.combine(J, w, out=out, backend=backend) is out
    assert torch.equal(out, ops.combine(J.contiguous(), w, backend=backend))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    J = gradients(3, 40, dtype=torch.float64).requires_grad_(requires_grad)
    w = weights(3).requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.fastmtl.combine.default, (J, w, "auto"))
    out = torch.empty(40, dtype=torch.float64)
    torch.library.opcheck(torch.ops.fastmtl.combine_out.default, (J.detach(), w.detach(), out, "auto"))


def test_compiles_whole():
    def update(J, w):
        out = torch.zeros(J.shape[1])
        ops.combine(J, w, out=out)
        return out + ops.combine(J, w)

    J, w = gradients(3, 40), weights(3)
    torch.testing.assert_close(torch.compile(update, fullgraph=True, backend="aot_eager")(J, w), update(J, w))


@pytest.mark.parametrize(
    ("w", "out", "message"),
    [
        (torch.ones(4), None, "`w` must be"),
        (torch.ones(3, dtype=torch.int64), None, "`w` must be"),
        (torch.ones(3), torch.empty(5), "`out` must be"),
        (torch.ones(3), torch.empty(6, dtype=torch.float64), "`out` must be"),
        (torch.ones(3), torch.empty(12)[::2], "`out` must be"),
    ],
)
def test_errors(w, out, message):
    with pytest.raises(ValueError, match=message):
        ops.combine(torch.ones(3, 6), w, out=out)


@needs_cpp
def test_an_output_inside_the_gradients_is_refused():
    buffer = torch.randn(128)
    with pytest.raises(ValueError, match="`out` must not share memory with `J`"):
        ops.combine(buffer[:120].view(3, 40), torch.ones(3), out=buffer[8:48])
