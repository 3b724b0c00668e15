"""The regression losses inside torch: gradients, opcheck, compile, vmap, memory, instruction sets, bad arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers.asserts import assert_bit_equal, loss_and_gradient
from helpers.inputs import layout, mask
from helpers.op_backends import dirty_memory, needs_cpp
from helpers.regression import LOSSES, pair

from fastmtl import losses, ops
from fastmtl.ops.core import backends
from fastmtl.reference.regression import regression_loss

pytestmark = dirty_memory


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(name):
    x, t = pair((3, 2, 2), torch.float64, torch.float64)
    x.requires_grad_()
    ours, _, error = LOSSES[name]
    valid = torch.tensor([True, False, True]).view(3, 1, 1)
    assert torch.autograd.gradcheck(lambda x: regression_loss(x, t, valid, error=error, reduction="none"), x)
    for reduction in ("mean", "none"):
        loss = partial(ours, target=t, reduction=reduction, mask=valid)
        assert torch.autograd.gradcheck(loss, x)
        assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(dtype, reduction):
    x, t = pair((2, 3, 6, 5), dtype, torch.uint8)
    options = ("smooth", 0.5, reduction, "auto")
    tensors = (layout(x, "channels_last").requires_grad_(), t, mask("full", x.shape))
    torch.library.opcheck(torch.ops.fastmtl.regression.default, (*tensors, *options))
    loss, slopes = torch.ops.fastmtl.regression(*tensors, *options)
    grad = torch.rand_like(loss).detach().requires_grad_()
    torch.library.opcheck(torch.ops.fastmtl.regression_backward.default, (grad, *tensors, slopes.detach(), *options))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    x, t = pair((6, 4))
    has_label = torch.arange(6) > 2

    def loss(x):
        return ops.smooth_l1_loss(x * 2, t, mask=has_label, reduction="none").sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for a, b in zip(loss_and_gradient(compiled, x), loss_and_gradient(loss, x), strict=True):
        torch.testing.assert_close(a, b)


def test_vmap_over_tasks():
    tasks = [pair((4, 5), seed=seed) for seed in range(3)]
    x, t = torch.stack([x for x, _ in tasks], 1), torch.stack([t for _, t in tasks])
    has_label = torch.tensor([True, False, True, True])
    loss = partial(ops.mse_loss, mask=has_label, reduction="none")
    expected = torch.stack([loss(*task) for task in tasks])
    torch.testing.assert_close(torch.vmap(loss, in_dims=(1, 0))(x, t), expected)


def test_backward_keeps_only_inputs_and_a_number_per_sample():
    x, t = pair((2, 3, 16, 16), target_dtype=torch.uint8)
    x.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        loss = ops.mse_loss(x, t)
    extra = [tensor for tensor in saved if tensor.data_ptr() not in {x.data_ptr(), t.data_ptr()}]
    assert [tuple(tensor.shape) for tensor in extra] == [(1,)]  # the batch is one run
    loss.backward()


@needs_cpp
@pytest.mark.parametrize("isa", ["baseline", "avx2"])  # the best one is in all other tests
def test_every_instruction_set(isa):
    """Each in its own process: the choice is made once, at load."""
    script = (
        "import torch; from fastmtl import ops; torch.manual_seed(0)\n"
        "for loss in (ops.mse_loss, ops.l1_loss, ops.smooth_l1_loss):\n"
        "    x = (torch.randn(2, 2, 999) * 3).requires_grad_(); t = torch.randint(9, (2, 2, 999))\n"
        "    y = x.detach().double().requires_grad_()\n"
        "    a = loss(x, t, backend='cpp'); b = loss(y, t); a.backward(); b.backward()\n"
        "    torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=0)\n"
        "    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-9)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"FASTMTL_ISA": isa}, check=True, timeout=120)


@needs_cpp
def test_offsets_past_two_to_the_31():
    """Strides that reach past 2^31 elements, over storage of which only the touched pages exist."""
    far = 2**31 + 4096
    whole = torch.empty_strided((far + 64,), (1,), dtype=torch.uint8)  # not poisoned: most pages must not be touched
    whole[:64], whole[far:] = 0, 1
    t = whole.as_strided((2, 1, 64), (far, 64, 1))
    x = torch.randn(2, 1, 64)
    expected = ops.mse_loss(x, torch.stack([torch.zeros(1, 64), torch.ones(1, 64)]), reduction="none")
    assert_bit_equal([(ops.mse_loss(x, t, reduction="none"),), (expected,)])


def test_modules_are_the_ops():
    x, t = pair((4, 4))
    has_label = torch.tensor([True, False, True, True])
    for module, loss in (
        (losses.MSELoss(reduction="none"), partial(ops.mse_loss, reduction="none")),
        (losses.L1Loss(), ops.l1_loss),
        (losses.SmoothL1Loss(beta=0.2), partial(ops.smooth_l1_loss, beta=0.2)),
    ):
        assert_bit_equal([(module(x, t, has_label),), (loss(x, t, mask=has_label),)])
    assert "beta=0.2" in repr(losses.SmoothL1Loss(beta=0.2))


X, T = torch.zeros(2, 4), torch.zeros(2, 4)
BAD = [
    ((X, None), {}, TypeError, "`target` must be a Tensor; got NoneType"),
    ((X[0, 0], T[0, 0]), {}, ValueError, r"`input` must be \[B, ...\]; got a scalar"),
    ((X[:0], T[:0]), {}, ValueError, r"`input` must have at least one element; got \[0, 4\]"),
    ((X, T[:, :1]), {}, ValueError, r"`target` must match `input` \[2, 4\]; got \[2, 1\]. Nothing is broadcast"),
    ((X.long(), T), {}, ValueError, "`input` must be float16, bfloat16, float32, float64; got int64"),
    ((X, T.to(torch.int8)), {}, ValueError, "`target` must be bool, uint8, .*; got int8"),
    ((X, T.to("meta")), {}, ValueError, "`target` must be on cpu like `input`; got meta"),
    ((X, T.clone().requires_grad_()), {}, ValueError, r"`target` gets no gradient .* Pass `target.detach\(\)`"),
    ((X, T), {"beta": -1.0}, ValueError, "`beta` must lie in 0 to 1e\\+30; got -1.0"),
    ((X, T), {"reduction": "avg"}, ValueError, "`reduction` must be one of 'none', 'mean', 'sum'; got 'avg'"),
    ((X, T), {"mask": T}, ValueError, "`mask` must be bool, uint8; got float32"),
    ((X, T), {"mask": torch.ones(3).bool()}, ValueError, r"`mask` must be .*; got \[3\]"),
    ((X, T), {"backend": "gpu"}, ValueError, "`backend` must be one of .*; got 'gpu'"),
    ((X.double(), T), {"backend": "cpp"}, backends.BackendError, "backend 'cpp' cannot run `regression`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.smooth_l1_loss(*arguments, **options)
