"""The communication of a step for several ranks.

Every loss is divided by the number of ranks before its backward, so that the sum of the gradients is that of the mean
loss. Replicated parameters: rows are sent one by one, each while the next task's backward runs. FSDP2: autograd has
already averaged the gradients, over copies of the model too (HSDP), and each rank has its shard.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..utils.phases import phase
from .arena import GradientArena
from .shards import is_shard, mesh_of, shard_group
from .single_process import SingleProcess

_RENAMED = {"reduce_scatter_single": "reduce_scatter_tensor", "all_gather_single": "all_gather_into_tensor"}


class Ranks(SingleProcess):
    """Base: losses, flags, and the gradients that the balancer does not combine (heads, and with loss methods all)."""

    _divides = False  # whether `reduce_others` divides by `size`, because `scaled` does not

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._model, self._group = model, group
        self._others: list[Tensor] = []
        self._before: list[Tensor | None] | None = None  # their `.grad` from before the step, already averaged
        self._agreed: dict[object, list[bool]] = {}
        self._looked = False  # whether a step has checked that no wrapper averages too

    def __reduce__(self) -> tuple[type[SingleProcess], tuple[()]]:
        # Groups belong to this process: a copy of the balancer is not distributed until `distribute` is called.
        return SingleProcess, ()

    def begin(self, written: Iterable[Tensor], learned: Iterable[Tensor]) -> None:
        if self._before is not None:
            return
        if not self._looked:
            if any(wrapper.require_backward_grad_sync for wrapper in wrappers(self._model)):
                raise RuntimeError(
                    "DistributedDataParallel wrapped this model after balancer.distribute(...) and would average its "
                    "gradients too. Wrap it first, or do not use the wrapper."
                )
            self._looked = True
        ids = {id(parameter) for parameter in written}
        mine = {id(p): p for p in (*self._model.parameters(), *learned) if p.requires_grad and id(p) not in ids}
        self._others = [parameter for parameter in mine.values() if not is_shard(parameter)]
        self._before = [parameter.grad for parameter in self._others]
        for parameter in self._others:
            parameter.grad = None

    def abort(self) -> None:
        if self._before is not None:
            for parameter, grad in zip(self._others, self._before, strict=True):
                parameter.grad = grad
        self._others, self._before = [], None

    @phase("communication")
    @torch.no_grad()
    def reduce_others(self) -> None:
        assert self._before is not None
        flags = self.agree(tuple(map(id, self._others)), [p.grad is not None for p in self._others])
        chosen = [parameter for parameter, flag in zip(self._others, flags, strict=True) if flag]
        for dtype in dict.fromkeys(parameter.dtype for parameter in chosen):
            some = [parameter for parameter in chosen if parameter.dtype == dtype]
            flat = torch.cat([_dense_gradient(parameter).flatten() for parameter in some])
            dist.all_reduce(flat, group=self._group)
            if self._divides:
                flat /= self.size
            for parameter, part in zip(some, flat.split([p.numel() for p in some]), strict=True):
                parameter.grad = torch.empty_like(parameter).copy_(part.view_as(parameter))
        for parameter, before in zip(self._others, self._before, strict=True):
            if before is not None:
                if parameter.grad is not None:
                    before += parameter.grad
                parameter.grad = before
        self._others, self._before = [], None

    @phase("communication")
    def losses(self, losses: dict[str, Tensor], active: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
        values = torch.stack([loss.detach().reshape(()).double() for loss in losses.values()]) / self.size
        flags = torch.zeros_like(values) if active is None else active.to(values)
        both = torch.cat([values, flags])
        dist.all_reduce(both, group=self._group)
        values, flags = both.chunk(2)
        seen = {name: _Valued.apply(loss, value) for (name, loss), value in zip(losses.items(), values, strict=True)}
        return seen, None if active is None else flags > 0

    def scaled(self, loss: Tensor, scale: Tensor | float | None) -> Tensor:
        return loss * ((1.0 if scale is None else scale) / self.size)

    def mean(self, gradients: Tensor) -> Tensor:
        return self.total(gradients / self.size)

    @phase("communication")
    def total(self, gradients: Tensor) -> Tensor:
        dist.all_reduce(gradients, group=self._group)
        return gradients

    @phase("communication")
    def sum(self, values: Tensor) -> Tensor:
        values = values.contiguous()
        dist.all_reduce(values, group=self._group)
        return values

    def agree(self, key: object, flags: list[bool]) -> list[bool]:
        """Communicates once for each `key`: at every step it would make the host wait for the device."""
        if key not in self._agreed:
            device = next(self._model.parameters()).device
            seen = torch.tensor(flags, dtype=torch.int32, device=device)
            if len(flags):
                dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=self._group)
            self._agreed = {**dict(list(self._agreed.items())[-3:]), key: [bool(flag) for flag in seen.tolist()]}
        agreed = self._agreed[key]
        if any(flag and not known for flag, known in zip(flags, agreed, strict=True)):
            raise RuntimeError(
                f"rank {self.rank}: a parameter has a gradient that no rank had in the first step with these "
                "parameters. All tasks must reach the same parameters at every step: give a task without labels the "
                "loss `0.0 * output.sum()`, or call `distribute` again on all ranks when the model's graph changes."
            )
        return agreed


class Replicated(Ranks):
    """Every rank has all parameters; every row is summed over the ranks in place."""

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None, overlap: bool) -> None:
        super().__init__(model, group)
        self._overlap = overlap
        self._under_way: dict[int, dist.Work] = {}

    def abort(self) -> None:
        for work in self._under_way.values():
            work.wait()
        self._under_way = {}
        super().abort()

    def launch(self, arena: GradientArena, task: int) -> None:
        work = self._send(arena.complete_row(task), task, arena)
        if self._overlap:
            self._under_way[task] = work
        else:
            work.wait()

    @phase("communication")
    def collect(self, arena: GradientArena) -> Tensor:
        for work in self._under_way.values():
            work.wait()
        self._under_way = {}
        return self._collected(arena)

    @phase("communication")
    def copied(self, arena: GradientArena) -> Tensor:
        rows = arena.complete().clone()
        dist.all_reduce(rows, group=self._group)
        return rows

    def _send(self, row: Tensor, task: int, arena: GradientArena) -> dist.Work:
        return collective("all_reduce")(row, group=self._group, async_op=True)

    def _collected(self, arena: GradientArena) -> Tensor:
        return arena.complete()


class Scattered(Replicated):
    """Each rank gets the sums of its share of the columns and combines those: sends (K+1) P numbers, not 2 K P."""

    splits = True

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None, overlap: bool) -> None:
        super().__init__(model, group, overlap)
        self._shares: Tensor | None = None  # [K, P / size]

    def offset(self) -> int:
        return 0 if self._shares is None else self.rank * self._shares.shape[1]

    def release(self) -> None:
        self._shares = None

    @phase("communication")
    def copied(self, arena: GradientArena) -> Tensor:
        rows = arena.complete()
        shares = rows.new_empty(rows.shape[0], rows.shape[1] // self.size)
        for row, share in zip(rows, shares, strict=True):
            collective("reduce_scatter_single")(share, row, group=self._group)
        return shares

    @phase("communication")
    def spread(self, flat: Tensor) -> Tensor:
        whole = flat.new_empty(flat.shape[0] * self.size)
        collective("all_gather_single")(whole, flat, group=self._group)
        return whole

    def _send(self, row: Tensor, task: int, arena: GradientArena) -> dist.Work:
        assert arena.rows is not None
        rows, shape = arena.rows, (arena.rows.shape[0], arena.rows.shape[1] // self.size)
        if self._shares is None or self._shares.shape != shape or self._shares.dtype != rows.dtype:
            self._shares = rows.new_empty(shape)
        return collective("reduce_scatter_single")(self._shares[task], row, group=self._group, async_op=True)

    def _collected(self, arena: GradientArena) -> Tensor:
        assert self._shares is not None
        return self._shares


class Sharded(Ranks):
    """FSDP2: rows are this rank's shards, averaged by FSDP2 itself; a K x K sum makes their Gram matrix exact."""

    splits = shards_parameters = True
    _divides = True

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None) -> None:
        super().__init__(model, group)
        self._shards = shard_group(mesh_of(model.parameters()))

    def begin(self, written: Iterable[Tensor], learned: Iterable[Tensor]) -> None:
        written = list(written)
        whole = [parameter for parameter in written if not is_shard(parameter)]
        if whole:
            raise ValueError(
                f"`shared` must hold FSDP2's sharded parameters; got a full one, {list(whole[0].shape)}. Make the list "
                "once, before the first forward pass: FSDP2 replaces them by full ones until the backward has ended."
            )
        super().begin(written, learned)

    def scaled(self, loss: Tensor, scale: Tensor | float | None) -> Tensor:
        return SingleProcess.scaled(self, loss, scale)

    @phase("communication")
    def sum(self, values: Tensor) -> Tensor:
        values = values.contiguous()
        dist.all_reduce(values, group=self._shards)  # of one copy of the model: all copies have the same gradients
        return values

    def offset(self) -> int:
        return dist.get_rank(self._shards) << 40  # never a column of another rank; the same in every copy


