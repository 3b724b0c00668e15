"""The checker of Triton launches finds each kind of fault, in small kernels that are broken on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers.op_backends import needs_interpreter

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from helpers.triton_checks import checked  # noqa: E402
from triton.runtime.errors import InterpreterError  # noqa: E402

pytestmark = needs_interpreter
BLOCK = 8


@triton.jit
def copy_kernel(x, out, n, SHIFT: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < n if MASKED else i >= 0
    tl.store(out + i, tl.load(x + i + SHIFT, mask=there), mask=there)


@triton.jit
def count_kernel(out, ATOMIC: tl.constexpr):
    i = tl.arange(0, 4)
    if ATOMIC:
        tl.atomic_add(out + i, 1, sem="relaxed")
    else:
        tl.store(out + i, 1)


@triton.jit
def lanes_kernel(out, DIFFERENT: tl.constexpr):
    i = tl.arange(0, 4)
    tl.store(out + i // 2, i * DIFFERENT)


@triton.jit
def chain_kernel(out):
    """Each program continues from the one before it."""
    program = tl.program_id(0)
    tl.store(out + program + 1, tl.load(out + program) + 1)


@triton.jit
def reverse_kernel(x, READ: tl.constexpr, WRITTEN: tl.constexpr):
    """In place, with a barrier after the read, and one after the write."""
    i = tl.arange(0, 8)
    value = tl.load(x + i)
    if READ:
        tl.debug_barrier()
    tl.store(x + 7 - i, value)
    if WRITTEN:
        tl.debug_barrier()
    tl.store(x + i, tl.load(x + i) + 1)


@triton.jit
def odd_kernel(x, out):
    tl.store(out, tl.load((x + 1).to(tl.pointer_type(tl.int32))))


@triton.jit
def sum_kernel(x, out):
    tl.atomic_add(out, tl.load(x + tl.program_id(0)), sem="relaxed")


@triton.jit
def table_kernel(table, out):
    tl.store(out, tl.load(tl.load(table).to(tl.pointer_type(tl.int32))))


@contextmanager
def fault(match: str) -> Iterator[None]:
    with checked(), pytest.raises(InterpreterError, match=f"MemoryFault.*{match}"):
        yield


def whole(size: int, value: int = 0) -> torch.Tensor:
    return torch.full((size,), value, dtype=torch.int32)


def copy(x: torch.Tensor, out: torch.Tensor, n: int, shift: int = 0, masked: bool = True) -> None:
    copy_kernel[(2,)](x, out, n, SHIFT=shift, MASKED=masked, BLOCK=BLOCK)


def test_sound_kernels_pass_in_any_order():
    x = torch.arange(13, dtype=torch.int32)
    for seed in (None, 0, 1):
        with checked(seed) as launched:
            copy(x, copied := whole(13), 13)
            count_kernel[(6,)](counts := whole(4), ATOMIC=True)
            lanes_kernel[(1,)](whole(2), DIFFERENT=0)
            reverse_kernel[(1,)](turned := x[:8].clone(), READ=True, WRITTEN=True)
        assert torch.equal(copied, x)
        assert torch.equal(counts, whole(4, 6))
        assert torch.equal(turned, x[:8].flip(0) + 1)
        assert launched == ["copy_kernel", "count_kernel", "lanes_kernel", "reverse_kernel"]


@pytest.mark.parametrize(("shift", "masked", "length"), [(0, False, 16), (3, True, 13), (-1, True, 13), (0, True, 12)])
def test_a_lane_outside_of_a_tensor(shift, masked, length):
    """Also where its memory exists, as here: the tensors are parts of larger ones."""
    x, out = torch.arange(100, dtype=torch.int32)[40:53], whole(100)[20 : 20 + length]
    with fault("outside every tensor"):
        copy(x, out, 13, shift, masked)


def test_memory_behind_an_address_in_a_table():
    x, out = whole(1, 7), whole(1)
    table = torch.tensor([x.data_ptr()])
    with checked(also=[x]):
        table_kernel[(1,)](table, out)
    assert out.item() == 7
    with fault("outside every tensor"):
        table_kernel[(1,)](table, out)


def test_an_address_that_is_not_aligned():
    with fault("no multiple of the 4 bytes"):
        odd_kernel[(1,)](torch.zeros(8, dtype=torch.uint8), whole(1))


def test_two_programs_at_one_place():
    with fault("writes where program . wrote"):
        count_kernel[(2,)](whole(4), ATOMIC=False)
    with fault("reads what program . wrote|writes what program . read"):
        chain_kernel[(3,)](whole(4))


def test_two_lanes_at_one_place():
    with fault("different values to one place"):
        lanes_kernel[(1,)](whole(2), DIFFERENT=1)


@pytest.mark.parametrize(
    ("read", "written", "what"),
    [(False, True, "writes what other lanes read"), (True, False, "reads what other lanes")],
)
def test_a_missing_barrier(read, written, what):
    with fault(what):
        reverse_kernel[(1,)](whole(8), READ=read, WRITTEN=written)


def test_a_result_that_depends_on_the_order_of_programs():
    x, found = torch.tensor([1e8, 1.0, -1e8, 1.0]), set()
    for seed in range(6):
        with checked(seed):
            sum_kernel[(4,)](x, out := torch.zeros(1))
        found.add(out.item())
    assert len(found) > 1
