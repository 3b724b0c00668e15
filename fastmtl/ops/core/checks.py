"""Checks of loss arguments before any kernel runs; errors name the argument, the expected and the found value, and the
remedy."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from .backends import FLOATING, check_backend

# Kernels get the index of a name in these tuples, which have the order of the enums in csrc.
EMPTY = ("one", "zero", "skip")
REDUCTIONS = ("none", "mean", "sum")
ROUNDING = 0.01  # rounding of a target of 1 by interpolation and half precision; as in csrc/core/planes.cpp
_LARGEST = sys.float_info.max
TARGETS = (torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, *FLOATING)


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    """The names of the dtypes without `torch.`."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a Tensor; got {type(value).__name__}.")
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested one" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise ValueError(f"`{name}` must be a dense Tensor; got {kind}. Convert it first.")


def dtype(name: str, value: Tensor, allowed: tuple[torch.dtype, ...], advice: str) -> None:
    if value.dtype not in allowed:
        raise ValueError(f"`{name}` must be {names(allowed)}; got {names((value.dtype,))}. {advice}")


def device(name: str, value: Tensor, input: Tensor, like: str = "input") -> None:
    if value.device != input.device:
        raise ValueError(f"`{name}` must be on {input.device} like `{like}`; got {value.device}. Move it first.")


