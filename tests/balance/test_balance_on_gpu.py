"""Gradient surgery and the fused step on an NVIDIA GPU against the float64 definitions.

compute-sanitizer runs all tests that are not marked `unsanitized`.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.asserts import assert_bit_equal, loss_and_gradient
from helpers.inputs import segmentation

from fastmtl import balance, ops
from fastmtl.ops.gradients import matrix_solvers
from fastmtl.ops.gradients.pcgrad import random_order
from fastmtl.reference import combine, gram, pcgrad

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
DEVICE = "cuda"
_SIXTY_FOUR = pytest.param(64, marks=pytest.mark.unsanitized)


def _gradients(K: int, P: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    J = torch.randn(K, P, generator=torch.Generator().manual_seed(K * P))
    return (J - 0.9 * J.mean(0)).to(DEVICE, dtype)


@pytest.mark.parametrize("K", [1, 3, 8, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gram_norms_and_combine(K, dtype):
    J = _gradients(K, 4_099, dtype)
    w = torch.linspace(-1, 1, K, dtype=torch.float64, device=DEVICE)
    # float32 runs of a few hundred products are added in float64
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * gram.gram(J).max().item()}
    torch.testing.assert_close(ops.gram(J, backend="triton"), gram.gram(J), **tolerance)
    torch.testing.assert_close(ops.grad_norms(J, backend="triton"), gram.grad_norms(J), rtol=1e-5, atol=1e-6)
    exact = combine.combine(J.double(), w)
    torch.testing.assert_close(ops.combine(J, w, backend="triton").double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("K", [2, 5, 16, _SIXTY_FOUR])
def test_pcgrad_weights(K):
    G = gram.gram(_gradients(K, 501))
    order = random_order(K, generator=torch.Generator().manual_seed(K), device=DEVICE)
    found = ops.pcgrad_weights(G, order, backend="triton")
    torch.testing.assert_close(found, pcgrad.pcgrad_weights(G, order, False), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("K", [1, 2, 5, 16, 33, _SIXTY_FOUR])
def test_small_problems(K):
    J = _gradients(K, 501, torch.float64)
    J = J / J.norm(dim=1, keepdim=True)
    C, ones = J @ J.T, torch.ones(K, dtype=torch.float64, device=DEVICE)
    x = matrix_solvers.nonnegative_qp((C + 1)[None], -ones[None], backend="triton")[0]
    a = x / x.sum()
    assert a @ C @ a - (C @ a).min() < 1e-10
    y = matrix_solvers.equilibrium(C, ones, 0.5, backend="triton")
    torch.testing.assert_close(C @ y, y**-0.5, rtol=1e-7, atol=0)
    eigenvalues, vectors = matrix_solvers.eigh(C, backend="triton")
    torch.testing.assert_close(vectors * eigenvalues @ vectors.T, C, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        vectors.T @ vectors, torch.eye(K, dtype=torch.float64, device=DEVICE), rtol=0, atol=1e-12
    )


@pytest.mark.unsanitized
@pytest.mark.parametrize("method", balance.list_balancers())
def test_a_balanced_step_never_waits_for_the_device(method):
    encoder, heads = torch.nn.Linear(32, 64), torch.nn.ModuleList(torch.nn.Linear(64, n) for n in (1, 4))
    encoder, heads = encoder.to(DEVICE), heads.to(DEVICE)
    x, target = torch.randn(64, 32, device=DEVICE), torch.ones(64, 1, 1, 1, dtype=torch.uint8, device=DEVICE)
    balancer, active = balance.create_balancer(method), torch.ones(2, dtype=torch.bool, device=DEVICE)

    def losses() -> dict[str, torch.Tensor]:
        z = encoder(x).relu()
        return {"a": ops.dice_bce_loss(heads[0](z)[:, :, None, None], target), "b": heads[1](z).square().mean()}

    def step() -> None:
        balancer.backward(losses(), encoder.parameters(), active=active)
        balancer.after_step(losses)
        balancer.on_epoch()

    step()  # compiles
    step()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(parameter.grad.isfinite().all() for parameter in [*encoder.parameters(), *heads.parameters()])


@pytest.mark.unsanitized
def test_gram_weights_and_combine_are_captured_in_a_graph():
    J, order = _gradients(3, 100_000), random_order(3, generator=torch.Generator().manual_seed(0), device=DEVICE)

    def surgery() -> torch.Tensor:
        return ops.combine(J, ops.pcgrad_weights(ops.gram(J), order))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        surgery()  # compiles, which a capture may not
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = surgery()
    J.mul_(-0.5).add_(0.1)
    graph.replay()
    torch.testing.assert_close(captured, surgery(), rtol=0, atol=0)


OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True),
    "adam": partial(torch.optim.Adam, lr=1e-2, weight_decay=0.1, capturable=True),
    "sgd": partial(torch.optim.SGD, lr=1e-2),
    "sgd with dampening": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, dampening=0.3),
    "sgd with nesterov": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
}


def _two_headed(dtype: torch.dtype = torch.float32) -> torch.nn.ModuleDict:
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 33, 3), torch.nn.Tanh(), torch.nn.Conv2d(33, 17, 3))
    parts = {"encoder": encoder, "a": torch.nn.Linear(17, 1), "b": torch.nn.Linear(17, 300)}
    return torch.nn.ModuleDict(parts).to(DEVICE, dtype).to(memory_format=torch.channels_last)


def _two_losses(model: torch.nn.ModuleDict, x: torch.Tensor) -> dict[str, torch.Tensor]:
    z = model["encoder"](x).mean((2, 3))
    return {"a": model["a"](z).mean(), "b": (model["b"](z) - z.sum(1, keepdim=True)).square().mean()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_step(name, dtype):
    pytest.importorskip("fastmtl._C")
    found, steps = [], (balance.FusedStep, partial(balance.FusedStep, backend="reference"))
    for make in steps:
        model, balancer = _two_headed(dtype), balance.MGDA()
        step = make(OPTIMIZERS[name](model.parameters()), clip_norm=0.5)
        for seed in range(4):
            x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
            losses = _two_losses(model, x)
            if seed == 0:  # skipped
                losses["a"] = losses["a"] * float("inf")
            log = step(balancer, losses, model["encoder"].parameters())
            assert bool(log["skipped"]) == (seed == 0)
        found.append([*(p.detach() for p in model.parameters()), log["gradient_norm"]])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.unsanitized
def test_a_fused_step_never_waits_for_the_device():
    model = _two_headed()
    step = balance.FusedStep(OPTIMIZERS["adamw"](model.parameters()), clip_norm=1.0)
    x, balancer = torch.randn(4, 3, 9, 9, device=DEVICE), balance.PCGrad()
    step(balancer, _two_losses(model, x), model["encoder"].parameters())  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(balancer, _two_losses(model, x), model["encoder"].parameters())
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.unsanitized
def test_a_fused_step_of_more_tensors_than_one_launch_holds():
    parameters = [torch.nn.Parameter(torch.full((n % 7 + 1,), 1.0, device=DEVICE)) for n in range(1000)]
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.25} for p in parameters], lr=0.25)
    balance.FusedStep(optimizer)(None, sum(p.sum() for p in parameters))
    assert all(torch.equal(p, torch.full_like(p, 0.75)) for p in parameters)


@pytest.mark.unsanitized
def test_the_same_bits_from_run_to_run():
    J = _gradients(5, 1_000_003)
    input, target = (part.to(DEVICE) for part in segmentation((4, 1, 512, 512)))
    z = torch.randn(1000, 128, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    losses = [
        (partial(ops.dice_bce_loss, target=target, backend="triton"), input),
        (partial(ops.mse_loss, target=target, backend="triton"), input),
        (lambda z: ops.nt_xent_loss(*z.chunk(2), backend="triton"), z),
    ]
    for loss, x in losses:
        assert_bit_equal([(ops.gram(J, backend="triton"), *loss_and_gradient(loss, x)) for _ in range(5)])
