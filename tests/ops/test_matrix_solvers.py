"""The small problems of the balancing methods on every backend: optimality conditions, hard inputs, NaN."""

from __future__ import annotations

import pytest
import torch
from helpers.gradients import gradients
from helpers.op_backends import BACKENDS, device_of, needs_interpreter

from fastmtl.ops.gradients import matrix_solvers

EIGH = [backend for backend in BACKENDS if "cpp" not in str(backend)]


def cosines(K: int, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    J = gradients(K, 70, rank=rank, seed=seed, dtype=torch.float64)
    J = J / J.norm(dim=1, keepdim=True)
    return J @ J.T


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("K", "rank"), [(1, 1), (2, 1), (3, 3), (5, 2), (8, 8)])
def test_quadratic_programs_meet_their_conditions(K, rank, backend, poisoned_memory):
    device = device_of(backend)
    H = torch.stack([1e8 * cosines(K, rank, seed) for seed in range(3)])
    q = 1e-3 * torch.randn(3, K, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
    q[1] = (H[1] @ torch.ones(K, dtype=torch.float64)) * -1e-8  # q in the range of H, so that the program is bounded
    q[0], q[2] = -H[0, 0] * 1e-9, H[2, -1] * 1e-9
    x = matrix_solvers.nonnegative_qp(H.to(device), q.to(device), backend=backend).cpu()
    z = (H @ x[..., None])[..., 0] + q
    scale = q.abs().amax(1, keepdim=True)
    assert (x >= 0).all()
    assert (z >= -1e-9 * scale).all()
    assert ((x * z).abs() <= 1e-9 * scale * x.amax(1, keepdim=True).clamp(min=1e-12)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("K", [1, 3, 6])
@pytest.mark.parametrize("p", [0.1, 1.0, 2.0])
def test_equilibrium(K, p, backend, poisoned_memory):
    device, C = device_of(backend), cosines(K, seed=K)
    r = torch.linspace(0.1, 3.0, K, dtype=torch.float64)
    y = matrix_solvers.equilibrium(C.to(device), r.to(device), p, backend=backend).cpu()
    assert (y > 0).all()
    torch.testing.assert_close(C @ y, r * y**-p, rtol=1e-9, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equilibrium_without_a_solution_is_finite(backend):
    C = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    y = matrix_solvers.equilibrium(
        C.to(device_of(backend)), torch.ones(2).double().to(device_of(backend)), 1.0, backend=backend
    )
    assert y.isfinite().all()
    assert (y > 1e5).all()


@pytest.mark.parametrize("backend", EIGH)
@pytest.mark.parametrize(("K", "rank"), [(1, 1), (2, 2), (3, 1), (6, 4), (7, 7)])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_eigenvectors(K, rank, scale, backend, poisoned_memory):
    G = scale * cosines(K, rank, seed=K)
    values, vectors = (part.cpu() for part in matrix_solvers.eigh(G.to(device_of(backend)), backend=backend))
    torch.testing.assert_close(values, torch.linalg.eigvalsh(G), rtol=1e-12, atol=1e-14 * scale)
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, G, rtol=1e-12, atol=1e-13 * scale)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(K, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", EIGH)
@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), torch.eye(4), torch.ones(4, 4), torch.diag(torch.ones(3))])
def test_eigenvectors_of_repeated_eigenvalues(matrix, backend):
    G = matrix.double()
    values, vectors = (part.cpu() for part in matrix_solvers.eigh(G.to(device_of(backend)), backend=backend))
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, G, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # from NumPy, in Triton's interpreter
def test_what_is_not_finite_shows(value, backend):
    device = device_of(backend)
    H = torch.stack([torch.eye(3, dtype=torch.float64)] * 2)
    H[1, 0, 1] = H[1, 1, 0] = value
    x = matrix_solvers.nonnegative_qp(H.to(device), -torch.ones(2, 3, device=device).double(), backend=backend).cpu()
    assert x[0].isfinite().all()
    assert x[1].isnan().all()
    assert (
        matrix_solvers.equilibrium(H[1].to(device), torch.ones(3).double().to(device), 1.0, backend=backend)
        .isnan()
        .all()
    )
    if backend != "cpp":
        assert not matrix_solvers.eigh(H[1].to(device), backend=backend)[0].isfinite().any()


@needs_interpreter
@pytest.mark.parametrize("K", [1, 3])
def test_launches_keep_to_their_memory(K):
    from helpers.triton_checks import checked

    C, ones = cosines(K), torch.ones(K, dtype=torch.float64)
    with checked() as launched:
        matrix_solvers.nonnegative_qp(C.expand(2, K, K), -ones.expand(2, K), backend="triton")
        matrix_solvers.equilibrium(C, ones, 0.5, backend="triton")
        matrix_solvers.eigh(C, backend="triton")
    assert launched == ["nonnegative_qp_kernel", "equilibrium_kernel", "eigh_kernel"]


def test_opcheck():
    G, ones = cosines(3), torch.ones(3, dtype=torch.float64)
    torch.library.opcheck(torch.ops.fastmtl.nonnegative_qp.default, (G[None], -ones[None], "auto"))
    torch.library.opcheck(torch.ops.fastmtl.equilibrium.default, (G, ones, 1.0, "auto"))
    torch.library.opcheck(torch.ops.fastmtl.small_eigh.default, (G, "auto"))
