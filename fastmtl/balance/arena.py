"""The gradient arena: K rows of shared-parameter gradients, each filled in one call after its task's backward.

The P columns hold the shared parameters one after another, each in its own memory order and on a 64-byte boundary, so
that copies are contiguous and every parameter's slice is aligned. The padding between them stays zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16  # elements


class GradientArena:
    """Rows [K, P] of the gradients of K tasks with respect to the shared parameters.

    `open` removes the shared `.grad`s during one `backward` of a balancer, `take` moves the `.grad`s of one task's
    backward to its row, the balancer reads `rows`, and `write` adds the combined gradient to `.grad`. The buffer is
    kept between steps and allocated again when the set of parameters changes.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None  # [K, P] float32, or float64 if every parameter is
        self.shares = 1  # number of ranks that divide the columns; P is a multiple of 16 times this
        self._parameters: list[Tensor] = []
        self._slots: list[Slot] = []
        self._views: list[list[Tensor]] = []  # [K][number of slots]: each parameter's slice of each row
        self._reached: list[set[int]] = []  # [K]: the slots written since `clear`
        self._stale: list[set[int]] = []  # [K]: the slots that are not zero
        self._key: tuple[Any, ...] = ()
        self._recorded = False  # whether the rows hold a micro-batch that is not yet written

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, because the rows belong to this process's parameters: copies and unpickled arenas start empty."""
        return {}

    def __setstate__(self, _state: dict[str, Any]) -> None:
        self.__init__()

    @contextmanager
    def open(self, shared: Iterable[Tensor], num_tasks: int) -> Iterator[None]:
        """Prepare for `num_tasks` calls of `take`. Inside, every shared `.grad` is None; on exit it is restored.

        Raises:
            TypeError, ValueError: `shared` has no trainable leaf, or leaves on several devices.
        """
        self._lay(shared, num_tasks)
        before = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        try:
            yield
        except BaseException:
            self.clear()
            raise
        finally:
            for parameter, grad in zip(self._parameters, before, strict=True):
                parameter.grad = grad

    def take(self, task: int) -> bool:
        """Move the `.grad`s that a backward left to row `task`; returns whether there were any."""
        found = {}
        for place, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                found[place] = parameter.grad.detach()
                parameter.grad = None
        self.store(task, found)
        return bool(found)

    @torch.no_grad()
    def store(self, task: int, gradients: Mapping[int, Tensor]) -> None:
        """Write the gradients of the parameters at these places to row `task`; add those of a later micro-batch."""
        self._recorded = True
        views, written = self._views[task], self._reached[task]
        later = [place for place in gradients if place in written]
        first = [place for place in gradients if place not in written]
        if later:
            torch._foreach_add_([views[p] for p in later], [_dense(gradients[p], views[p]) for p in later])  # pyright: ignore[reportPrivateImportUsage]
        if first:
            torch._foreach_copy_([views[p] for p in first], [_dense(gradients[p], views[p]) for p in first])  # pyright: ignore[reportPrivateImportUsage]
        written.update(first)
        self._stale[task].update(first)

    def complete(self) -> Tensor:
        """The rows [K, P], with zeros where a task did not reach a parameter."""
        assert self.rows is not None
        for task in range(len(self.rows)):
            self.complete_row(task)
        return self.rows

    def complete_row(self, task: int) -> Tensor:
        """Row `task` [P] with zeros where the task did not reach a parameter."""
        assert self.rows is not None
        if unreached := self._stale[task] - self._reached[task]:
            torch._foreach_zero_([self._views[task][place] for place in unreached])  # pyright: ignore[reportPrivateImportUsage]
            self._stale[task] -= unreached
        return self.rows[task]

    @property
    def parameters(self) -> list[Tensor]:
        """The trainable shared parameters, in the order of the columns."""
        return self._parameters

    @property
    def slots(self) -> list[Slot]:
        """The position of each parameter in a row; valid until the layout changes."""
        return self._slots

    @property
    def layout(self) -> tuple[Any, ...]:
        """A key that changes when the set of parameters changes."""
        return self._key

    def reached(self) -> list[bool]:
        """Which parameters some task has reached since `clear`."""
        seen = set().union(*self._reached)
        return [place in seen for place in range(len(self._slots))]

    def write(self, flat: Tensor, reached: list[bool]) -> None:
        """Add the combined gradient [P] to the `.grad` of the `reached` parameters; if it was None, set a view."""
        for parameter, slot, seen in zip(self._parameters, self._slots, reached, strict=True):
            if not seen:
                continue
            gradient = slot.view(flat)
            if parameter.grad is None:
                parameter.grad = _like(parameter, gradient.to(parameter.dtype))
            else:
                local(parameter.grad).add_(gradient)

    def places(self, reached: list[bool]) -> Iterator[tuple[Tensor, int | None]]:
        """Each of the `reached` parameters and its first column; None instead of the column if it is not dense."""
        for parameter, slot, seen in zip(self._parameters, self._slots, reached, strict=True):
            if seen:
                yield parameter, slot.offset if slot.stride == parameter.stride() else None

    def clear(self) -> None:
        """Discard what was recorded: the next gradient of each row overwrites it."""
        self._recorded = False
        for places in self._reached:
            places.clear()

    def _lay(self, shared: Iterable[Tensor], num_tasks: int) -> None:
        parameters = _trainable(shared)
        locals_ = [local(parameter) for parameter in parameters]
        own = ((id(p), q.shape, q.stride(), q.dtype, q.device) for p, q in zip(parameters, locals_, strict=True))
        key = (num_tasks, self.shares, *own)
        if key == self._key:
            return
        if self._recorded:
            raise ValueError(
                "`shared` must hold the same trainable parameters in every micro-batch of a step; they changed before "
                "last=True. Freeze or unfreeze between steps."
            )
        dtype = torch.float64 if all(p.dtype == torch.float64 for p in parameters) else torch.float32
        slots, end = [], 0
        for parameter in locals_:
            slots.append(Slot(parameter, end))
            end += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        share = _ALIGNMENT * self.shares
        end = max(-(-end // share), 1) * share  # an FSDP2 rank may hold no columns
        self._key, self._parameters, self._slots = (), parameters, slots
        self.rows, self._views = None, []  # free the old rows first, so that two arenas are never allocated at once
        self.rows = torch.zeros(num_tasks, end, dtype=dtype, device=parameters[0].device)
        self._views = [[slot.view(row) for slot in slots] for row in self.rows]
        self._reached, self._stale = ([set() for _ in range(num_tasks)] for _ in range(2))
        self._key = key


class Slot:
    """The position of one parameter in a row."""

    def __init__(self, parameter: Tensor, offset: int) -> None:
        # The memory order of a dense parameter, for example channels_last: its gradient has the same order, and
        # optimizers expect it.
        self.size = parameter.size()
        dense = is_dense(self.size, parameter.stride())
        self.stride = parameter.stride() if dense else torch.empty(self.size, device="meta").stride()
        self.offset = offset

    def view(self, row: Tensor) -> Tensor:
        """The parameter's slice of a row [P], in the parameter's shape."""
        return row.as_strided(self.size, self.stride, row.storage_offset() + self.offset)


def _dense(gradient: Tensor, view: Tensor) -> Tensor:
    """This rank's gradient with `view`'s strides if it has its memory order: one with others makes
    `torch._foreach_copy_` copy all of them one by one."""
    gradient = local(gradient if gradient.layout == torch.strided else gradient.to_dense())
    if gradient.stride() != view.stride() and same_order(gradient, view):
        return gradient.as_strided(view.size(), view.stride())
    return gradient


@lru_cache(maxsize=1024)
def is_dense(size: torch.Size, stride: tuple[int, ...]) -> bool:
    """Whether a tensor fills its memory without gaps or overlaps, in any order of its dimensions."""
    parameter = torch.empty_strided(size, stride, device="meta")
    return same_order(parameter, torch.empty_like(parameter))


def same_order(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of the same shape have the same memory order."""
    if a.layout != torch.strided:
        return False
    if a.stride() == b.stride():
        return True
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(x == y for size, x, y in strides if size > 1)  # the stride of a dimension of size 1 has no effect


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor (FSDP2); any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """This rank's gradient in the type of the parameter's `.grad`: a DTensor under FSDP2."""
    if not hasattr(parameter, "to_local"):
        return gradient
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(
        gradient, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def as_list(shared: Iterable[Tensor]) -> list[Tensor]:
    """`shared` as a list, because a generator can be read only once."""
    if isinstance(shared, Tensor):
        raise TypeError("`shared` must be an iterable of parameters; got one tensor. Pass [parameter].")
    if not isinstance(shared, Iterable):
        raise TypeError(f"`shared` must hold parameters; got {type(shared).__name__}. Pass module.parameters().")
    return list(shared)


def _trainable(shared: Iterable[Tensor]) -> list[Tensor]:
    """The parameters to balance: each one once, without frozen ones."""
    parameters: dict[int, Tensor] = {}
    given = 0
    for parameter in as_list(shared):
        given += 1
        if not isinstance(parameter, Tensor):
            raise TypeError(f"`shared` must hold parameters; got {type(parameter).__name__}. Pass module.parameters().")
        if not parameter.is_leaf:
            raise ValueError(
                f"`shared` must hold leaf tensors; got a {list(parameter.shape)} result of an operation. Pass the "
                "parameters, not activations or views of them."
            )
        if parameter.requires_grad:
            parameters[id(parameter)] = parameter
    if not parameters:
        found = f"{given} frozen ones" if given else "none (a generator can be read only once)"
        raise ValueError(f"`shared` must hold at least one parameter with requires_grad; got {found}.")
    devices = {str(parameter.device) for parameter in parameters.values()}
    if len(devices) > 1:
        raise ValueError(f"`shared` must be on one device; got {', '.join(sorted(devices))}.")
    if devices == {"meta"}:
        raise ValueError("`shared` must not be on the meta device. Materialise the model first (`to_empty`).")
    complex_ones = [parameter for parameter in parameters.values() if not parameter.is_floating_point()]
    if complex_ones:
        raise ValueError(f"`shared` must be floating point; got {complex_ones[0].dtype}.")
    return list(parameters.values())
