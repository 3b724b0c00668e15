"""Triton's interpreter as a memory and race checker.

    with checked(seed=1) as launches:
        ops.gram(J, backend="triton")

Within it, programs of a launch run in an order shuffled by `seed`, and these raise MemoryFault:
- a lane that is not masked is before the first or after the last element of every tensor of the launch, or its address
  is no multiple of its element's size;
- two programs write one byte, or one reads what another writes, unless both do so by atomics;
- two lanes of one store write different values to one place;
- without `tl.debug_barrier()` between, a program reads or overwrites what other lanes of it stored, or stores where
  other lanes have read: on a GPU these are other threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

Array = NDArray[Any]
NOBODY, SEVERAL = 0, -1  # programs count from 1
SEVERAL_LANES = (1 << 40) - 1
# What the interpreter does alone, so that a `checked` inside another takes its place.
PLAIN = {name: getattr(InterpreterBuilder, name) for name in dir(InterpreterBuilder)}
PREPARE = GridExecutor._init_args_hst


class MemoryFault(AssertionError):
    """A kernel would be wrong on a GPU, whatever it computed here."""


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses between a tensor's first and last element."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


class _Memory:
    """The bytes that one launch may touch, and which program touched each last."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        spans: list[list[int]] = []
        for start, end in sorted(map(_span, tensors)):
            if spans and start < spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], end)
            else:
                spans.append([start, end])
        starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
        self._starts, self._sizes = starts, ends - starts
        self._places = np.concatenate([[0], np.cumsum(self._sizes)])
        self.size = int(self._places[-1])
        self._writer, self._reader = (np.zeros(self.size, np.int32) for _ in range(2))
        self._by_atomics = np.zeros(self.size, bool)  # all that was written

    def locate(self, addresses: Array, size: int) -> Array:
        """Where the bytes at flat `addresses` are in the arrays above, [n, size]."""
        number = np.maximum(np.searchsorted(self._starts, addresses, side="right") - 1, 0)
        offset = addresses - self._starts[number]
        outside = (offset < 0) | (offset + size > self._sizes[number])
        if outside.any():
            raise MemoryFault(f"{outside.sum()} lanes outside every tensor of the launch")
        if (addresses % size != 0).any():
            raise MemoryFault(f"an address that is no multiple of the {size} bytes of its element")
        return (self._places[number] + offset)[:, None] + np.arange(size)

    def read(self, places: Array, program: int) -> None:
        self._refuse(self._writer[places], program, "reads what program {} wrote")
        reader = self._reader[places]
        self._reader[places] = np.where((reader == NOBODY) | (reader == program), program, SEVERAL)

    def write(self, places: Array, program: int) -> None:
        self._refuse(self._writer[places], program, "writes where program {} wrote")
        self._refuse(self._reader[places], program, "writes what program {} read")
        self._writer[places] = program

    def update(self, places: Array, program: int) -> None:
        """An atomic operation."""
        plain = ~self._by_atomics[places]
        self._refuse(np.where(plain, self._writer[places], NOBODY), program, "updates what program {} wrote")
        self._refuse(self._reader[places], program, "updates what program {} read")
        writer = self._writer[places]
        self._writer[places] = np.where((writer == NOBODY) | (writer == program), program, SEVERAL)
        self._by_atomics[places] = True

    @staticmethod
    def _refuse(owners: Array, program: int, what: str) -> None:
        others = owners[(owners != NOBODY) & (owners != program)]
        if len(others):
            raise MemoryFault(f"program {program} " + what.format("several" if others[0] == SEVERAL else others[0]))


class _Lanes:
    """Which lane of a program read or wrote a byte last since the program's last barrier.

    A lane is known by its place in a tensor and the tensor's shape: lanes of one place and shape are one thread's.
    """

    def __init__(self, size: int) -> None:
        self._now = 1 << 40  # what is less is from before the barrier
        self._readers, self._writers = (np.zeros(size, np.int64) for _ in range(2))
        self._shapes: dict[tuple[int, ...], int] = {}

    def barrier(self) -> None:
        self._now += 1 << 40

    def read(self, places: Array, lanes: Array) -> None:
        self._refuse(self._writers, places, lanes, "reads what other lanes wrote")
        before = self._readers[places]
        self._readers[places] = np.where((before < self._now) | (before == lanes), lanes, self._now + SEVERAL_LANES)
        self._readers[places[self._readers[places] != lanes]] = self._now + SEVERAL_LANES

    def write(self, places: Array, lanes: Array) -> None:
        self._refuse(self._readers, places, lanes, "writes what other lanes read")
        self._refuse(self._writers, places, lanes, "writes where other lanes wrote")
        self._writers[places] = lanes

    def names(self, lanes: Array, shape: tuple[int, ...]) -> Array:
        number = self._shapes.setdefault(shape, len(self._shapes))
        return (self._now + (number << 24) + lanes)[:, None]

    def _refuse(self, touched: Array, places: Array, lanes: Array, what: str) -> None:
        found = touched[places]
        if ((found >= self._now) & (found != lanes)).any():
            raise MemoryFault(f"a program {what}, without a tl.debug_barrier() between")


