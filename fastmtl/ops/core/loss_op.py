"""A fused loss as two `torch.library` ops, NAME and NAME_backward, that record themselves for autograd.

The forward takes tensors and options, returns the loss, the coefficients its backward needs (a few numbers per
segment), and by-products. The backward takes grad, the same tensors, the coefficients and the options, and returns
the gradient of the first tensor; nothing else is differentiable, and only the tensors and the coefficients are kept.
Second and forward-mode derivatives run the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends import Kernels, choose, register_kernels
from .fields import schema
from .planes import gradient_like

if TYPE_CHECKING:
    from torch._functorch.autograd_function import VmapInfo

TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")

Vmap = Callable[..., tuple[Any, Any]]
Pull = Callable[..., tuple[Tensor, ...]]


class Context(Protocol):
    """What the ops use of an autograd.Function's `ctx`."""

    options: tuple[Any, ...]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    def save_for_backward(self, *tensors: Any) -> None: ...
    def save_for_forward(self, *tensors: Any) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class LossOp:
    """Call it with the tensors and then the options to run the op; returns (loss, coefficients, *by-products).

    Args:
        name: the op is `fastmtl::name`.
        tensors, options: NamedTuple classes, whose annotations are the schema; the first tensor is the differentiable
            one, `backend` is an option.
        backends: forward, called with (tensors, options), and backward, called with (grad, tensors, coefficients,
            options), of each; see `backends.register_kernels`.
        fake: (tensors, options) -> uninitialised outputs; run with fake tensors by torch.compile.
        reference: (tensors, options) -> loss, in plain torch, differentiable any number of times.
        vmap, vmap_backward: batching rules for `torch.library.register_vmap`; default: a loop over samples.
    """

    def __init__(
        self,
        name: str,
        tensors: type[Any],
        options: type[Any],
        *,
        backends: Kernels,
        fake: Callable[[Any, Any], tuple[Tensor, ...]],
        reference: Callable[[Any, Any], Tensor],
        outputs: int = 2,
        vmap: Vmap | None = None,
        vmap_backward: Vmap | None = None,
    ) -> None:
        self._name, self._tensors, self._options = name, tensors, options
        self._number, self._outputs, self._reference = len(tensors._fields), outputs, reference
        register_kernels(name, backends)
        first, last, returns = schema(tensors), schema(options), ", ".join(["Tensor"] * outputs)
        LIBRARY.define(f"{name}({first}, {last}) -> ({returns})", tags=TAGS)
        LIBRARY.define(f"{name}_backward(Tensor grad, {first}, Tensor coefficients, {last}) -> Tensor", tags=TAGS)
        self._forward_op = getattr(torch.ops.fastmtl, name).default
        self._backward_op = getattr(torch.ops.fastmtl, f"{name}_backward").default
        self._vmap = vmap or partial(loop, self)
        self._vmap_backward = vmap_backward or partial(loop, self.backward)
        self._recorded_forward, self._traced_forward, self._recorded_backward = _functions(self)
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(name, self._run_forward, key)
            LIBRARY.impl(f"{name}_backward", self._run_backward, key)
        # torch.library.register_autograd costs 70 us more per call: it binds a schema of 16 arguments again.
        LIBRARY.impl(name, partial(_record, self._recorded_forward, self._below), "Autograd")
        LIBRARY.impl(f"{name}_backward", partial(_record, self._recorded_backward, self._below_backward), "Autograd")
        torch.library.register_fake(f"fastmtl::{name}", self._fake(fake), lib=LIBRARY)
        torch.library.register_fake(f"fastmtl::{name}_backward", _fake_backward, lib=LIBRARY)
        torch.library.register_vmap(f"fastmtl::{name}", self._vmap, lib=LIBRARY)
        torch.library.register_vmap(f"fastmtl::{name}_backward", self._vmap_backward, lib=LIBRARY)

    def __call__(self, *arguments: object) -> tuple[Tensor, ...]:
        # torch.func needs the autograd.Function before the op; otherwise the op records itself.
        return (self._traced_forward.apply if transformed() else self._forward_op)(*arguments)

    def backward(self, *arguments: object) -> Tensor:
        """The gradient op itself: grad, tensors, coefficients, options."""
        return (self._recorded_backward.apply if transformed() else self._backward_op)(*arguments)

    def split(self, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        """Flat arguments of the forward as (tensors, options)."""
        return self._tensors(*arguments[: self._number]), self._options(*arguments[self._number :])

    def split_backward(self, arguments: tuple[Any, ...]) -> tuple[Tensor, Any, Tensor, Any]:
        """Flat arguments of the backward as (grad, tensors, coefficients, options)."""
        grad, *rest = arguments
        tensors, options = self.split((*rest[: self._number], *rest[self._number + 1 :]))
        return grad, tensors, rest[self._number], options

    def gradient(self, grad: Tensor, tensors: Any, options: NamedTuple) -> Tensor:
        """d (grad * loss) / d first tensor by autograd through the reference; differentiable in both."""

        def loss(first: Tensor) -> Tensor:
            return self._reference(tensors._replace(**{tensors._fields[0]: first}), options)

        pull: Pull = torch.func.vjp(loss, tensors[0])[1]
        return pull(grad)[0]

    def _run_forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, options = self.split(arguments)
        return choose(self._name, options.backend, arguments[0])(tensors, options)

    def _run_backward(self, *arguments: object) -> Tensor:
        grad, tensors, coefficients, options = self.split_backward(arguments)
        return choose(f"{self._name}_backward", options.backend, tensors[0])(grad, tensors, coefficients, options)

    def _fake(self, fake: Callable[[Any, Any], tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *arguments: fake(*self.split(arguments))

    def _below(self, *arguments: object) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return self._forward_op(*arguments)

    def _below_backward(self, *arguments: object) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return self._backward_op(*arguments)


def _functions(op: LossOp) -> tuple[Any, Any, Any]:
    """The autograd.Functions of one op: forward as recorded by the op, forward for torch.func, backward."""
    number, outputs = op._number, op._outputs

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: object) -> tuple[Tensor, ...]:
            return op._below(*arguments)

        @staticmethod
        def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.mark_non_differentiable(*output[1:])
            ctx.save_for_backward(*inputs[:number], output[1])
            ctx.save_for_forward(*inputs[:number], output[1])
            ctx.options = inputs[number:]

        @staticmethod
        def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
            gradient = op.backward(grads[0], *ctx.saved_tensors, *ctx.options)
            return gradient, *(None,) * (number - 1 + len(ctx.options))

        @staticmethod
        def jvp(ctx: Context, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
            tensors, options = op.split((*ctx.saved_tensors[:number], *ctx.options))

            def loss(first: Tensor) -> Tensor:
                return op._reference(tensors._replace(**{tensors._fields[0]: first}), options)

            return push_forward(loss, tensors[:1], tangents[:1]), *(None,) * (outputs - 1)

        @staticmethod
        def vmap(info: VmapInfo, in_dims: tuple[Any, ...], *arguments: object) -> tuple[Any, Any]:
            return op._vmap(info, in_dims, *arguments)

    class ForwardOnce(torch.autograd.Function):
        """`Forward` without a setup_context, which saves 20 us: torch would bind all arguments a second time."""

        @staticmethod
        def forward(ctx: Context, *arguments: object) -> tuple[Tensor, ...]:
            output = op._below(*arguments)
            Forward.setup_context(ctx, arguments, output)
            return output

        backward = Forward.backward
        jvp = Forward.jvp

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: object) -> Tensor:
            return op._below_backward(*arguments)

        @staticmethod
        def setup_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs[: number + 1])
            ctx.save_for_forward(*inputs[: number + 1])
            ctx.options = inputs[number + 2 :]

        @staticmethod
        def gradient(ctx: Context) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]:
            """The gradient as a function of grad and the first tensor, and its arguments. The coefficients depend on
            the logits, so only the whole loss gives the full derivative."""
            grad, *rest = ctx.saved_tensors
            tensors, options = op.split((*rest, *ctx.options))

            def gradient(grad: Tensor, first: Tensor) -> Tensor:
                return op.gradient(grad, tensors._replace(**{tensors._fields[0]: first}), options)

            return gradient, (grad, tensors[0])

        @staticmethod
        def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
            function, at = Backward.gradient(ctx)
            pull: Pull = torch.func.vjp(function, *at)[1]
            return *pull(grads[0]), *(None,) * (number + len(ctx.options))

        @staticmethod
        def jvp(ctx: Context, *tangents: Tensor | None) -> Tensor:
            return push_forward(*Backward.gradient(ctx), tangents[:2])

        @staticmethod
        def vmap(info: VmapInfo, in_dims: tuple[Any, ...], *arguments: object) -> tuple[Any, Any]:
            return op._vmap_backward(info, in_dims, *arguments)

    return ForwardOnce, Forward, Backward


