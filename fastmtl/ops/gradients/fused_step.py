"""Backends of `balance.FusedStep`: the sum of squares of many gradients, and the optimizer step, on lists of
tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastmtl.reference import combine
from fastmtl.reference import fused_step as reference

from ..core.backends import Implementation, choose, extension, missing, register
from ..core.pointers import address, element, num_threads

DTYPES = (torch.float32, torch.float64)
ADAMW, ADAM, SGD = 0, 1, 2  # `enum class Rule` in csrc/gradients/optimizer_rules.hpp
_CHUNK = 16 * 1024  # elements, as in csrc/gradients/fused_step.cu


class Move(NamedTuple):
    """One dense parameter of a step; its moments and gradient have the same memory order.

    Attributes:
        first, second: exp_avg and exp_avg_sq; SGD: the momentum buffer or None, and None.
        step: steps taken, float32 scalar on the parameter's device; None: SGD past its first step.
        gradient: a tensor, or the column of J where the gradient begins.
        group: index into the groups.
    """

    parameter: Tensor
    first: Tensor | None
    second: Tensor | None
    step: Tensor | None
    gradient: Tensor | int
    group: int


@dataclass(frozen=True, slots=True)
class Group:
    """Options of a parameter group; beta1 and beta2 are momentum and dampening for SGD.

    `lr` is a number, or a float32 tensor on the device.
    """

    rule: int
    lr: float | Tensor
    weight_decay: float
    beta1: float
    beta2: float
    eps: float = 0.0
    nesterov: bool = False


@dataclass(frozen=True)
class Step:
    """One call: scale every gradient by `factor`, then apply the rule of its group; do nothing if `skip` is not 0.

    Attributes:
        moves: at least one; those of a group are adjacent.
        J, w: rows [K, P] and their weights [K], for the moves that have no gradient tensor.
        factor: float64 scalar; skip: float32 scalar.
    """

    moves: Sequence[Move]
    groups: Sequence[Group]
    factor: Tensor
    skip: Tensor
    J: Tensor | None = None
    w: Tensor | None = field(default=None)


def sum_of_squares(gradients: Sequence[Tensor], backend: str = "auto") -> Tensor:
    """The sum of squares of dense gradients of one dtype, float32 or float64: a float64 scalar on their device."""
    return choose("sum_of_squares", backend, gradients[0])(gradients)


def take_step(step: Step, backend: str = "auto") -> None:
    """Move parameters and moments in place, and count the steps."""
    choose("fused_step", backend, step.moves[0].parameter)(step)
    torch.autograd.graph.increment_version([move.parameter for move in step.moves])


def why_slow(device: str, dtype: torch.dtype) -> str | None:
    """Why no compiled backend takes tensors of this kind; None if one does."""
    backend = {"cpu": "cpp", "cuda": "cuda"}.get(device)
    if backend is None or dtype not in DTYPES:
        return f"it takes float32 and float64 on a CPU or an NVIDIA GPU; got {dtype} on {device}"
    return missing(backend)


@lru_cache(maxsize=16)
def _packed(rows: tuple[tuple[int, ...], ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)


def _pack(rows: Iterable[tuple[int, ...]]) -> Tensor:
    """A table on the host, int64; the same one as before if all addresses are the same. Do not write to it."""
    return _packed(tuple(rows))


def _segments(gradients: Sequence[Tensor]) -> Tensor:
    return _pack((0, 0, 0, 0, g.data_ptr(), 0, g.numel(), 0) for g in gradients)


def _tables(step: Step) -> tuple[Tensor, Tensor, Tensor | None, list[int], list[int]]:
    """Segments int64 [n, 8], groups float64 [G, 7] and w, which the caller must keep alive, and the extension's two
    lists."""
    wide = step.moves[0].parameter.dtype == torch.float64
    segments = _pack(
        (
            move.parameter.data_ptr(),
            address(move.first),
            address(move.second),
            address(move.step),
            *((0, move.gradient) if isinstance(move.gradient, int) else (move.gradient.data_ptr(), 0)),
            move.parameter.numel(),
            move.group,
        )
        for move in step.moves
    )
    groups = torch.tensor(
        [
            (g.rule, 0.0 if isinstance(g.lr, Tensor) else g.lr, g.weight_decay, g.beta1, g.beta2, g.eps, g.nesterov)
            for g in step.groups
        ],
        dtype=torch.float64,
    )
    table = [segments.data_ptr(), len(step.moves), groups.data_ptr(), int(wide)]
    if step.J is None or step.w is None:
        return segments, groups, None, table, [0, 0, 0, 0, 0]
    w = step.w.to(step.moves[0].parameter.dtype).contiguous()
    J = step.J
    return segments, groups, w, table, [J.data_ptr(), element(J), J.shape[0], J.stride(0), w.data_ptr()]


def _squares_cpp(gradients: Sequence[Tensor]) -> Tensor:
    total, segments = torch.zeros((), dtype=torch.float64), _segments(gradients)
    wide = gradients[0].dtype == torch.float64
    extension().sum_of_squares(address(segments), len(gradients), wide, address(total), num_threads())
    return total


def _step_cpp(step: Step) -> None:
    if step.skip.item() != 0:
        return
    *_kept, table, rows = _tables(step)
    extension().fused_step(table, rows, step.factor.item(), num_threads())


def _squares_cuda(gradients: Sequence[Tensor]) -> Tensor:
    device, wide = gradients[0].device, gradients[0].dtype == torch.float64
    segments = _segments(gradients)
    count = sum(-(-gradient.numel() // _CHUNK) for gradient in gradients)
    partials = torch.empty(count + 1, dtype=torch.float64, device=device)
    with torch.cuda.device_of(gradients[0]):
        stream = torch.cuda.current_stream(device).cuda_stream
        arguments = (len(gradients), wide, address(partials[1:]), address(partials), stream)
        extension().sum_of_squares_cuda(address(segments), *arguments)
    return partials[0]


def _step_cuda(step: Step) -> None:
    *_kept, table, rows = _tables(step)
    rates = _pack((address(g.lr) if isinstance(g.lr, Tensor) else 0,) for g in step.groups)
    parameter = step.moves[0].parameter
    with torch.cuda.device_of(parameter):
        stream = torch.cuda.current_stream(parameter.device).cuda_stream
        extension().fused_step_cuda(table, rows, address(rates), address(step.factor), address(step.skip), stream)


def _squares_reference(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack([gradient.double().square().sum() for gradient in gradients]).sum()


def _step_reference(step: Step) -> None:
    flat = None if step.J is None or step.w is None else combine.combine(step.J, step.w)
    skip = step.skip != 0
    for move in step.moves:
        parameter, group = move.parameter.detach(), step.groups[move.group]
        gradient = move.gradient
        if isinstance(gradient, int):
            assert flat is not None
            gradient = flat.as_strided(parameter.size(), parameter.stride(), flat.storage_offset() + gradient)
        lr = group.lr.double() if isinstance(group.lr, Tensor) else group.lr
        count = 2.0 if move.step is None else move.step.double() + 1
        old = [tensor for tensor in (parameter, move.first, move.second) if tensor is not None]
        if group.rule == SGD:
            new = reference.sgd(
                *(parameter, gradient, move.first, count, lr, step.factor),
                momentum=group.beta1,
                dampening=group.beta2,
                nesterov=group.nesterov,
                weight_decay=group.weight_decay,
            )
        else:
            assert move.first is not None
            assert move.second is not None
            new = reference.adam(
                *(parameter, gradient, move.first, move.second, count, lr, step.factor),
                beta1=group.beta1,
                beta2=group.beta2,
                eps=group.eps,
                weight_decay=group.weight_decay,
                decoupled=group.rule == ADAMW,
            )
        for before, after in zip(old, new, strict=False):
            assert after is not None
            before.copy_(torch.where(skip, before, after))
        if move.step is not None:
            move.step.add_((~skip).to(move.step.dtype))


def _implementations(cpp, cuda, plain) -> dict[str, Implementation]:
    return {
        "cpp": Implementation(cpp, "cpu", DTYPES),
        "cuda": Implementation(cuda, "cuda", DTYPES),
        "reference": Implementation(plain, "any", DTYPES),
    }


register("sum_of_squares", _implementations(_squares_cpp, _squares_cuda, _squares_reference))
register("fused_step", _implementations(_step_cpp, _step_cuda, _step_reference))
