"""`ops.focal_loss` inside torch: gradients, opcheck, compile, vmap, memory, instruction sets, bad arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers.asserts import assert_bit_equal, loss_and_gradient
from helpers.inputs import layout, mask, segmentation, with_target
from helpers.op_backends import ignore_numpy_warnings, needs_cpp

from fastmtl import losses, ops
from fastmtl.ops.core import backends
from fastmtl.ops.losses import focal_backends, focal_softmax_backends

ACTIVATIONS = ("sigmoid", "softmax")
pytestmark = ignore_numpy_warnings


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_by_finite_differences(activation, gamma):
    x, t = with_target(
        activation, (2, 3, 2, 2), torch.float64, torch.float64 if activation == "sigmoid" else torch.int64
    )
    x = (x / 2).requires_grad_()
    for reduction in ("mean", "none"):
        options = {"activation": activation, "gamma": gamma, "reduction": reduction}
        assert torch.autograd.gradcheck(lambda x, o=options: ops.focal_loss(x, t, **o), x)
    assert torch.autograd.gradgradcheck(lambda x: ops.focal_loss(x, t, activation=activation, gamma=gamma), x)


def test_double_backward_on_kernels():
    x, t = segmentation((2, 2, 5, 5))
    direction = torch.randn_like(x)

    def penalty(x, backend):
        x = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(ops.focal_loss(x, t, backend=backend), x, create_graph=True)
        return torch.autograd.grad((gradient * direction.to(x.dtype)).sum(), x)[0]

    torch.testing.assert_close(penalty(x, "auto").double(), penalty(x.double(), "reference"), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(dtype, reduction):
    for name, module, numbers in (
        ("sigmoid_focal", focal_backends, (2.0, 0.25, 0.75)),
        ("softmax_focal", focal_softmax_backends, (2.0, -100)),
    ):
        softmax = name == "softmax_focal"
        x, t = with_target("softmax" if softmax else "sigmoid", (2, 3, 6, 5), dtype)
        x = layout(x, "channels_last").requires_grad_()
        t = t.unsqueeze(1) if softmax else t
        tensors = (x, t, torch.rand(3) if softmax else torch.rand(2, 3), mask("full", t.shape))
        options = module.Options(*numbers, reduction, "auto")
        op = getattr(torch.ops.fastmtl, name)
        torch.library.opcheck(op.default, (*tensors, *options))
        loss, coefficients = op(*tensors, *options)
        grad = torch.rand_like(loss).detach().requires_grad_()
        backward = getattr(torch.ops.fastmtl, f"{name}_backward").default
        torch.library.opcheck(backward, (grad, *tensors, coefficients.detach(), *options))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiles_in_one_graph(activation):
    x, t = with_target(activation, (2, 3, 8, 8))

    def loss(x):
        return ops.focal_loss(x * 2, t, activation=activation, weight=torch.ones(3), reduction="none").sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(loss_and_gradient(compiled, x), loss_and_gradient(loss, x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_vmap_over_tasks(activation):
    tasks = [with_target(activation, (2, 3, 6, 7), seed=seed) for seed in range(3)]
    x, t = torch.stack([x for x, _ in tasks], 1), torch.stack([t for _, t in tasks])

    def loss(x, t):
        return ops.focal_loss(x, t, activation=activation, reduction="none")

    expected = torch.stack([loss(x[:, k], t[k]) for k in range(3)])
    torch.testing.assert_close(torch.vmap(loss, in_dims=(1, 0))(x, t), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_keeps_only_inputs_and_coefficients(activation):
    x, t = with_target(activation, (2, 3, 16, 16))
    x.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        loss = ops.focal_loss(x, t, activation=activation)
    addresses = {x.data_ptr(), t.data_ptr()}
    extra = [tensor.numel() for tensor in saved if tensor is not None and tensor.data_ptr() not in addresses]
    assert max(extra) <= 6  # slopes of the planes, factors of the classes
    loss.backward()


@needs_cpp
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """Each in its own process: the choice is made once, at load."""
    script = (
        "import torch; from fastmtl import ops; torch.manual_seed(0)\n"
        "x = torch.cat([torch.randn(1, 3, 999) * 6, torch.linspace(-95, 95, 2997).view(1, 3, 999)])\n"
        "for activation, t in (('sigmoid', torch.rand(2, 3, 999)), ('softmax', torch.randint(0, 3, (2, 999)))):\n"
        "    for gamma in (0.0, 0.7, 1.0, 2.0, 4.5):\n"
        "        a, b = x.clone().requires_grad_(), x.double().requires_grad_()\n"
        "        o = dict(activation=activation, gamma=gamma)\n"
        "        f, g = ops.focal_loss(a, t, backend='cpp', **o), ops.focal_loss(b, t, **o)\n"
        "        f.backward(); g.backward()\n"
        "        torch.testing.assert_close(f.double(), g, rtol=1e-5, atol=0)\n"
        "        small = 1e-6 * b.grad.abs().max().item()\n"
        "        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=small)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"FASTMTL_ISA": isa}, check=True, timeout=120)


def test_module_is_the_op():
    x, t = with_target("sigmoid", (2, 3, 8, 8))
    loss = losses.FocalLoss(gamma=1.5, weight=torch.rand(3))
    assert_bit_equal([(loss(x, t),), (ops.focal_loss(x, t, gamma=1.5, weight=loss.weight),)])
    assert not list(loss.parameters())
    assert "gamma=1.5" in repr(loss)


X, T, Y = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)
SOFT = {"activation": "softmax"}
BAD = [
    ((X, T[:, 0]), {}, ValueError, r"`target` must match `input` \[2, 3, 8, 8\]"),
    ((X, T), {"gamma": -1.0}, ValueError, "`gamma` must be 0 or more; got -1.0"),
    ((X, T), {"gamma": torch.ones(1)}, TypeError, "`gamma` must be a number; got Tensor"),
    ((X, T), {"alpha": float("nan")}, ValueError, "`alpha` must be finite; got nan"),
    ((X, T), {"alpha": torch.ones(2)}, ValueError, r"`alpha` must be a number, \[3\] or"),
    ((X, T), {"activation": "tanh"}, ValueError, "`activation` must be one of 'sigmoid', 'softmax'; got 'tanh'"),
    ((X, T), {"ignore_index": 255}, ValueError, r"`ignore_index` names a class.* got 255. Pass mask=target != 255"),
    ((X, T), {"reduction": "avg"}, ValueError, "`reduction` must be one of"),
    ((X, T), {"backend": "gpu"}, ValueError, "`backend` must be one of .*; got 'gpu'"),
    ((X, T), {"mask": T}, ValueError, "`mask` must be bool, uint8; got float32"),
    ((X, T + 255), {}, ValueError, r"`target` must lie in 0 to 1.*target > 127"),
    ((X, T), SOFT, ValueError, r"`target` must be class numbers \[2, 8, 8\] or .*argmax"),
    ((X, Y[:, :4]), SOFT, ValueError, r"`target` must be class numbers .*to fit `input`; got \[2, 4, 8\]"),
    ((X, Y.float()), SOFT, ValueError, r"`target` must be bool, uint8, int16, int32, int64; got float32. .*long\(\)"),
    ((X[:, :1], Y), SOFT, ValueError, "`input` must have a channel for each of 2 or more classes"),
    ((X, Y + 3), SOFT, ValueError, r"has no channel for \(128 pixels\): they must lie in 0 to 2"),
    ((X, Y + 3), SOFT | {"backend": "reference"}, ValueError, "they must lie in 0 to 2"),
    ((X, Y), SOFT | {"mask": torch.ones(8, 8).bool()}, ValueError, r"`mask` must be \[2\] or .*got \[8, 8\]"),
    ((X.double(), T), {"backend": "cpp"}, backends.BackendError, "backend 'cpp' cannot run `sigmoid_focal`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.focal_loss(*arguments, **options)