def _record(recorded: type[torch.autograd.Function], plain: Callable[..., object], *arguments: object) -> object:
    # the first tensor; in a backward the gradient and the first tensor
    needed = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments[:2])
    return recorded.apply(*arguments) if needed or forward_mode() else plain(*arguments)


def forward_mode() -> bool:
    """Whether forward-mode AD is active: without recording, tangents would be lost."""
    return forward_ad._current_level >= 0


def push_forward(
    function: Callable[..., Tensor | tuple[Tensor, ...]], at: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]
) -> Any:
    """The derivative of `function` along the tangents: the transpose of its pull-back, which is linear. So the function
    needs only reverse mode, like the backward of an op."""
    derived: Any = torch.func.vjp(function, *at)
    value, pull = derived
    known = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(at, tangents, strict=True))
    zeros = tuple(map(torch.zeros_like, value)) if isinstance(value, tuple) else torch.zeros_like(value)
    push: Pull = torch.func.vjp(pull, zeros)[1]
    return push(known)[0]


def transformed() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _fake_backward(grad: Tensor, first: Tensor, *arguments: object) -> Tensor:
    return gradient_like(first)


def loop(run: Callable[..., Any], info: VmapInfo, in_dims: tuple[Any, ...], *arguments: object) -> tuple[Any, Any]:
    """A batching rule for any op: one call per sample."""
    results = [
        run(*(_select(*pair, index) for pair in zip(arguments, in_dims, strict=True)))
        for index in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _select(value: object, dim: Any, index: int) -> object:
    if isinstance(value, Tensor):
        return value if dim is None else value.select(dim, index)
    if isinstance(value, list | tuple) and isinstance(dim, list | tuple):
        return [_select(*pair, index) for pair in zip(value, dim, strict=True)]
    return value
