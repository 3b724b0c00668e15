"""`ops.dice_ce_loss` inside torch: opcheck, compile, vmap, double backward, memory, threads, bad arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers.asserts import assert_bit_equal, loss_and_gradient
from helpers.classes import class_map, pixel_mask
from helpers.inputs import layout
from helpers.op_backends import ignore_numpy_warnings, needs_cpp

from fastmtl import ops
from fastmtl.ops.core import backends
from fastmtl.ops.losses.dice_ce_backends import Options

pytestmark = ignore_numpy_warnings
DEFAULTS = Options(0.5, 0.5, -100, 0.0, True, False, False, False, 1e-5, 1e-5, "one", "mean", False, "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"reduction": "none", "counts": True}, {"batch": True, "label_smoothing": 0.1}], ids=str
)
def test_opcheck(dtype, changes):
    x, t = class_map((2, 3, 6, 5), dtype)
    options = DEFAULTS._replace(**changes)
    x = layout(x, "channels_last").requires_grad_()
    tensors = (x, t.unsqueeze(1), torch.rand(3), pixel_mask("pixel", x.shape).unsqueeze(1))
    torch.library.opcheck(torch.ops.fastmtl.dice_ce.default, (*tensors, *options))
    loss, coefficients, _ = torch.ops.fastmtl.dice_ce(*tensors, *options)
    grad = torch.rand_like(loss).detach().requires_grad_()
    arguments = (grad, *tensors, coefficients.detach(), *options)
    torch.library.opcheck(torch.ops.fastmtl.dice_ce_backward.default, arguments)


@pytest.mark.parametrize("loss", [ops.dice_ce_loss, ops.cross_entropy], ids=lambda loss: loss.__name__)
def test_compiles_where_the_batch_of_the_logits_alone_is_dynamic(loss):
    torch._dynamo.reset()
    x, t = class_map((6, 3, 6, 5))
    torch._dynamo.maybe_mark_dynamic(x, 0)
    compiled = torch.compile(lambda x: loss(x, t), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x, t), rtol=0, atol=0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    x, t = class_map((2, 3, 8, 8))

    def loss(x):
        weight = torch.ones(3)
        value, counts = ops.dice_ce_loss(x * 2, t, weight=weight, reduction="none", return_counts=True)
        return value.sum() + counts.true_positive.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for a, b in zip(loss_and_gradient(compiled, x), loss_and_gradient(loss, x), strict=True):
        torch.testing.assert_close(a, b)


def test_vmap_over_tasks():
    tasks = [class_map((2, 3, 6, 7), seed=seed) for seed in range(4)]
    x, t = torch.stack([x for x, _ in tasks], 1), torch.stack([t for _, t in tasks], 0)

    def loss(x, t):
        return ops.dice_ce_loss(x, t, reduction="none")

    expected = torch.stack([loss(x[:, k], t[k]) for k in range(4)])
    torch.testing.assert_close(torch.vmap(loss, in_dims=(1, 0))(x, t), expected)
    by_jacobian = torch.func.jacrev(lambda x: loss(x, t[0]))(x[:, 0])
    for b in range(2):
        gradient = torch.func.grad(lambda x, b=b: loss(x, t[0])[b])(x[:, 0])
        torch.testing.assert_close(by_jacobian[b], gradient)


def test_double_backward_on_kernels():
    x, t = class_map((2, 3, 5, 5))
    direction = torch.randn_like(x)

    def penalty(x, backend):
        x = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(ops.dice_ce_loss(x, t, backend=backend), x, create_graph=True)
        return torch.autograd.grad((gradient * direction.to(x.dtype)).sum(), x)[0]

    torch.testing.assert_close(penalty(x, "auto").double(), penalty(x.double(), "reference"), rtol=1e-4, atol=1e-8)


def test_backward_keeps_only_inputs_and_coefficients():
    x, t = class_map((2, 3, 16, 16))
    x.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        loss = ops.dice_ce_loss(x, t)
    addresses = {x.data_ptr(), t.data_ptr()}
    extra = [tensor for tensor in saved if tensor is not None and tensor.data_ptr() not in addresses]
    assert [tuple(tensor.shape) for tensor in extra] == [(3, 2, 3)]
    loss.backward()


def test_dtypes_of_the_loss():
    x, t = class_map((1, 2, 4, 4))
    assert not ops.dice_ce_loss(x, t).requires_grad
    assert ops.dice_ce_loss(x.bfloat16(), t).dtype == torch.float32
    assert ops.dice_ce_loss(x.double(), t).dtype == torch.float64


@needs_cpp
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """Each in its own process: the choice is made once, at load."""
    script = (
        "import torch; from fastmtl import ops; torch.manual_seed(0)\n"
        "x = torch.cat([torch.randn(1, 6, 999) * 6, torch.randn(1, 6, 999) * 40]).requires_grad_()\n"
        "t = torch.randint(0, 6, (2, 999)); t[:, ::7] = -100\n"
        "for o in ({}, {'squared_pred': True, 'label_smoothing': 0.1, 'weight': torch.rand(6)}):\n"
        "    y = x.detach().double().requires_grad_(); x.grad = None\n"
        "    a = ops.dice_ce_loss(x, t.short(), backend='cpp', **o); b = ops.dice_ce_loss(y, t, **o)\n"
        "    a.backward(); b.backward()\n"
        "    torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=0)\n"
        "    scale = y.grad.abs().max()\n"
        "    torch.testing.assert_close(x.grad.double() / scale, y.grad / scale, rtol=3e-5, atol=3e-7)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"FASTMTL_ISA": isa}, check=True, timeout=120)


@needs_cpp
def test_offsets_past_two_to_the_31():
    """Strides that reach past 2^31 elements, over storage of which only the touched pages exist."""
    far = 2**31 + 4096
    storage = torch.empty(far + 64, dtype=torch.uint8)
    storage[:64], storage[far:] = 0, 1
    t = storage.as_strided((2, 64), (far, 1))
    x = torch.randn(2, 2, 64)
    expected = ops.dice_ce_loss(x, torch.stack([torch.zeros(64), torch.ones(64)]).long(), reduction="none")
    assert_bit_equal([(ops.dice_ce_loss(x, t, reduction="none"),), (expected,)])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("wrong", [3, -1, 2**32, -(2**31) - 98])
def test_a_class_number_out_of_range_raises_on_the_cpu(backend, wrong):
    x, t = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    t[0, 1, 1] = wrong
    message = r"`target` holds class numbers that `input` has no channel for \(1 pixels\): they must lie in 0 to 2"
    with pytest.raises(ValueError, match=message):
        ops.dice_ce_loss(x, t, backend=backend)
    with pytest.raises(ValueError, match=message):
        ops.overlap_sums(x, t, activation="softmax", backend=backend)
    with pytest.raises(ValueError, match=message):
        ops.focal_loss(x, t, activation="softmax", backend=backend)
    assert ops.dice_ce_loss(x, t, ignore_index=wrong, backend=backend).isfinite()
    assert ops.dice_ce_loss(x, t, mask=t != wrong, backend=backend).isfinite()


X, T = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
BAD = [
    (
        (X, T[:, :4]),
        {},
        ValueError,
        r"`target` must be class numbers \[2, 8, 8\] or \[2, 1, 8, 8\], or prob.*\[2, 4, 8\]",
    ),
    ((X, X.movedim(1, -1)), {}, ValueError, r"got \[2, 8, 8, 3\]. Move its channels: target.movedim\(-1, 1\)"),
    ((X, T.float()), {}, ValueError, r"`target` must be bool, uint8, .*; got float32. .* target.long\(\)"),
    ((X[:, :1], T), {}, ValueError, "`input` must have a channel for each of 2 or more classes.* for a sigmoid"),
    ((X, None), {}, TypeError, "`target` must be a Tensor; got NoneType"),
    ((X[0, 0, 0], T[0, 0]), {}, ValueError, r"`input` must be \[B, C, \*spatial\]; got \[8\]"),
    ((X[:0], T[:0]), {}, ValueError, r"`input` must have at least one element; got \[0, 3, 8, 8\]"),
    ((X.long(), T), {}, ValueError, "`input` must be float16, bfloat16, float32, float64; got int64"),
    ((X, T.to("meta")), {}, ValueError, "`target` must be on cpu like `input`; got meta"),
    ((X, X.clone().requires_grad_()), {}, ValueError, r"`target` gets no gradient .* Pass `target.detach\(\)`"),
    ((X, T), {"ce_weight": float("nan")}, ValueError, "`ce_weight` must be finite; got nan"),
    ((X, T), {"dice_weight": None}, TypeError, "`dice_weight` must be a number; got NoneType"),
    ((X, T), {"batch": "no"}, TypeError, "`batch` must be True or False; got 'no'"),
    ((X, T), {"include_background": 0}, TypeError, "`include_background` must be True or False; got 0"),
    ((X, T), {"label_smoothing": 1.5}, ValueError, "`label_smoothing` must lie in 0 to 1; got 1.5"),
    ((X, T), {"ignore_index": 1.0}, TypeError, "`ignore_index` must be an integer; got float"),
    ((X, T), {"ignore_index": 2**70}, ValueError, "`ignore_index` must fit into int64"),
    ((X, T), {"smooth_nr": -1.0}, ValueError, "`smooth_nr` must be 0 or more; got -1.0"),
    ((X, T), {"empty": "two"}, ValueError, "`empty` must be one of 'one', 'zero', 'skip'; got 'two'"),
    ((X, T), {"reduction": "total"}, ValueError, "`reduction` must be one of 'none', 'mean', 'sum'; got 'total'"),
    ((X, T), {"reduction": "none", "batch": True}, ValueError, "`reduction` must be 'mean' with batch=True"),
    ((X, T), {"backend": "gpu"}, ValueError, "`backend` must be one of .*; got 'gpu'"),
    ((X, T), {"weight": torch.ones(2)}, ValueError, r"`weight` must be \[3\], one for each class; got \[2\]"),
    ((X, T), {"weight": [1, 1, 1]}, TypeError, "`weight` must be a Tensor; got list"),
    ((X, T), {"weight": torch.ones(3, requires_grad=True)}, ValueError, "`weight` gets no gradient"),
    ((X, T), {"mask": T}, ValueError, "`mask` must be bool, uint8; got int64"),
    ((X, T), {"mask": torch.ones(8, 8).bool()}, ValueError, r"`mask` must be \[2\] or broad.* \[2, 8, 8\] .*\[8, 8\]"),
    ((X, X), {"return_counts": True}, ValueError, r"`return_counts` needs class numbers .* target.argmax\(1\)"),
    ((X, T), {"backend": "numba"}, backends.BackendError, "`dice_ce` has no backend 'numba'; it has cpp, triton"),
    ((X.double(), T), {"backend": "cpp"}, backends.BackendError, "backend 'cpp' cannot run `dice_ce`: "),
]


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:40] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.dice_ce_loss(*arguments, **options)
