"""A fused loss as two `torch.library` ops, NAME and NAME_backward, that record themselves for autograd.

The forward takes tensors and options, returns the loss, the coefficients its backward needs (a few numbers per
segment), and by-products. The backward takes grad, the same tensors, the coefficients and the options, and returns
the gradient of the first tensor, or of each if the first is a list; nothing else is differentiable, and only the
tensors and the coefficients are kept. Second and forward-mode derivatives run the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends import Kernels, choose, register_kernels
from .batching import loop, loop_over_grads
from .fields import schema
from .planes import gradient_like

if TYPE_CHECKING:
    from torch._functorch.autograd_function import VmapInfo

TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
LIBRARY = torch.library.Library("fastmtl", "FRAGMENT")
_is_legacy_batched = cast(Any, torch._C)._functorch.is_legacy_batchedtensor

Arguments = tuple[Any, ...]
Vmap = Callable[..., tuple[Any, Any]]
Pull = Callable[..., tuple[Tensor, ...]]


class Context(Protocol):
    """What the ops use of an autograd.Function's `ctx`."""

    options: Arguments

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    def save_for_backward(self, *tensors: Any) -> None: ...
    def save_for_forward(self, *tensors: Any) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class LossOp:
    """Call it with the tensors and then the options to run the op; returns (loss, coefficients, *by-products).

    Args:
        name: the op is `fastmtl::name`.
        tensors, options: NamedTuple classes, whose annotations are the schema; the first tensor, or list of tensors, is
            differentiable; `backend` is an option.
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
        self._name, self._backward_name, self._tensors, self._options = name, f"{name}_backward", tensors, options
        self._number, self._settings = len(tensors._fields), len(options._fields)
        self._outputs, self._reference = outputs, reference
        self._listed = get_type_hints(tensors)[tensors._fields[0]] == list[Tensor]
        register_kernels(name, backends)
        first, last, returns = schema(tensors), schema(options), ", ".join(["Tensor"] * outputs)
        gradients = "Tensor[]" if self._listed else "Tensor"
        LIBRARY.define(f"{name}({first}, {last}) -> ({returns})", tags=TAGS)
        LIBRARY.define(f"{name}_backward(Tensor grad, {first}, Tensor coefficients, {last}) -> {gradients}", tags=TAGS)
        self._forward_op = getattr(torch.ops.fastmtl, name).default
        self._backward_op = getattr(torch.ops.fastmtl, f"{name}_backward").default
        self._vmap = vmap or partial(loop, self)
        self._vmap_backward = vmap_backward or partial(loop, self.backward)
        self._recorded_forward, self._traced_forward, self._recorded_backward = _functions(self)
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(name, self._run_forward, key)
            LIBRARY.impl(f"{name}_backward", self._run_backward, key)
        # torch.library.register_autograd costs 70 us more per call: it binds a schema of 16 arguments again.
        LIBRARY.impl(name, self._record_forward, "Autograd")
        LIBRARY.impl(f"{name}_backward", self._record_backward, "Autograd")
        torch.library.register_fake(f"fastmtl::{name}", lambda *given: fake(*self.split(given)), lib=LIBRARY)
        torch.library.register_fake(f"fastmtl::{name}_backward", _fake_backward, lib=LIBRARY)
        torch.library.register_vmap(f"fastmtl::{name}", self._vmap, lib=LIBRARY)
        torch.library.register_vmap(f"fastmtl::{name}_backward", self._vmap_backward, lib=LIBRARY)

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        # torch.func needs the autograd.Function before the op; otherwise the op records itself.
        return self._traced_forward.apply(*self.flat(arguments)) if _transformed() else self._forward_op(*arguments)

    def backward(self, *arguments: Any) -> Any:
        """The gradient op itself: grad, tensors, coefficients, options."""
        if self._listed and not torch.compiler.is_compiling() and _is_legacy_batched(arguments[0]):
            return loop_over_grads(self.backward, *arguments)
        if _transformed():
            return self._recorded_backward.apply(*self.flat(arguments, 1))
        return self._backward_op(*arguments)

    def flat(self, arguments: Arguments, at: int = 0) -> Arguments:
        """The arguments with the list of tensors, in place `at`, spread out: autograd does not look into lists."""
        return (*arguments[:at], *arguments[at], *arguments[at + 1 :]) if self._listed else arguments

    def packed(self, flat: Arguments, at: int = 0) -> Arguments:
        """The inverse of `flat`, for the arguments of the forward (at = 0) or of the backward (at = 1)."""
        if not self._listed:
            return flat
        end = len(flat) - (self._number - 1) - self._settings - at  # the backward has the coefficients too
        return (*flat[:at], list(flat[at:end]), *flat[end:])

    def split(self, arguments: Arguments) -> tuple[Any, Any]:
        """Packed arguments of the forward as (tensors, options)."""
        return self._tensors(*arguments[: self._number]), self._options(*arguments[self._number :])

    def loss_of(self, tensors: Any, options: Any) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        """The loss by the reference as a function of the differentiable tensors, and these."""
        first = tensors._fields[0]

        def loss(*inputs: Tensor) -> Tensor:
            return self._reference(tensors._replace(**{first: inputs if self._listed else inputs[0]}), options)

        return loss, tuple(tensors[0]) if self._listed else tensors[:1]

    def _run_forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, options = self.split(arguments)
        first = arguments[0][0] if self._listed else arguments[0]
        return choose(self._name, options.backend, first)(tensors, options)

    def _run_backward(self, grad: Tensor, *rest: Any) -> Any:
        number = self._number
        tensors, options = self._tensors(*rest[:number]), self._options(*rest[number + 1 :])
        run = choose(self._backward_name, options.backend, rest[0][0] if self._listed else rest[0])
        return run(grad, tensors, rest[number], options)

    def _record_forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        if _needed(arguments[0] if self._listed else arguments[:1]):
            return self._recorded_forward.apply(*self.flat(arguments))
        return self.below(*arguments)

    def _record_backward(self, *arguments: Any) -> Any:
        if _needed((arguments[0], *arguments[1]) if self._listed else arguments[:2]):
            gradients = self._recorded_backward.apply(*self.flat(arguments, 1))
            return list(gradients) if self._listed else gradients
        return self.below_backward(*arguments)

    def below(self, *arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return self._forward_op(*arguments)

    def below_backward(self, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self._backward_op(*arguments)


def _functions(op: LossOp) -> tuple[Any, Any, Any]:
    """The autograd.Functions of one op, of flat arguments: forward as recorded by the op, forward for torch.func,
    backward."""
    settings = op._settings
    nothing = (None,) * (op._number - 1 + settings)  # the gradients of all other arguments

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, ...]:
            return op.below(*op.packed(arguments))

        @staticmethod
        def setup_context(ctx: Context, inputs: Arguments, output: tuple[Tensor, ...]) -> None:
            ctx.mark_non_differentiable(*output[1:])
            ctx.save_for_backward(*inputs[:-settings], output[1])
            ctx.save_for_forward(*inputs[:-settings], output[1])
            ctx.options = inputs[-settings:]

        @staticmethod
        def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
            if not op._listed:
                return op.backward(grads[0], *ctx.saved_tensors, *ctx.options), *nothing
            return *op.backward(*op.packed((grads[0], *ctx.saved_tensors, *ctx.options), 1)), *nothing

        @staticmethod
        def jvp(ctx: Context, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
            loss, at = op.loss_of(*op.split(op.packed((*ctx.saved_tensors[:-1], *ctx.options))))
            return push_forward(loss, at, tangents[: len(at)]), *(None,) * (op._outputs - 1)

        @staticmethod
        def vmap(info: VmapInfo, in_dims: Arguments, *arguments: Any) -> tuple[Any, Any]:
            return op._vmap(info, op.packed(in_dims), *op.packed(arguments))

    class ForwardOnce(torch.autograd.Function):
        """`Forward` without a setup_context, which saves 20 us: torch would bind all arguments a second time."""

        @staticmethod
        def forward(ctx: Context, *arguments: Any) -> tuple[Tensor, ...]:
            output = op.below(*op.packed(arguments))
            Forward.setup_context(ctx, arguments, output)
            return output

        backward = Forward.backward
        jvp = Forward.jvp

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            gradients = op.below_backward(*op.packed(arguments, 1))
            return tuple(gradients) if op._listed else gradients

        @staticmethod
        def setup_context(ctx: Context, inputs: Arguments, output: Any) -> None:
            ctx.save_for_backward(*inputs[: -settings - 1])
            ctx.save_for_forward(*inputs[: -settings - 1])
            ctx.options = inputs[-settings:]

        @staticmethod
        def gradients(ctx: Context) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]:
            """The gradients as a function of grad and the differentiable tensors, and its arguments. The coefficients
            depend on the logits, so only the whole loss gives the full derivative."""
            grad, *rest = ctx.saved_tensors
            loss, inputs = op.loss_of(*op.split(op.packed((*rest, *ctx.options))))

            def gradients(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
                pull: Pull = torch.func.vjp(loss, *inputs)[1]
                return pull(grad)

            return gradients, (grad, *inputs)

        @staticmethod
        def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
            function, at = Backward.gradients(ctx)
            pull: Pull = torch.func.vjp(function, *at)[1]
            return *pull(grads), None, *nothing

        @staticmethod
        def jvp(ctx: Context, *tangents: Tensor | None) -> Any:
            function, at = Backward.gradients(ctx)
            pushed = push_forward(function, at, tangents[: len(at)])
            return pushed if op._listed else pushed[0]

        @staticmethod
        def vmap(info: VmapInfo, in_dims: Arguments, *arguments: Any) -> tuple[Any, Any]:
            return op._vmap_backward(info, op.packed(in_dims, 1), *op.packed(arguments, 1))

    return ForwardOnce, Forward, Backward


def _needed(tensors: Arguments) -> bool:
    """Whether to record the call: a gradient is wanted, or forward mode is active, which would lose its tangents."""
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return wanted or forward_ad._current_level >= 0


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


def _transformed() -> bool:
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _fake_backward(grad: Tensor, first: Tensor | list[Tensor], *rest: Any) -> Tensor | list[Tensor]:
    return gradient_like(first) if isinstance(first, Tensor) else list(map(gradient_like, first))
