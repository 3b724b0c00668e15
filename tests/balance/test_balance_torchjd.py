"""Methods that TorchJD has too, compared with it in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.gradients import gradients, near_opposed
from torch import Tensor, nn

from fastmtl import balance
from fastmtl.balance.graddrop import drop
from fastmtl.balance.gradvac import vaccinate

aggregation = pytest.importorskip("torchjd.aggregation", reason="torchjd is not installed")
scalarization = pytest.importorskip("torchjd.scalarization", reason="this torchjd has no scalarizers")

MATRICES = {
    "two": lambda seed: gradients(2, 20, seed=seed, dtype=torch.float64),
    "four": lambda seed: gradients(4, 20, seed=seed, dtype=torch.float64),
    "eight": lambda seed: gradients(8, 40, seed=seed, dtype=torch.float64),
    "rank 2": lambda seed: gradients(4, 20, rank=2, seed=seed, dtype=torch.float64),
    "tiny": lambda seed: gradients(3, 20, scale=1e-15, seed=seed, dtype=torch.float64),
    "huge": lambda seed: gradients(3, 20, scale=1e15, seed=seed, dtype=torch.float64),
    "near-collinear": lambda seed: near_opposed(50, 1e-3, 1.0, seed).double(),
    "near-opposed": lambda seed: near_opposed(50, 1e-3, -1.0, seed).double(),
}
everywhere = pytest.mark.parametrize("case", MATRICES)


def theirs(name: str, J: Tensor, *args, **options) -> Tensor:
    try:
        return getattr(aggregation, name)(*args, **options)(J)
    except ImportError as error:
        pytest.skip(str(error))


def ours(name: str, J: Tensor, **options) -> Tensor:
    return balance.create_balancer(name, **options).weights(J @ J.T, {}) @ J


def close(found: Tensor, expected: Tensor, J: Tensor, tolerance: float = 1e-9) -> bool:
    return bool((found - expected).norm() <= tolerance * max(expected.norm(), J.norm() / len(J)))


@everywhere
def test_aligned_mtl(case):
    J = MATRICES[case](0)
    for scale, mode in (("min", "min"), ("median", "median"), ("mean", "rmse")):
        found = ours("aligned_mtl", J, scale=scale) / len(J)  # theirs weighs by 1/K
        assert close(found, theirs("AlignedMTL", J, scale_mode=mode), J, 1e-7)


@everywhere
def test_config(case):
    J = MATRICES[case](1)
    if case == "tiny":
        pytest.skip("theirs normalises with an absolute epsilon")
    assert close(ours("config_grad", J), theirs("ConFIG", J), J, 1e-6)


@everywhere
def test_imtl_g(case):
    J = MATRICES[case](2)
    if case in ("tiny", "huge"):
        pytest.skip("theirs compares the sum with 1e-12, absolutely")
    assert close(ours("imtl_g", J), theirs("IMTLG", J), J, 1e-6)


@everywhere
def test_mgda(case):
    """TorchJD's Frank-Wolfe comes close; our vector is at least as short."""
    J = MATRICES[case](3)
    expected = theirs("MGDA", J, epsilon=1e-9, max_iters=3000)
    found = ours("mgda", J)
    assert found.norm() <= expected.norm() * (1 + 1e-9) + 1e-9 * J.norm()
    assert close(found, expected, J, 2e-2)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
@pytest.mark.parametrize("case", ["two", "four", "near-collinear"])
def test_fairgrad(case, alpha):
    J = MATRICES[case](0)
    J = J / J.norm()  # scipy's least squares starts at 1/K
    assert close(ours("fairgrad", J, alpha=alpha), theirs("FairGrad", J, alpha), J, 1e-3)


@pytest.mark.parametrize("case", ["two", "four", "eight"])
def test_upgrad(case):
    """TorchJD adds 1e-4 of the trace to the diagonal by default."""
    J = MATRICES[case](5)
    linalg = pytest.importorskip("torchjd.linalg")
    try:
        projector = linalg.QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)
    except ImportError as error:
        pytest.skip(str(error))
    assert close(ours("upgrad", J), theirs("UPGrad", J, projector=projector), J, 1e-6)


@pytest.mark.parametrize("case", ["two", "four", "eight"])
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad(case, c):
    J = MATRICES[case](6)
    assert close(ours("cagrad", J, c=c), theirs("CAGrad", J, c), J, 1e-3)


@pytest.mark.parametrize("case", ["two", "four"])
def test_nash(case):
    """TorchJD stops early: the directions agree to a degree or two."""
    J = MATRICES[case](1)
    J = J / J.norm(dim=1).mean()
    expected = theirs("NashMTL", J, n_tasks=len(J), max_norm=1.0, update_weights_every=1, optim_niter=100)
    cosine = nn.functional.cosine_similarity(ours("nash_mtl", J), expected, dim=0)
    assert cosine > 0.999


