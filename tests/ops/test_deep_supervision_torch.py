"""`ops.deep_supervision_loss` inside torch: opcheck, compile, vmap, double backward, memory, bad arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers.asserts import assert_bit_equal
from helpers.heads import pyramid, values_and_gradients
from helpers.inputs import layout, mask
from helpers.op_backends import ignore_numpy_warnings, needs_cpp

from fastmtl import ops
from fastmtl.ops.core import backends
from fastmtl.ops.losses.deep_supervision_backends import Options

pytestmark = ignore_numpy_warnings
DEFAULTS = Options([1.0, 0.5, 0.0], "area", 0.5, 0.5, False, False, False, 1e-5, 1e-5, "one", "mean", "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("changes", [{}, {"reduction": "none", "batch": True, "numbers": []}], ids=str)
def test_opcheck(dtype, changes):
    heads, target = pyramid((8, 4), (1, 2, 4), dtype=dtype)
    options = DEFAULTS._replace(**changes)
    heads = [layout(x, "channels_last").requires_grad_() for x in heads]
    weights = None if options.numbers else torch.rand(3)
    tensors = (heads, target, weights, torch.rand(2), mask("full", target.shape))
    torch.library.opcheck(torch.ops.fastmtl.deep_supervision.default, (*tensors, *options))
    loss, coefficients = torch.ops.fastmtl.deep_supervision(*tensors, *options)
    grad = torch.rand_like(loss).detach().requires_grad_()
    arguments = (grad, *tensors, coefficients.detach(), *options)
    torch.library.opcheck(torch.ops.fastmtl.deep_supervision_backward.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_compiles_in_one_graph(dynamic, activation):
    heads, target = pyramid((8, 8), (1, 2, 4))
    target = target if activation == "sigmoid" else target[:, 0]
    weights = torch.tensor([1.0, 0.5, 0.0]) if dynamic else [1.0, 0.5, 0.25]

    def loss(xs):
        scaled = [2 * x for x in xs]
        return ops.deep_supervision_loss(scaled, target, weights=weights, activation=activation)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for a, b in zip(values_and_gradients(heads, compiled), values_and_gradients(heads, loss), strict=True):
        torch.testing.assert_close(a, b)


def test_weights_move_without_a_new_graph():
    heads, target = pyramid((8, 8), (1, 2))
    compiled = torch.compile(
        lambda weights: ops.deep_supervision_loss(heads, target, weights=weights), fullgraph=True, backend="aot_eager"
    )
    compiled(torch.tensor([1.0, 1.0]))
    with torch.compiler.set_stance("fail_on_recompile"):
        moved = compiled(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(moved, ops.deep_supervision_loss(heads[:1], target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vmap_over_tasks(dtype, reduction):
    tasks = [pyramid((8, 4), (1, 2), dtype=dtype, seed=seed) for seed in range(3)]
    heads = [torch.stack([task[0][level] for task in tasks], 1) for level in range(2)]
    targets, weights = torch.stack([target for _, target in tasks]), torch.rand(3, 2)

    def loss(first, second, target, weights):
        return ops.deep_supervision_loss([first, second], target, weights=weights, reduction=reduction)

    expected = torch.stack([loss(*task[0], task[1], weights[k]) for k, task in enumerate(tasks)])
    found = torch.vmap(loss, in_dims=(1, 1, 0, 0))(*heads, targets, weights)
    torch.testing.assert_close(found, expected)


def test_vmap_of_the_backward():
    """One gradient per head's loss in one call, as gradient surgery asks for them."""
    heads, target = pyramid((8, 4), (1, 2))
    heads = [x.requires_grad_() for x in heads]
    loss = ops.deep_supervision_loss(heads, target, reduction="none")
    together = torch.autograd.grad(loss, heads, torch.eye(2), is_grads_batched=True, retain_graph=True)
    for head in range(2):
        alone = torch.autograd.grad(loss[head], heads, retain_graph=True)
        for batched, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[head], single)


def test_jacobian_by_torch_func():
    heads, target = pyramid((4, 4), (1, 2))
    found = torch.func.jacrev(lambda *xs: ops.deep_supervision_loss(xs, target, reduction="none"), (0, 1))(*heads)
    assert (found[0][1] == 0).all()
    assert (found[1][0] == 0).all()
    assert found[0][0].abs().max() > 0


