"""`ops.nt_xent_loss` inside torch: gradients, opcheck, compile, vmap, memory, instruction sets, bad arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers.asserts import assert_bit_equal
from helpers.inputs import generator, views
from helpers.op_backends import dirty_memory, needs_cpp

from fastmtl import losses, ops
from fastmtl.ops.core import backends

pytestmark = dirty_memory


def test_gradients_by_finite_differences():
    z1, z2 = (z.requires_grad_() for z in views(3, 4, torch.float64, scale=1.0))
    for mask in (None, torch.tensor([True, False, True])):

        def loss(z1, z2, mask=mask):
            return ops.nt_xent_loss(z1, z2, temperature=0.5, mask=mask)

        assert torch.autograd.gradcheck(loss, (z1, z2))
        assert torch.autograd.gradgradcheck(loss, (z1, z2))


def test_double_backward_on_kernels():
    z1, z2 = views(5, 4)
    direction = torch.randn(5, 4, generator=generator(5))

    def penalty(z, backend):
        z = z.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(ops.nt_xent_loss(z, z2.to(z), backend=backend), z, create_graph=True)
        return torch.autograd.grad((gradient * direction.to(z)).sum(), z)[0]

    torch.testing.assert_close(penalty(z1, "auto").double(), penalty(z1.double(), "reference"), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True])], ids=["all", "mask"])
def test_opcheck(dtype, mask):
    z = torch.cat(views(3, 4, dtype)).requires_grad_()
    torch.library.opcheck(torch.ops.fastmtl.nt_xent.default, (z, mask, 0.5, "auto"))
    loss, coefficients = torch.ops.fastmtl.nt_xent(z, mask, 0.5, "auto")
    grad = torch.rand_like(loss).detach().requires_grad_()
    arguments = (grad, z, mask, coefficients.detach(), 0.5, "auto")
    torch.library.opcheck(torch.ops.fastmtl.nt_xent_backward.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    z1, z2 = views(6, 5)
    mask = torch.arange(6) > 1

    def loss(z1, z2):
        return ops.nt_xent_loss(z1 * 2, z2, mask=mask, temperature=0.3)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for function in (compiled, loss):
        a, b = z1.clone().requires_grad_(), z2.clone().requires_grad_()
        results.append((value := function(a, b), *torch.autograd.grad(value, (a, b))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_vmap_over_tasks():
    tasks = [views(6, 5, seed=seed) for seed in range(3)]
    z1, z2 = torch.stack([z for z, _ in tasks]), torch.stack([z for _, z in tasks], 1)
    expected = torch.stack([ops.nt_xent_loss(*task) for task in tasks])
    torch.testing.assert_close(torch.vmap(ops.nt_xent_loss, in_dims=(0, 1))(z1, z2), expected)


@needs_cpp
def test_memory_is_linear_in_the_batch():
    """At 2N = 2048 the similarities would take 16 MiB; nothing as large is allocated, nor kept for the backward."""
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


@needs_cpp
@pytest.mark.parametrize("isa", ["baseline", "avx2"])  # the best one is in all other tests
def test_every_instruction_set(isa):
    """Each in its own process: the choice is made once, at load."""
    script = (
        "import torch; from fastmtl import ops; torch.manual_seed(0)\n"
        "for t, d in ((0.01, torch.float32), (0.1, torch.float32), (0.1, torch.bfloat16)):\n"
        "    z = torch.randn(2, 210, 50).to(d).requires_grad_(); y = z.detach().double().requires_grad_()\n"
        "    a = ops.nt_xent_loss(*z, temperature=t, backend='cpp'); b = ops.nt_xent_loss(*y, temperature=t)\n"
        "    a.backward(); b.backward()\n"
        "    torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=0)\n"
        "    step = 1e-5 if d == torch.float32 else 8e-3\n"
        "    torch.testing.assert_close(z.grad.double(), y.grad, rtol=step, atol=step * y.grad.abs().max().item())\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"FASTMTL_ISA": isa}, check=True, timeout=120)


def test_no_gradient_without_asking():
    z1, z2 = views(4, 4)
    assert not ops.nt_xent_loss(z1, z2).requires_grad
    assert ops.nt_xent_loss(z1.double(), z2.double()).dtype == torch.float64


def test_module_is_the_op():
    z1, z2 = views(6, 5)
    mask = torch.arange(6) > 0
    loss = losses.NTXentLoss(temperature=0.3)
    assert_bit_equal([(loss(z1, z2, mask),), (ops.nt_xent_loss(z1, z2, temperature=0.3, mask=mask),)])
    assert "temperature=0.3" in repr(loss)


Z = torch.randn(4, 8)


BAD = [
    ((Z, None), {}, TypeError, "`z2` must be a Tensor; got NoneType"),
    ((Z[0], Z[0]), {}, ValueError, r"`z1` must be \[N, D\], .*; got \[8\]"),
    ((Z[:0], Z[:0]), {}, ValueError, r"`z1` must be \[N, D\], .*; got \[0, 8\]"),
    ((Z, Z[:2]), {}, ValueError, r"`z2` must match `z1` \[4, 8\]; got \[2, 8\]"),
    ((Z.long(), Z.long()), {}, ValueError, "`z1` must be float16, bfloat16, float32, float64; got int64"),
    ((Z, Z.double()), {}, ValueError, "`z2` must be torch.float32 like `z1`; got torch.float64"),
    ((Z, Z.to("meta")), {}, ValueError, "`z2` must be on cpu like `z1`; got meta"),
    ((Z, Z), {"temperature": 0.0}, ValueError, "`temperature` must lie in 1e-30 to 1e\\+30; got 0.0"),
    ((Z, Z), {"temperature": float("nan")}, ValueError, "`temperature` must be finite; got nan"),
    ((Z, Z), {"temperature": torch.tensor(0.1)}, TypeError, "`temperature` must be a number; got Tensor"),
    ((Z, Z), {"mask": torch.ones(4)}, ValueError, "`mask` must be bool, uint8; got float32"),
    ((Z, Z), {"mask": torch.ones(8).bool()}, ValueError, r"`mask` must be \[4\], one for each pair; got \[8\]"),
    ((Z, Z), {"mask": torch.ones(4).bool().to("meta")}, ValueError, "`mask` must be on cpu like `z1`; got meta"),
    ((Z, Z), {"backend": "gpu"}, ValueError, "`backend` must be one of .*; got 'gpu'"),
    ((Z.double(), Z.double()), {"backend": "cpp"}, backends.BackendError, "backend 'cpp' cannot run `nt_xent`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.nt_xent_loss(*arguments, **options)