class _Watch:
    """The launch that runs, its programs in shuffled order."""

    def __init__(self, tensors: Sequence[Tensor], seed: int | None) -> None:
        self.memory, self._seed = _Memory(tensors), seed
        self._lanes = _Lanes(self.memory.size)
        self.programs: Array = np.empty((0, 3), int)
        self._started = 0

    def set_grid(self, grid: tuple[int, int, int]) -> None:
        self.programs = np.stack(np.unravel_index(np.arange(np.prod(grid)), grid), 1)
        if self._seed is not None:
            np.random.default_rng(self._seed).shuffle(self.programs)

    def next_program(self) -> tuple[int, ...]:
        self._lanes.barrier()
        self._started += 1
        return tuple(self.programs[self._started - 1].tolist())

    def barrier(self) -> None:
        self._lanes.barrier()

    def touch(self, how: str, pointers: TensorHandle, mask: Any, values: Any = None) -> None:
        addresses, live = np.broadcast_arrays(pointers.data, True if mask is None else mask.data)
        lanes = np.flatnonzero(live)
        if not len(lanes):
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        chosen = addresses.ravel()[lanes].astype(np.int64)
        places = self.memory.locate(chosen, size)
        if how == "write":
            self._check_duplicates(chosen, np.broadcast_to(values.data, addresses.shape).ravel()[lanes])
        getattr(self.memory, how)(places, self._started)
        if how != "update":
            getattr(self._lanes, how)(places, self._lanes.names(lanes, addresses.shape))

    @staticmethod
    def _check_duplicates(addresses: Array, values: Array) -> None:
        _, first, group = np.unique(addresses, return_index=True, return_inverse=True)
        if len(first) < len(addresses) and values.tobytes() != values[first][group].tobytes():
            raise MemoryFault("two lanes of one store write different values to one place")


def _tensors(arguments: Any) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _tensors(argument)
        elif hasattr(argument, "data_ptr"):
            yield argument


@contextmanager
def checked(seed: int | None = 0, also: Sequence[Tensor] = ()) -> Iterator[list[str]]:
    """The names of the kernels launched so far; `also`: tensors whose addresses are in a table that a kernel reads."""
    launched: list[str] = []
    watch: list[_Watch] = []

    def prepared(self: GridExecutor, arguments: Any, named: Any) -> Any:
        launched.append(self.fn.__name__)
        watch[:] = [_Watch([*_tensors(arguments), *_tensors(named.values()), *also], seed)]
        return PREPARE(self, arguments, named)

    def grid(self: Any, *size: int) -> None:
        watch[0].set_grid(size)
        PLAIN["set_grid_dim"](self, *size)

    def program(self: Any, *_: int) -> None:
        PLAIN["set_grid_idx"](self, *watch[0].next_program())

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        watch[0].touch("read", pointers, mask)
        return PLAIN["create_masked_load"](self, pointers, mask, *rest)

    def store(self: Any, pointers: Any, values: Any, mask: Any, *rest: Any) -> Any:
        watch[0].touch("write", pointers, mask, values)
        return PLAIN["create_masked_store"](self, pointers, values, mask, *rest)

    def update(self: Any, operation: Any, pointers: Any, values: Any, mask: Any, *rest: Any) -> Any:
        watch[0].touch("update", pointers, mask)
        return PLAIN["create_atomic_rmw"](self, operation, pointers, values, mask, *rest)

    def exchange(self: Any, pointers: Any, *rest: Any) -> Any:
        watch[0].touch("update", pointers, None)
        return PLAIN["create_atomic_cas"](self, pointers, *rest)

    def barrier(self: Any) -> None:
        watch[0].barrier()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridExecutor, "_init_args_hst", prepared)
        replaced = {"set_grid_dim": grid, "set_grid_idx": program, "create_masked_load": load}
        replaced |= {"create_masked_store": store, "create_atomic_rmw": update}
        replaced |= {"create_atomic_cas": exchange, "create_barrier": barrier}
        for name, function in replaced.items():
            patch.setattr(InterpreterBuilder, name, function)
        yield launched