@pytest.mark.parametrize(
    "options", [{"downsample": "area", "reduction": "none"}, {"jaccard": True, "batch": True}], ids=str
)
def test_gradients_by_finite_differences(options):
    heads, target = pyramid((2, 2), (1, 2), dtype=torch.float64, target_dtype=torch.float64)
    heads, target = [x[:1].requires_grad_() for x in heads], target[:1]

    def loss(*xs):
        return ops.deep_supervision_loss(xs, target, weights=[0.7, 0.3], mask=mask("full", target.shape), **options)

    assert torch.autograd.gradcheck(loss, heads)
    assert torch.autograd.gradgradcheck(loss, heads)


def test_double_backward_on_kernels():
    heads, target = pyramid((8, 4), (1, 2))

    def penalty(dtype, backend):
        leaves = [x.to(dtype).detach().requires_grad_() for x in heads]
        loss = ops.deep_supervision_loss(leaves, target, backend=backend)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), leaves)

    for found, exact in zip(penalty(torch.float32, "auto"), penalty(torch.float64, "reference"), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-9)


def test_a_head_without_gradient_gets_none():
    heads, target = pyramid((8, 4), (1, 2))
    heads[0].requires_grad_()
    ops.deep_supervision_loss(heads, target).backward()
    assert heads[1].grad is None
    assert heads[0].grad is not None
    assert not ops.deep_supervision_loss([x.detach() for x in heads], target).requires_grad


def test_backward_keeps_only_arguments_and_coefficients():
    heads, target = pyramid((8, 16), (1, 2, 4))
    heads = [x.requires_grad_() for x in heads]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        loss = ops.deep_supervision_loss(heads, target, downsample="area")
    addresses = {x.data_ptr() for x in (*heads, target)}
    extra = [tensor for tensor in saved if tensor is not None and tensor.data_ptr() not in addresses]
    assert [tuple(tensor.shape) for tensor in extra] == [(3, 3, 2, 2)]
    loss.backward()


@needs_cpp
def test_no_mask_of_another_size_is_made():
    """With "area" the plain loop makes float masks; here nothing but outputs and coefficients is allocated."""
    heads, target = pyramid((256, 256), (1, 2, 4, 8))
    with torch.profiler.profile(profile_memory=True) as profile:
        ops.deep_supervision_loss(heads, target, downsample="area")
    assert sum(max(event.cpu_memory_usage, 0) for event in profile.events()) < 4096


