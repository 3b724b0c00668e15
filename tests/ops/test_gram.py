"""`ops.gram` and `ops.grad_norms`: exact enough for near-opposed gradients, the same bits every time."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from helpers.asserts import assert_within_budget
from helpers.gradients import gradients, near_opposed
from helpers.op_backends import BACKENDS, DTYPES, device_of, needs_cpp, needs_triton
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtl import ops
from fastmtl.ops.core.backends import BackendError


def check(J: torch.Tensor, backend: str) -> None:
    """The kernel's G against float64, with the plain formula's error in J's dtype as the budget."""
    truth = J.double() @ J.double().T
    G = ops.gram(J.to(device_of(backend)), backend=backend).cpu()
    assert G.dtype == torch.float64
    assert torch.equal(G, G.T)
    scale = truth.diagonal().max().clamp(min=1e-300)
    if backend == "triton" and J.dtype != torch.float64:
        naive = J @ J.T
        assert_within_budget(G / scale, naive.double() / scale, truth / scale, torch.float32)
    else:
        torch.testing.assert_close(G / scale, truth / scale, rtol=0, atol=1e-13)
    norms = ops.grad_norms(J.to(device_of(backend)), backend=backend).cpu()
    torch.testing.assert_close(norms, truth.diagonal().sqrt(), rtol=1e-6 if backend == "triton" else 1e-13, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("K", "P"), [(1, 1), (2, 7), (3, 1025), (8, 515), (9, 100)])
def test_against_float64(K, P, dtype, backend, poisoned_memory):
    check(gradients(K, P, dtype=dtype), backend)


@pytest.mark.parametrize("backend", [pytest.param("cpp", marks=needs_cpp)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("K", "P"), [(3, 100_003), (5, 33_000), (8, 40_007), (16, 20_001), (64, 9_000)])
def test_against_float64_over_many_chunks_and_splits(K, P, dtype, backend, poisoned_memory):
    check(gradients(K, P, dtype=dtype), backend)


@pytest.mark.long
@needs_triton
@pytest.mark.parametrize("K", [3, 7])
def test_triton_over_several_splits_and_runs(K):
    check(gradients(K, 18_001), "triton")


@needs_triton
@pytest.mark.parametrize(("K", "P"), [(3, 5000), (17, 1700)], ids=["one tile", "six pairs of tiles in blocks of four"])
def test_triton_over_splits_of_short_runs(K, P, monkeypatch):
    from fastmtl.kernels import gram_triton

    monkeypatch.setattr(gram_triton, "RUN", 8)
    monkeypatch.setattr(gram_triton, "MIN_STEPS", 4)
    check(gradients(K, P), "triton")


@pytest.mark.slow
@needs_triton
def test_triton_on_64_tasks():
    check(gradients(64, 513), "triton")


@needs_cpp
@settings(max_examples=50, deadline=None)
@given(
    K=st.integers(1, 20),
    P=st.integers(1, 3000),
    rank=st.integers(1, 5),
    scale=st.sampled_from([0.0, 1e-15, 1e-3, 1.0, 1e6, 1e15]),
    seed=st.integers(0, 1000),
)
def test_matrices_by_rank_and_scale(K, P, rank, scale, seed):
    check(gradients(K, P, rank=rank, scale=scale, seed=seed), "cpp")


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_lie_apart(backend):
    wide = gradients(3, 700).to(device_of(backend))
    rows = wide[:, 5:600]
    torch.testing.assert_close(
        ops.gram(rows, backend=backend), ops.gram(rows.contiguous(), backend=backend), rtol=1e-6, atol=0
    )


@needs_cpp
@pytest.mark.parametrize("difference", [1e-2, 1e-4, 1e-6])
def test_near_opposed_gradients_keep_their_difference(difference):
    """The sum of g and -g + d has norm |d|: with a float32 G the error exceeds it, or it is negative."""
    J = near_opposed(50_000, difference)
    w = torch.ones(2, dtype=torch.float64)
    truth = J.double().sum(0).square().sum()
    G = ops.gram(J)
    assert abs(w @ G @ w / truth - 1) < 1e-9 + 2e-14 / difference**2  # float64 rounding of the large terms
    narrow = (J @ J.T).double()
    if difference <= 1e-4:
        assert abs(w @ narrow @ w / truth - 1) > 0.1


@needs_cpp
def test_near_collinear_gradients_keep_their_angle():
    J = near_opposed(50_000, 1e-5, sign=1.0)
    truth = torch.linalg.svdvals(J.double()).square().min()
    assert abs(torch.linalg.eigvalsh(ops.gram(J)).min() / truth - 1) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_finite_gradients_do_not_overflow(backend):
    J = torch.full((2, 1000), 1e18)
    G = ops.gram(J.to(device_of(backend)), backend=backend)
    assert torch.isfinite(G).all()
    torch.testing.assert_close(G.max().item(), 1e39, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_shows(value, backend):
    J = gradients(3, 200)
    J[1, 150] = value
    G = ops.gram(J.to(device_of(backend)), backend=backend).cpu()
    assert not torch.isfinite(G[1]).any()
    assert torch.isfinite(G[[0, 2]][:, [0, 2]]).all()


@pytest.mark.slow
@needs_cpp
def test_same_bits_on_every_instruction_set():
    script = (
        "import torch; from fastmtl import ops; J = torch.randn(5, 20_000, generator=torch.Generator().manual_seed(0));"
        "print(ops.gram(J, backend='cpp').numpy().tobytes().hex(), ops.gram(J.bfloat16()).numpy().tobytes().hex())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"FASTMTL_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for isa in ("baseline", "avx2", "avx512")
    }
    assert len(printed) == 1


def _in_child(queue, J):
    queue.put(ops.gram(J).sum().item())


@needs_cpp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_in_a_forked_child(two_threads):
    J = gradients(3, 100_000)
    here = ops.gram(J).sum().item()  # the parent's threads already exist, and do not survive the fork
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue, J))
    child.start()
    assert queue.get(timeout=60) == here
    child.join(60)
    assert child.exitcode == 0


def test_norm_of_a_zero_row_has_gradient_zero():
    J = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    ops.grad_norms(J).sum().backward()
    torch.testing.assert_close(J.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("J", "error", "message"),
    [
        ([[1.0]], TypeError, "must be a tensor"),
        (torch.ones(3), ValueError, r"must be \[K, P\]"),
        (torch.ones(3, 0), ValueError, "at least 1"),
        (torch.ones(0, 3), ValueError, "at least 1"),
        (torch.ones(65, 3), ValueError, "at most 64"),
        (torch.ones(3, 4, dtype=torch.int64), ValueError, "must be float32"),
        (torch.ones(4, 3).T, ValueError, "contiguous rows"),
    ],
)
def test_errors(J, error, message):
    with pytest.raises(error, match=message):
        ops.gram(J)
    with pytest.raises(error, match=message):
        ops.grad_norms(J)


def test_unknown_and_impossible_backends():
    with pytest.raises(ValueError, match="`backend`"):
        ops.gram(torch.ones(2, 2), backend="fortran")
    with pytest.raises(BackendError, match="no backend 'numba'"):
        ops.gram(torch.ones(2, 2), backend="numba")
