"""A fused loss of several heads as two `torch.library` ops: `loss_op.LossOp` for a list of differentiable tensors.

The forward takes the list, further tensors and options; it returns only the loss and the coefficients its backward
needs (a few numbers per segment and head). The backward returns one gradient per head. Only the argument tensors and
the coefficients are kept; second and forward-mode derivatives run the reference; vmap loops over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from .backends import Kernels, choose, register_kernels
from .fields import schema
from .loss_op import LIBRARY, TAGS, Context, Pull, forward_mode, loop, push_forward, transformed
from .planes import gradient_like

if TYPE_CHECKING:
    from torch._functorch.autograd_function import VmapInfo

_is_legacy_batched = cast(Any, torch._C)._functorch.is_legacy_batchedtensor


class HeadsLossOp:
    """Call it with the inputs, the further tensors and the options to run the op; returns (loss, coefficients).

    Args:
        name: the op is `fastmtl::name`.
        tensors, options: NamedTuple classes, whose annotations are the schema after the inputs; `backend` is an option.
        backends: forward, called with (inputs, tensors, options), and backward, called with (grad, inputs, tensors,
            coefficients, options), of each; see `backends.register_kernels`.
        fake: (inputs, tensors, options) -> uninitialised outputs.
        reference: (inputs, tensors, options) -> loss, in plain torch, differentiable any number of times.
    """

    def __init__(
        self,
        name: str,
        tensors: type[Any],
        options: type[Any],
        *,
        backends: Kernels,
        fake: Callable[[Sequence[Tensor], Any, Any], tuple[Tensor, Tensor]],
        reference: Callable[[Sequence[Tensor], Any, Any], Tensor],
    ) -> None:
        self._name, self._reference, self._tensors, self._options = name, reference, tensors, options
        self.further, self.settings = len(tensors._fields), len(options._fields)
        register_kernels(name, backends)
        first, last = f"Tensor[] inputs, {schema(tensors)}", schema(options)
        LIBRARY.define(f"{name}({first}, {last}) -> (Tensor, Tensor)", tags=TAGS)
        LIBRARY.define(f"{name}_backward(Tensor grad, {first}, Tensor coefficients, {last}) -> Tensor[]", tags=TAGS)
        self._forward_op = getattr(torch.ops.fastmtl, name).default
        self._backward_op = getattr(torch.ops.fastmtl, f"{name}_backward").default
        self._recorded_forward, self._recorded_backward = _functions(self)
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(name, self._run_forward, key)
            LIBRARY.impl(f"{name}_backward", self._run_backward, key)
        LIBRARY.impl(name, self._record_forward, "Autograd")
        LIBRARY.impl(f"{name}_backward", self._record_backward, "Autograd")
        torch.library.register_fake(
            f"fastmtl::{name}", lambda inputs, *rest: fake(inputs, *self.split(rest)), lib=LIBRARY
        )
        torch.library.register_fake(
            f"fastmtl::{name}_backward", lambda grad, inputs, *rest: [gradient_like(x) for x in inputs], lib=LIBRARY
        )
        torch.library.register_vmap(f"fastmtl::{name}", partial(loop, self), lib=LIBRARY)
        torch.library.register_vmap(f"fastmtl::{name}_backward", partial(loop, self.backward), lib=LIBRARY)

    def __call__(self, inputs: Sequence[Tensor], *rest: object) -> tuple[Tensor, Tensor]:
        return self._recorded_forward.apply(*inputs, *rest) if transformed() else self._forward_op(list(inputs), *rest)

    def backward(self, grad: Tensor, inputs: Sequence[Tensor], *rest: object) -> Sequence[Tensor]:
        """The gradient op itself: grad, inputs, further tensors, coefficients, options."""
        if not torch.compiler.is_compiling() and _is_legacy_batched(grad):
            return _loop_over_grads(self, grad, inputs, *rest)
        if transformed():
            return self._recorded_backward.apply(grad, *inputs, *rest)
        return self._backward_op(grad, list(inputs), *rest)

    def split(self, rest: Sequence[Any]) -> tuple[Any, Any]:
        """The arguments after the inputs as (further tensors, options)."""
        return self._tensors(*rest[: self.further]), self._options(*rest[self.further :])

    def gradients(
        self, grad: Tensor, inputs: Sequence[Tensor], tensors: NamedTuple, options: NamedTuple
    ) -> tuple[Tensor, ...]:
        """d (grad * loss) / d inputs by autograd through the reference; differentiable in grad and inputs."""
        pull: Pull = torch.func.vjp(lambda *inputs: self._reference(inputs, tensors, options), *inputs)[1]
        return pull(grad)

    def _run_forward(self, inputs: list[Tensor], *rest: object) -> tuple[Tensor, Tensor]:
        tensors, options = self.split(rest)
        return choose(self._name, options.backend, inputs[0])(inputs, tensors, options)

    def _run_backward(self, grad: Tensor, inputs: list[Tensor], *rest: object) -> list[Tensor]:
        coefficients = rest[self.further]
        tensors, options = self.split((*rest[: self.further], *rest[self.further + 1 :]))
        run = choose(f"{self._name}_backward", options.backend, inputs[0])
        return run(grad, inputs, tensors, coefficients, options)

    def _record_forward(self, inputs: list[Tensor], *rest: object) -> tuple[Tensor, Tensor]:
        if forward_mode() or (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
            return self._recorded_forward.apply(*inputs, *rest)
        return self.below(inputs, *rest)

    def _record_backward(self, grad: Tensor, inputs: list[Tensor], *rest: object) -> list[Tensor]:
        if forward_mode() or (torch.is_grad_enabled() and any(x.requires_grad for x in (grad, *inputs))):
            return list(self._recorded_backward.apply(grad, *inputs, *rest))
        return self.below_backward(grad, inputs, *rest)

    def below(self, inputs: Sequence[Tensor], *rest: object) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return self._forward_op(list(inputs), *rest)

    def below_backward(self, grad: Tensor, inputs: Sequence[Tensor], *rest: object) -> list[Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return self._backward_op(grad, list(inputs), *rest)


def _functions(op: HeadsLossOp) -> tuple[Any, Any]:
    """The autograd.Functions; the inputs are the first, flat arguments, because autograd sees only those."""
    further, settings = op.further, op.settings

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
            heads = len(arguments) - further - settings
            return op.below(arguments[:heads], *arguments[heads:])

        @staticmethod
        def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            ctx.mark_non_differentiable(output[1])
            ctx.save_for_backward(*inputs[:-settings], output[1])
            ctx.save_for_forward(*inputs[:-settings], output[1])
            ctx.options = inputs[-settings:]

        @staticmethod
        def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
            heads = len(ctx.saved_tensors) - further - 1
            inputs, rest = ctx.saved_tensors[:heads], ctx.saved_tensors[heads:]
            gradients = op.backward(grads[0], inputs, *rest, *ctx.options)
            return *gradients, *(None,) * (further + settings)

        @staticmethod
        def jvp(ctx: Context, *tangents: Tensor | None) -> tuple[Tensor, None]:
            heads = len(ctx.saved_tensors) - further - 1
            inputs, rest = ctx.saved_tensors[:heads], ctx.saved_tensors[heads:-1]
            tensors, options = op.split((*rest, *ctx.options))
            return push_forward(lambda *inputs: op._reference(inputs, tensors, options), inputs, tangents[:heads]), None

        @staticmethod
        def vmap(info: VmapInfo, in_dims: tuple[Any, ...], *arguments: object) -> tuple[Any, Any]:
            heads = len(arguments) - further - settings
            dims, values = ((list(all[:heads]), *all[heads:]) for all in (in_dims, arguments))
            return loop(op, info, dims, *values)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
            heads = len(arguments) - further - 1 - settings
            return tuple(op.below_backward(grad, arguments[:heads], *arguments[heads:]))

        @staticmethod
        def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.save_for_backward(*inputs[: -settings - 1])
            ctx.save_for_forward(*inputs[: -settings - 1])
            ctx.options = inputs[-settings:]

        @staticmethod
        def gradients(ctx: Context) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]:
            """The gradients as a function of grad and the inputs, and its arguments. The coefficients depend on the
            logits, so only the whole loss gives the full derivative."""
            grad, *saved = ctx.saved_tensors
            heads = len(saved) - further
            tensors, options = op.split((*saved[heads:], *ctx.options))
            return lambda grad, *inputs: op.gradients(grad, inputs, tensors, options), (grad, *saved[:heads])

        @staticmethod
        def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
            function, at = Backward.gradients(ctx)
            pull: Pull = torch.func.vjp(function, *at)[1]
            return *pull(grads), *(None,) * (further + 1 + settings)

        @staticmethod
        def jvp(ctx: Context, *tangents: Tensor | None) -> tuple[Tensor, ...]:
            function, at = Backward.gradients(ctx)
            return push_forward(function, at, tangents[: len(at)])

        @staticmethod
        def vmap(info: VmapInfo, in_dims: tuple[Any, ...], *arguments: object) -> tuple[Any, Any]:
            heads = len(arguments) - 1 - further - 1 - settings
            dims, values = ((all[0], list(all[1 : heads + 1]), *all[heads + 1 :]) for all in (in_dims, arguments))
            return loop(op.backward, info, dims, *values)

    return Forward, Backward


def _loop_over_grads(op: HeadsLossOp, grad: Tensor, inputs: Sequence[Tensor], *rest: object) -> list[Tensor]:
    """`torch.autograd.grad(is_grads_batched=True)` runs on torch's legacy vmap, which does not support lists of
    tensors."""
    batching: Any = torch
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    rows = batching._remove_batch_dim(grad, level, 1, 0).unbind()
    stacked = map(torch.stack, zip(*(op.backward(row, inputs, *rest) for row in rows), strict=True))
    return [batching._add_batch_dim(gradient, 0, level) for gradient in stacked]