@needs_cpp
def test_offsets_past_two_to_the_31():
    """Strides that reach past 2^31 elements, over storage of which only the touched pages exist."""
    far = 2**31 + 4096
    storage = torch.empty(far + 64, dtype=torch.uint8)
    storage[:64], storage[far:] = 0, 1
    target = storage.as_strided((2, 1, 8, 8), (far, 64, 8, 1))
    plain = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    heads = [torch.randn(2, 1, 8 // stride, 8 // stride) for stride in (1, 2)]
    for how in ("nearest", "area"):
        pair = [ops.deep_supervision_loss(heads, t, downsample=how, reduction="none") for t in (target, plain)]
        assert_bit_equal([(loss,) for loss in pair])


@needs_cpp
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """Each in its own process: the choice is made once, at load."""
    script = (
        "import torch; from fastmtl import ops; torch.manual_seed(0)\n"
        "t = torch.rand(2, 2, 24, 48)\n"
        "x = [(torch.randn(2, 2, 24 // s, 48 // s) * 6).requires_grad_() for s in (1, 2, 3, 4)]\n"
        "y = [head.detach().double().requires_grad_() for head in x]\n"
        "for how in ('nearest', 'area', 'max'):\n"
        "    a = ops.deep_supervision_loss(x, t, downsample=how, backend='cpp')\n"
        "    b = ops.deep_supervision_loss(y, t, downsample=how)\n"
        "    torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=0)\n"
        "    for f, g in zip(torch.autograd.grad(a, x), torch.autograd.grad(b, y)):\n"
        "        torch.testing.assert_close(f.double(), g, rtol=2e-5, atol=1e-10)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"FASTMTL_ISA": isa}, check=True, timeout=120)


HEADS, T = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)], torch.zeros(2, 3, 8, 8)
MIXED = [HEADS[0], HEADS[1].half()]
INDEX = torch.zeros(2, 8, 8, dtype=torch.uint8)
SOFTMAX = {"activation": "softmax"}
BAD = [
    ((HEADS[0], T), {}, TypeError, r"`inputs` must be a list of Tensors.*got Tensor. Pass \[logits\]"),
    (([], T), {}, ValueError, "`inputs` must hold at least one head"),
    (([*HEADS, None], T), {}, TypeError, r"`inputs\[2\]` must be a Tensor; got NoneType"),
    (([torch.zeros(2, 3)], T), {}, ValueError, r"`inputs\[0\]` must be \[B, C, \*spatial\].*got \[2, 3\]"),
    (([HEADS[0][:0]], T[:0]), {}, ValueError, r"`inputs\[0\]` must have at least one element"),
    (([HEADS[0].long()], T), {}, ValueError, r"`inputs\[0\]` must be float16, .*; got int64"),
    (([HEADS[0], HEADS[1][:, :2]], T), {}, ValueError, r"`inputs\[1\]` must be \[2, 3, '\*', '\*'\] like"),
    ((MIXED, T), {}, ValueError, r"`inputs\[1\]` must be float32 like `inputs\[0\]`; got float16"),
    (([HEADS[0], HEADS[1].to("meta")], T), {}, ValueError, r"`inputs\[1\]` must be on cpu like"),
    (([torch.zeros(2, 3, 3, 8)], T), {}, ValueError, r"`inputs\[0\]` must divide .* \[8, 8\]; got \[3, 8\]"),
    ((HEADS, T[:, 0]), {}, ValueError, r"`target` must be \[2, 3, '\*', '\*'\]"),
    (([HEADS[0][:, :1]], T[:, 0]), {}, ValueError, r"Add the channel: target.unsqueeze\(1\)"),
    ((HEADS, T + 255), {}, ValueError, r"`target` must lie in 0 to 1.*target > 127"),
    ((HEADS, T.clone().requires_grad_()), {}, ValueError, "`target` gets no gradient"),
    ((HEADS, T), {"weights": [1.0]}, ValueError, "`weights` must be 2 numbers, one per head; got 1"),
    ((HEADS, T), {"weights": [1.0, None]}, TypeError, r"`weights\[1\]` must be a number; got NoneType"),
    ((HEADS, T), {"weights": torch.ones(3)}, ValueError, r"`weights` must be \[2\], one per head; got \[3\]"),
    ((HEADS, T), {"weights": torch.ones(2, requires_grad=True)}, ValueError, "`weights` gets no gradient"),
    ((HEADS, T), {"weights": 1.0}, TypeError, "`weights` must be a list of numbers or a Tensor; got float"),
    ((HEADS, T), {"downsample": "mean"}, ValueError, "`downsample` must be one of 'nearest', 'area', 'max'"),
    ((HEADS, T), {"activation": "relu"}, ValueError, "`activation` must be one of 'sigmoid', 'softmax'"),
    ((HEADS, T), {"reduction": "sum"}, ValueError, "`reduction` must be one of 'mean', 'none'; got 'sum'"),
    ((HEADS, T), {"mask": T}, ValueError, "`mask` must be bool, uint8; got float32"),
    ((HEADS, T), {"mask": T[..., :4].bool()}, ValueError, "`mask` must be .* broadcastable to `target`"),
    ((HEADS, T), {"ignore_index": 2}, ValueError, "`ignore_index` names a class"),
    ((HEADS, T), {"pos_weight": torch.ones(2)}, ValueError, "`pos_weight` must be a number"),
    ((HEADS, T), {"pointwise_weight": "1"}, TypeError, "`pointwise_weight` must be a number; got str"),
    ((HEADS, T), {"smooth_nr": -1.0}, ValueError, "`smooth_nr` must be 0 or more"),
    ((HEADS, T), {"backend": "numba"}, backends.BackendError, "`deep_supervision` has no backend 'numba'"),
    ((HEADS, T[:, 0]), SOFTMAX, ValueError, "`target` must be bool, uint8, int16, int32, int64; got float32"),
    ((HEADS, T.byte()), SOFTMAX, ValueError, r"`target` must be \[2, '\*', '\*'\], class numbers"),
    ((HEADS, INDEX), SOFTMAX | {"pos_weight": 1.0}, ValueError, "`pos_weight` is for activation='sigmoid'"),
    ((HEADS, INDEX), SOFTMAX | {"ignore_index": 1.0}, TypeError, "`ignore_index` must be an integer; got float"),
    ((HEADS, INDEX), SOFTMAX | {"mask": T.bool()}, ValueError, r"`mask` must be \[2\] or broadcastable to \[2, "),
    ((HEADS, INDEX + 3), SOFTMAX, ValueError, r"`target` holds class numbers"),
    (([HEADS[0][:, :1]], INDEX), SOFTMAX, ValueError, r"`inputs\[0\]` must have 2 or more classes"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD, ids=[case[3][:50] for case in BAD])
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.deep_supervision_loss(*arguments, **options)
