"""The contract of every op under autograd, torch.func, vmap and torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.inputs import layout
from helpers.op_backends import dirty_memory
from helpers.op_contract import assert_near, cases, outputs, over, run, to, total
from helpers.op_inputs import Call
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

pytestmark = [
    *dirty_memory,
    # torch prepares its forward-mode formulas with a function it has deprecated.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]


@over(lambda spec: spec.differentiable)
def test_gradients_by_finite_differences(spec):
    """For the definition, which runs in float64, and the kernels that accept float64."""
    call = spec.make(spec.tiny, torch.float64, 0)
    leaves = tuple((x / 2).requires_grad_() for x in call.inputs)
    for number, options in enumerate(cases(spec, call)):
        rest = call.rest | to(options, torch.float64)

        def loss(*inputs: Tensor, rest: dict[str, Any] = rest) -> Tensor:
            return total(spec, inputs, rest)

        assert torch.autograd.gradcheck(loss, leaves)
        if number < 2 and leaves[0].numel() < 60:
            assert torch.autograd.gradgradcheck(loss, leaves)


@over(lambda spec: spec.differentiable and spec.forward)
def test_forward_mode(spec):
    """Directional derivatives in every API, and one product with the Hessian."""
    call = spec.make(spec.small, torch.float64, 0)
    x, others = call.inputs[0], call.inputs[1:]
    tangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return total(spec, (x, *others), call.rest)

    (gradient,) = torch.autograd.grad(loss(leaf := x.clone().requires_grad_()), leaf)
    expected = (gradient * tangent).sum()
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (tangent,))[1], expected)
    for primal in (x, x.clone().requires_grad_()):
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(loss(forward_ad.make_dual(primal, tangent))).tangent
        torch.testing.assert_close(found, expected)
    found = torch.func.jvp(torch.func.grad(loss), (x,), (tangent,))[1]
    torch.testing.assert_close(found, torch.autograd.functional.hvp(loss, x, tangent)[1])


@over(lambda spec: spec.differentiable and bool(spec.kernels) and spec.stem != "points")  # linear in the maps
def test_double_backward_on_kernels(spec):
    call = spec.make(spec.small, torch.float32, 0)

    def penalty(call: Call, backend: str) -> tuple[Tensor, ...]:
        leaves = tuple(x.clone().requires_grad_() for x in call.inputs)
        gradients = torch.autograd.grad(
            total(spec, leaves, call.rest | {"backend": backend}), leaves, create_graph=True
        )
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        summed = (flat * torch.linspace(-1, 1, flat.numel(), dtype=flat.dtype)).sum()
        return torch.autograd.grad(summed, leaves, allow_unused=True, materialize_grads=True)

    assert_near(penalty(call, "auto"), penalty(to(call, torch.float64), "reference"), 2e-4)


class _OpCalls(TorchDispatchMode):
    """Keeps the first call of each fastmtl op, with copies of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name.startswith("fastmtl::") and name not in self.calls:

            def copy(value: Any) -> Any:
                if not isinstance(value, Tensor):
                    return value
                return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)

            self.calls[name] = func, tree_map(copy, args)
        return func(*args, **(kwargs or {}))


@pytest.mark.long
@over(lambda spec: bool(spec.kernels))
def test_opcheck(spec):
    """Each registered op that a call and its backward reach: schema, fake kernel, autograd, symbolic sizes."""
    call = spec.make(spec.small, torch.float32, 0)
    made, options = _OpCalls(), cases(spec, call)[-1]
    with made:
        run(spec, Call(tuple(layout(x, "channels_last") for x in call.inputs), call.rest), **options)
    assert made.calls
    for name, (op, arguments) in made.calls.items():
        if name.endswith("_backward"):
            arguments[0].requires_grad_()
        torch.library.opcheck(op, arguments)


@over()
@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiles_in_one_graph(spec, dynamic):
    torch._dynamo.reset()
    call = spec.make(spec.small, torch.float32, 0)
    options = cases(spec, call)[-1] if dynamic else {}

    def doubled(*inputs: Tensor) -> Any:
        return spec.function(*[2 * x for x in inputs], **call.rest, **options)

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    plain = Call(tuple(2 * x for x in call.inputs), call.rest)
    leaves = tuple(x.clone().requires_grad_() for x in call.inputs)
    found = compiled(*leaves)
    found = (found,) if isinstance(found, Tensor) else tuple(found)
    expected = run(spec, plain, **options)
    torch.testing.assert_close(tuple(part.detach() for part in found), expected[: len(found)])
    if spec.differentiable:
        flat = torch.cat([part.flatten() for part in found])
        weights = torch.linspace(0.5, 1.5, flat.numel(), dtype=flat.dtype)
        gradients = torch.autograd.grad((flat * weights).sum(), leaves)
        torch.testing.assert_close(gradients, tuple(2 * g for g in expected[len(found) :]))


@over(lambda spec: spec.batched)
def test_vmap_over_tasks(spec):
    tasks = [spec.make(spec.small, torch.float32, seed) for seed in range(3)]
    inputs = tuple(torch.stack(parts, 1) for parts in zip(*(task.inputs for task in tasks), strict=True))
    names = [name for name, value in tasks[0].rest.items() if isinstance(value, Tensor)]
    stacked = tuple(torch.stack([task.rest[name] for task in tasks]) for name in names)
    for options in cases(spec, tasks[0]):

        def one(*tensors: Tensor, options: dict[str, Any] = options) -> tuple[Tensor, ...]:
            rest = tasks[0].rest | dict(zip(names, tensors[len(inputs) :], strict=True)) | options
            return outputs(spec, tensors[: len(inputs)], rest)

        expected = [one(*task.inputs, *(task.rest[name] for name in names)) for task in tasks]
        found = torch.vmap(one, in_dims=(1,) * len(inputs) + (0,) * len(stacked))(*inputs, *stacked)
        torch.testing.assert_close(found, tuple(map(torch.stack, zip(*expected, strict=True))))


@over(lambda spec: spec.differentiable and spec.batched)
def test_vmap_of_the_backward(spec):
    """One gradient per output in one call, as gradient surgery needs them."""
    call = spec.make(spec.small, torch.float32, 0)
    leaves = tuple(x.requires_grad_() for x in call.inputs)
    for options in cases(spec, call):
        loss = next(part for part in outputs(spec, leaves, call.rest | options) if part.requires_grad)
        loss = loss.flatten()[:3]
        rows = torch.eye(loss.numel())
        together = torch.autograd.grad(loss, leaves, rows, is_grads_batched=True, retain_graph=True)
        alone = [torch.autograd.grad(loss, leaves, row, retain_graph=True) for row in rows]
        torch.testing.assert_close(together, tuple(map(torch.stack, zip(*alone, strict=True))), rtol=1e-4, atol=1e-6)


@over(lambda spec: spec.kept is not None)
def test_backward_keeps_the_arguments_and_little_else(spec):
    call = spec.make(spec.small, torch.float32, 0)
    leaves = tuple(x.requires_grad_() for x in call.inputs)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        outputs(spec, leaves, call.rest)
    given = {t.data_ptr() for t in (*leaves, *(v for v in call.rest.values() if isinstance(v, Tensor)))}
    extra = {t.data_ptr(): t.numel() for t in saved if t is not None and t.data_ptr() not in given}
    assert sum(extra.values()) <= spec.kept
