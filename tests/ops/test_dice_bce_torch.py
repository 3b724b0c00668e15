"""`ops.dice_bce_loss` inside torch: opcheck, compile, vmap, double backward, memory, threads, bad arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers.asserts import assert_bit_equal, loss_and_gradient
from helpers.inputs import layout, mask, segmentation
from helpers.op_backends import ignore_numpy_warnings, needs_cpp

from fastmtl import ops
from fastmtl.ops.core import backends
from fastmtl.ops.core.planes import strides
from fastmtl.ops.losses.dice_bce_backends import Options

pytestmark = ignore_numpy_warnings
DEFAULTS = Options(0.5, 0.5, False, False, False, 1e-5, 1e-5, "one", "mean", False, 1, "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"reduction": "none", "batch": True}, {"reduction": "none", "groups": 2, "counts": True}], ids=str
)
def test_opcheck(dtype, changes):
    x, t = segmentation((2, 3, 6, 5), dtype)
    options = DEFAULTS._replace(**changes)
    weights = torch.rand(3 * options.groups), torch.rand(3 * options.groups)
    x = layout(x, "channels_last").requires_grad_()
    tensors = (x, t, *weights, mask("full", x.shape))
    torch.library.opcheck(torch.ops.fastmtl.dice_bce.default, (*tensors, *options))
    loss, coefficients, _ = torch.ops.fastmtl.dice_bce(*tensors, *options)
    grad = torch.rand_like(loss).detach().requires_grad_()
    arguments = (grad, *tensors, coefficients.detach(), *options)
    torch.library.opcheck(torch.ops.fastmtl.dice_bce_backward.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    x, t = segmentation((2, 3, 8, 8))

    def loss(x):
        return ops.dice_bce_loss(x * 2, t, pos_weight=2.0, mask=mask_all, reduction="none").sum()

    mask_all = mask("pixel", x.shape)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for a, b in zip(loss_and_gradient(compiled, x), loss_and_gradient(loss, x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own, at import
def test_compiles_with_inductor():
    x, t = segmentation((2, 3, 8, 8))

    def loss(x):
        return ops.dice_bce_loss(x * 2, t)

    compiled = torch.compile(loss, fullgraph=True)
    for a, b in zip(loss_and_gradient(compiled, layout(x, "channels_last")), loss_and_gradient(loss, x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("batch", [False, True])
def test_vmap_over_tasks(dtype, reduction, batch):
    tasks = [segmentation((2, 3, 6, 7), dtype, seed=seed) for seed in range(4)]
    x, t = torch.stack([x for x, _ in tasks], 1), torch.stack([t for _, t in tasks], 0)
    weight, valid = torch.rand(4, 3), mask("pixel", (2, 3, 6, 7))

    def loss(x, t, weight):
        return ops.dice_bce_loss(x, t, weight=weight, mask=valid, reduction=reduction, batch=batch)

    expected = torch.stack([loss(x[:, k], t[k], weight[k]) for k in range(4)])
    torch.testing.assert_close(torch.vmap(loss, in_dims=(1, 0, 0))(x, t, weight), expected)

    shared = torch.vmap(lambda x: loss(x, t[0], weight[0]), in_dims=1)(x)
    torch.testing.assert_close(shared[1], loss(x[:, 1], t[0], weight[0]))


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_vmap_of_the_backward(reduction):
    """One gradient per loss in one call, as gradient surgery asks for them."""
    x, t = segmentation((2, 3, 6, 7))
    x.requires_grad_()
    loss = ops.dice_bce_loss(x, t, reduction=reduction, batch=True).expand(3)
    together = torch.autograd.grad(loss, x, torch.eye(3), is_grads_batched=True, retain_graph=True)[0]
    expected = [torch.autograd.grad(loss, x, row, retain_graph=True)[0] for row in torch.eye(3)]
    torch.testing.assert_close(together, torch.stack(expected))


def test_nested_vmap_with_masks_and_pos_weights():
    x = torch.randn(2, 3, 2, 1, 4, 4)
    t, valid, pos_weight = (torch.rand_like(x) < 0.5), torch.rand(2, 3, 2, 1, 1, 1) < 0.7, torch.rand(2, 3, 1)

    def loss(x, t, valid, pos_weight):
        return ops.dice_bce_loss(x, t, mask=valid, pos_weight=pos_weight)

    nested = torch.vmap(torch.vmap(loss))(x, t, valid, pos_weight)
    expected = [[loss(x[i, j], t[i, j], valid[i, j], pos_weight[i, j]) for j in range(3)] for i in range(2)]
    torch.testing.assert_close(nested, torch.stack([torch.stack(row) for row in expected]))


def test_double_backward_on_kernels():
    x, t = segmentation((2, 2, 5, 5))
    direction = torch.randn_like(x)

    def penalty(x, backend):
        x = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(ops.dice_bce_loss(x, t, backend=backend), x, create_graph=True)
        return torch.autograd.grad((gradient * direction.to(x.dtype)).sum(), x)[0]

    torch.testing.assert_close(penalty(x, "auto").double(), penalty(x.double(), "reference"), rtol=1e-4, atol=1e-8)


def test_backward_keeps_only_inputs_and_coefficients():
    x, t = segmentation((2, 3, 16, 16))
    x.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        loss = ops.dice_bce_loss(x, t)
    addresses = {x.data_ptr(), t.data_ptr()}
    extra = [tensor for tensor in saved if tensor is not None and tensor.data_ptr() not in addresses]
    assert [tuple(tensor.shape) for tensor in extra] == [(3, 2, 3)]
    loss.backward()


def test_no_gradient_without_asking():
    x, t = segmentation((1, 1, 4, 4))
    assert not ops.dice_bce_loss(x, t).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.dice_bce_loss(x.bfloat16(), t).dtype == torch.float32
    assert ops.dice_bce_loss(x.double(), t).dtype == torch.float64


@needs_cpp
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """Each in its own process: the choice is made once, at load."""
    script = (
        "import torch; from fastmtl import ops; torch.manual_seed(0)\n"
        "x = torch.cat([torch.randn(1, 2, 999) * 6, torch.linspace(-95, 95, 1998).view(1, 2, 999)]).requires_grad_()\n"
        "t = torch.rand(2, 2, 999) < 0.3\n"
        "y = x.detach().double().requires_grad_()\n"
        "a = ops.dice_bce_loss(x, t, backend='cpp'); b = ops.dice_bce_loss(y, t)\n"
        "a.backward(); b.backward()\n"
        "torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=0)\n"
        "torch.testing.assert_close(x.grad.double(), y.grad, rtol=2e-5, atol=1e-25)\n"
        "h = torch.randn(1, 1, 4000).mul(30).half().requires_grad_(); s = torch.rand(1, 1, 4000)\n"
        "for d in (torch.float16, torch.bfloat16):\n"
        "    k = h.detach().to(d).requires_grad_(); ops.dice_bce_loss(k, s.to(d), backend='cpp').backward()\n"
        "    f = k.detach().float().requires_grad_(); ops.dice_bce_loss(f, s.to(d), backend='cpp').backward()\n"
        "    assert torch.equal(k.grad, f.grad.to(d)), d\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"FASTMTL_ISA": isa}, check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_child_process_finishes():
    """libgomp's threads do not survive a fork: a parallel region in the child must not wait for them."""
    script = (
        "import os, signal, torch; from fastmtl import ops; torch.set_num_threads(2)\n"
        "x, t = torch.randn(2, 1, 512, 512), torch.ones(2, 1, 512, 512, dtype=torch.uint8)\n"
        "before = ops.dice_bce_loss(x, t).item(); child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(60); os._exit(0 if ops.dice_bce_loss(x, t).item() == before else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)


@needs_cpp
def test_offsets_past_two_to_the_31():
    """Strides that reach past 2^31 elements, over storage of which only the touched pages exist."""
    far = 2**31 + 4096
    storage = torch.empty(far + 64, dtype=torch.uint8)
    storage[:64], storage[far:] = 0, 1
    t = storage.as_strided((2, 1, 64), (far, 64, 1))
    x = torch.randn(2, 1, 64)
    expected = ops.dice_bce_loss(x, torch.stack([torch.zeros(1, 64), torch.ones(1, 64)]), reduction="none")
    assert_bit_equal([(ops.dice_bce_loss(x, t, reduction="none"),), (expected,)])


def test_strides_of_layouts():
    x = torch.zeros(2, 3, 4, 5)
    assert strides(x) == (60, 20, 1)
    assert strides(layout(x, "channels_last")) == (60, 1, 3)
    assert strides(layout(x, "expanded")) == (0, 20, 1)
    assert strides(layout(x, "cropped")) is None
    assert strides(layout(x, "transposed")) is None
    assert strides(torch.zeros(2, 3, 1, 1).expand(2, 3, 4, 5)) == (3, 1, 0)


X, T = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
BAD = [
    (
        (X, T[:, 0]),
        {},
        ValueError,
        r"`target` must match `input` \[2, 3, 8, 8\]; got \[2, 8, 8\]. One-hot encode it first",
    ),
    ((X[:, :1], T[:, 0]), {}, ValueError, r"Add the channel: target.unsqueeze\(1\)"),
    ((X, T.movedim(1, -1)), {}, ValueError, r"got \[2, 8, 8, 3\]. Move its channels: target.movedim\(-1, 1\)"),
    ((X, T[..., :4]), {}, ValueError, r"got \[2, 3, 8, 4\]. Bring both to one shape"),
    ((X, T), {"bce_weight": float("nan")}, ValueError, "`bce_weight` must be finite; got nan"),
    ((X, T), {"dice_weight": None}, TypeError, "`dice_weight` must be a number; got NoneType"),
    ((X, T), {"batch": "no"}, TypeError, "`batch` must be True or False; got 'no'"),
    ((X, T + 255), {}, ValueError, r"`target` must lie in 0 to 1.*target > 127"),
    ((X, None), {}, TypeError, "`target` must be a Tensor; got NoneType"),
    ((X[0, 0, 0], T[0, 0, 0]), {}, ValueError, r"`input` must be \[B, C, \*spatial\]; got \[8\]"),
    ((X[:0], T[:0]), {}, ValueError, r"`input` must have at least one element; got \[0, 3, 8, 8\]"),
    ((X.long(), T), {}, ValueError, "`input` must be float16, bfloat16, float32, float64; got int64"),
    ((X, T.to(torch.int8)), {}, ValueError, "`target` must be bool, uint8, .*; got int8"),
    ((X, T.to("meta")), {}, ValueError, "`target` must be on cpu like `input`; got meta"),
    ((X, T.clone().requires_grad_()), {}, ValueError, r"`target` gets no gradient .* Pass `target.detach\(\)`"),
    ((X, T), {"smooth_nr": -1.0}, ValueError, "`smooth_nr` must be 0 or more; got -1.0"),
    ((X, T), {"smooth_dr": float("nan")}, ValueError, "`smooth_dr` must be finite; got nan"),
    ((X, T), {"empty": "two"}, ValueError, "`empty` must be one of 'one', 'zero', 'skip'; got 'two'"),
    ((X, T), {"reduction": "avg"}, ValueError, "`reduction` must be one of 'none', 'mean', 'sum'; got 'avg'"),
    ((X, T), {"backend": "gpu"}, ValueError, "`backend` must be one of .*; got 'gpu'"),
    ((X, T), {"weight": torch.ones(2)}, ValueError, r"`weight` must be a number, \[3\] or .*; got \[2\]"),
    ((X, T), {"pos_weight": torch.ones(1, 1, 3)}, ValueError, r"`pos_weight` must be a number.*got \[1, 1, 3\]"),
    ((X, T), {"weight": torch.ones(3, requires_grad=True)}, ValueError, "`weight` gets no gradient"),
    ((X, T), {"mask": T}, ValueError, "`mask` must be bool, uint8; got float32"),
    ((X, T), {"mask": torch.ones(8, 8).bool()}, ValueError, r"`mask` must be \[B\], \[B, C\] or .*; got \[8, 8\]"),
    ((X, T), {"mask": torch.ones(2, 3, 8).bool()}, ValueError, r"`mask` must be .*; got \[2, 3, 8\]"),
    ((X, T), {"backend": "numba"}, backends.BackendError, "`dice_bce` has no backend 'numba'; it has cpp, triton"),
    ((X.double(), T), {"backend": "cpp"}, backends.BackendError, "backend 'cpp' cannot run `dice_bce`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.dice_bce_loss(*arguments, **options)