@pytest.mark.parametrize("K", [2, 4])
def test_gradvac(K):
    their, target = aggregation.GradVac(beta=0.5, eps=0.0), torch.zeros(K, K, dtype=torch.float64)
    for number in range(4):
        J = gradients(K, 12, seed=number, dtype=torch.float64)
        torch.manual_seed(number)
        expected = their(J)
        torch.manual_seed(number)
        drawn = [torch.randperm(K - 1).tolist() for _ in range(K)]
        order = torch.tensor([[[j for j in range(K) if j != i][n] for n in row] for i, row in enumerate(drawn)])
        w, target = vaccinate(J @ J.T, order.view(K, K - 1), target, 0.5, True)
        assert close(w @ J, expected, J, 1e-11)


def test_graddrop():
    J = gradients(3, 200, seed=1, dtype=torch.float64)
    torch.manual_seed(3)
    expected = aggregation.GradDrop(leak=torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))(J)
    torch.manual_seed(3)
    u = torch.rand(200, dtype=torch.float64)
    found = drop(J, torch.ones(3).double(), torch.tensor([0.0, 0.5, 1.0]).double(), u).sum(0)
    torch.testing.assert_close(found, expected)


def test_sdmgrad():
    their, our = aggregation.SDMGradWeighting(), balance.SDMGrad()
    for number in range(4):
        J = gradients(4, 9, seed=number, dtype=torch.float64)
        A = J @ (J + 0.3 * J.roll(1, 1)).T
        torch.testing.assert_close(our.weights(A, {}), their(A), rtol=1e-6, atol=1e-9)


def test_modo():
    their, our = aggregation.MoDoWeighting(gamma=0.05, rho=0.2), balance.MoDo(0.05, rho=0.2)
    for number in range(5):
        J = gradients(4, 9, seed=number, dtype=torch.float64)
        A = J @ (J + 0.3 * J.roll(1, 1)).T
        torch.testing.assert_close(our.weights(A, {}), their(A), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("warmup", [1, 3])
def test_excess_mtl(warmup):
    """Theirs adds 1e-7 to the baseline, and its weights sum to 1."""
    their = aggregation.ExcessMTLWeighting(robust_step_size=0.5, n_warmup_steps=warmup)
    our, parameter = balance.ExcessMTL(0.5, warmup=warmup), nn.Parameter(torch.zeros(20, dtype=torch.float64))
    for number in range(6):
        J = gradients(4, 20, seed=number, dtype=torch.float64)
        w = our.backward({f"task{k}": row @ parameter for k, row in enumerate(J)}, [parameter])["weights"]
        torch.testing.assert_close(w / 4, their(J), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("mu", [0.01, 1.0])
def test_stch(mu):
    values = torch.tensor([0.5, 2.0, 1.99], dtype=torch.float64)
    preference, best = [0.2, 0.3, 0.5], [0.1, 0.2, 0.3]
    given = {name: torch.tensor(one).double() for name, one in (("weights", preference), ("reference", best))}
    for our, their in (
        (balance.STCH(mu), scalarization.STCH(mu)),
        (balance.STCH(mu, weights=preference, reference=best), scalarization.STCH(mu, **given)),
    ):
        parameter, found = losses(values)
        our.backward(found)
        torch.testing.assert_close(parameter.grad, gradient_of(their, values))


def losses(values: Tensor) -> tuple[nn.Parameter, dict[str, Tensor]]:
    parameter = nn.Parameter(values.clone())
    return parameter, {f"task{k}": parameter[k] for k in range(len(values))}


def gradient_of(scalarizer, values: Tensor) -> Tensor:
    leaf = values.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalarizer(leaf), leaf)
    return gradient


def test_loss_methods():
    values = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    pairs = [
        (balance.Uncertainty("regression"), scalarization.UW(3).double()),  # the form theirs takes for every task
        (balance.IMTLL(), scalarization.IMTLL(3).double()),
        (balance.GLS(), scalarization.GeometricMean()),
        (balance.FAMO(), scalarization.FAMO(3).double()),
    ]
    for our, their in pairs:
        parameter, given = losses(values)
        our.backward(given)
        torch.testing.assert_close(parameter.grad, gradient_of(their, values))


def test_famo_and_dwa_over_steps():
    famo, their_famo = balance.FAMO(), scalarization.FAMO(3).double()
    dwa, their_dwa = balance.DWA(), scalarization.DWA()
    torch.manual_seed(0)
    for number in range(8):
        before, after = torch.rand(2, 3, dtype=torch.float64) + 0.1
        parameter, given = losses(before)
        famo.backward(given)
        torch.testing.assert_close(parameter.grad, gradient_of(their_famo, before))
        famo.after_step(lambda after=after: losses(after)[1])
        their_famo.update(after)
        parameter, given = losses(before)
        dwa.backward(given)
        torch.testing.assert_close(parameter.grad, gradient_of(their_dwa, before))
        if number % 2:
            dwa.on_epoch()
            their_dwa.step()