def wrappers(model: nn.Module) -> list[DistributedDataParallel]:
    """The DistributedDataParallel modules that hold a parameter of `model`, inside it or around it. A module has no
    reference to a wrapper around it."""
    mine = {id(parameter) for parameter in model.parameters()}
    # An object refers to its class. Checking every object would take several times as long.
    referrers = gc.get_referrers(*_with_subclasses(DistributedDataParallel))
    alive = [thing for thing in referrers if issubclass(type(thing), DistributedDataParallel)]
    whole = [wrapper for wrapper in alive if "_modules" in vars(wrapper)]
    return [wrapper for wrapper in whole if any(id(parameter) in mine for parameter in wrapper.parameters())]


def _with_subclasses(kind: type) -> list[type]:
    return [kind, *(below for child in kind.__subclasses__() for below in _with_subclasses(child))]


class _Valued(torch.autograd.Function):
    """The same value on every rank, with this rank's graph."""

    @staticmethod
    def forward(ctx, loss: Tensor, value: Tensor) -> Tensor:
        return value.to(loss.dtype).reshape(loss.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        return gradient, None


def collective(name: str) -> Callable[..., dist.Work]:
    """The torch.distributed function `name`; torch 2.13 renamed some and warns about the old names."""
    return getattr(dist, name, None) or getattr(dist, _RENAMED[name])


def _dense_gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad if parameter.grad.layout == torch.strided else parameter.grad.to_dense()