def constant(name: str, value: Tensor) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"`{name}` gets no gradient from this loss but requires one. Pass `{name}.detach()`.")


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    # Comparing an array with a string gives an array, which has no truth value.
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def finite(name: str, value: object) -> float:
    """Return the number; tensors are refused, because their gradient would be lost."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number; got {type(value).__name__}. Pass a Python number.")
    if not -_LARGEST <= value <= _LARGEST:  # torch.compile cannot follow math.isfinite
        raise ValueError(f"`{name}` must be finite; got {value}.")
    return float(value)


def between(name: str, value: object, low: float, high: float) -> None:
    if not low <= finite(name, value) <= high:
        raise ValueError(f"`{name}` must lie in {low:g} to {high:g}; got {value}.")


def not_negative(name: str, value: object) -> None:
    if finite(name, value) < 0:
        raise ValueError(f"`{name}` must be 0 or more; got {value}.")


def flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False; got {value!r}.")


def backend(name: str, value: object) -> None:
    check_backend(value)


# Checks of the fields of an op's Options.
Number = Annotated[float, finite]
NotNegative = Annotated[float, not_negative]
Fraction = Annotated[float, partial(between, low=0, high=1)]
Flag = Annotated[bool, flag]
Reduction = Annotated[str, partial(one_of, allowed=REDUCTIONS)]
Empty = Annotated[str, partial(one_of, allowed=EMPTY)]
Backend = Annotated[str, backend]


def channels_last(input: Tensor, target: Tensor) -> bool:
    """Whether the last dim of the target has as many channels as `input`."""
    return input.dim() > 2 and list(target.shape) == [input.shape[0], *input.shape[2:], input.shape[1]]


def _advice(input: Tensor, target: Tensor) -> str:
    """How to fix a target whose shape differs from `input`."""
    flat, found = [input.shape[0], *input.shape[2:]], list(target.shape)
    if channels_last(input, target):
        return "Move its channels: target.movedim(-1, 1)."
    if found == flat and input.shape[1] == 1:
        return "Add the channel: target.unsqueeze(1)."
    if found in (flat, [flat[0], 1, *flat[1:]]):
        return "One-hot encode it first, or use a softmax loss, which reads class numbers."
    return "Resize one of them; a resized mask needs mode='nearest'."


def logits_and_target(input: Tensor, target: Tensor) -> None:
    """Logits [B, C, *spatial] and a target of the same shape, both not empty."""
    tensor("input", input)
    tensor("target", target)
    shape = list(input.shape)
    if input.dim() < 2:
        raise ValueError(f"`input` must be [B, C, *spatial]; got {shape}. Add the missing dims with `unsqueeze`.")
    if input.numel() == 0:
        raise ValueError(f"`input` must have at least one element; got {shape}. Skip the empty batch.")
    dtype("input", input, FLOATING, "Pass logits, not labels.")
    if target.shape != input.shape:
        raise ValueError(f"`target` must match `input` {shape}; got {list(target.shape)}. {_advice(input, target)}")
    dtype("target", target, TARGETS, "Convert it first.")
    device("target", target, input)
    constant("target", target)


def unit(target: Tensor, mask: Tensor | None, name: str = "target") -> None:
    """Raise if a valid value of `target` is outside 0 to 1 by more than rounding. Only on a CPU: on a GPU the host
    would have to wait, so its kernels make the loss NaN instead."""
    if target.device.type != "cpu" or target.dtype == torch.bool or target.numel() == 0:
        return
    seen = target.detach()
    low, high = (end.item() for end in seen.aminmax())
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return
    if mask is not None:
        seen = torch.where(mask.bool(), seen, 0)
    if seen.is_floating_point():
        seen = torch.where(seen.isnan(), 0, seen)  # the loss becomes NaN
    low, high = (end.item() for end in seen.aminmax())
    if low < -ROUNDING:
        raise ValueError(f"`{name}` must lie in 0 to 1; got {low:g}. Mask elements without a label: mask={name} >= 0.")
    if high > 1 + ROUNDING:
        advice = f"Turn a 0/255 mask into 0/1: {name} > 127." if high > 127 else f"Pick one class: {name} == 1."
        raise ValueError(f"`{name}` must lie in 0 to 1; got {high:g}. {advice}")


def unit_or_nan(target: Tensor, mask: Tensor | None) -> Tensor:
    """`target` after `unit`; if that cannot read the values, with NaN for those outside 0 to 1."""
    if may_look(target):
        unit(target, mask)
        return target
    if target.dtype == torch.bool:
        return target
    values = target.to(torch.promote_types(target.dtype, torch.float32))
    return torch.where((values - 0.5).abs() > 0.5 + ROUNDING, torch.nan, values)


def may_look(tensor: Tensor) -> bool:
    """Whether Python may read the values of `tensor` now: without waiting for a GPU, and outside of a trace."""
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return tensor.device.type == "cpu" and not traced


def per_channel(name: str, value: Tensor | float | None, input: Tensor) -> Tensor | None:
    """The weights as [C], from a number, a single element, [C], or [C, 1, ...] with dims of 1 around the channel
    dim."""
    if value is None:
        return None
    channels = input.shape[1]
    if not isinstance(value, Tensor | int | float):
        raise TypeError(f"`{name}` must be a number or a Tensor; got {type(value).__name__}. Make it a Tensor.")
    if not isinstance(value, Tensor):
        compute = torch.promote_types(input.dtype, torch.float32)
        if abs(finite(name, value)) > torch.finfo(compute).max:
            raise ValueError(f"`{name}` must fit into {names((compute,))}; got {value}.")
        return torch.full((channels,), float(value), dtype=compute, device=input.device)
    tensor(name, value)
    if value.dtype.is_complex:
        raise ValueError(f"`{name}` must hold real numbers; got {names((value.dtype,))}.")
    device(name, value, input)
    constant(name, value)
    if value.numel() == 1:
        return value.reshape(1).expand(channels)
    ones, shape = [1] * (input.dim() - 2), list(value.shape)
    # One by one, because torch.compile does not find symbolic sizes in a tuple of shapes.
    if not (shape == [channels] or shape == [channels, *ones] or shape == [1, channels, *ones]):
        raise ValueError(
            f"`{name}` must be a number, [{channels}] or [{channels}, 1, ...], one per channel of `input`; got {shape}."
        )
    return value.reshape(channels)


def full_rank_mask(mask: Tensor | None, input: Tensor, name: str = "input") -> Tensor | None:
    """The mask with as many dims as `input` (the argument `name`): [B] and [B, C] get ones appended."""
    if mask is None:
        return None
    tensor("mask", mask)
    dtype("mask", mask, (torch.bool, torch.uint8), "Compare it with the value of a valid element.")
    device("mask", mask, input)
    shape = mask.shape
    if mask.dim() in (1, 2) and mask.dim() < input.dim():
        mask = mask.reshape(*shape, *(1,) * (input.dim() - mask.dim()))
    if mask.dim() != input.dim() or any(m != 1 and m != n for m, n in zip(mask.shape, input.shape, strict=True)):
        raise ValueError(
            f"`mask` must be [B], [B, C] or broadcastable to `{name}` {list(input.shape)} dim by dim; "
            f"got {list(shape)}. Insert dims of size 1 with `unsqueeze`."
        )
    return mask
