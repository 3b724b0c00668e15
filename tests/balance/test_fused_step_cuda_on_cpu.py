"""fused_step.cu, run on the CPU under AddressSanitizer and UBSan, equals its definition bit for bit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
from helpers.asserts import assert_bit_equal
from helpers.cuda_on_cpu import ENTRY, compiled, ends_with, needs_sanitizers, planted, run_checks, without_devices
from helpers.op_backends import needs_cpp
from helpers.paths import ROOT
from torch import Tensor

from fastmtl.ops.gradients import fused_step
from fastmtl.ops.gradients.fused_step import ADAM, ADAMW, SGD, Group, Move, Step

SOURCE = (ROOT / "csrc" / "gradients" / "fused_step.cu").read_text(encoding="utf-8")
# As csrc/bindings/gradients.cpp.
BINDINGS = f"""
using std::int64_t;
{ENTRY} int fused_step_cuda(const int64_t* t, const int64_t* r, const float* const* rates, const double* factor,
                            const float* skip, void* stream) {{
  const auto at = [](int64_t address) {{ return reinterpret_cast<const void*>(address); }};
  const fastmtl::Step step = {{static_cast<const fastmtl::Segment*>(at(t[0])), t[1],
    static_cast<const fastmtl::Group*>(at(t[2])), t[3] != 0, at(r[0]), static_cast<fastmtl::Element>(r[1]), r[2], r[3],
    at(r[4])}};
  return fastmtl::fused_step_cuda(step, rates, factor, skip, stream);
}}
{ENTRY} int sum_of_squares_cuda(const fastmtl::Segment* segments, int64_t n, bool wide, double* partials, double* sum,
                                void* stream) {{
  return fastmtl::sum_of_squares_cuda(segments, n, wide, partials, sum, stream);
}}
"""
GROUPS = (
    Group(ADAMW, 1e-2, 0.1, 0.9, 0.999, 1e-8),
    Group(ADAM, torch.tensor(3e-2), 0.1, 0.8, 0.99, 1e-8),
    Group(SGD, 1e-2, 0.1, 0.0, 0.0),
    Group(SGD, 1e-2, 0.0, 0.9, 0.3),
    Group(SGD, 1e-2, 0.1, 0.9, 0.0, nesterov=True),
)
SIZES = (1, 3, 4, 1027, 16 * 1024 + 6)


@pytest.mark.long
@needs_cpp
@needs_sanitizers
def test_under_the_sanitizers():
    run_checks(__file__)


@cache
def library(source: str = SOURCE, *options: str) -> ctypes.CDLL:
    return compiled(source + BINDINGS, *options)


def extension_of(kernels: ctypes.CDLL) -> SimpleNamespace:
    """What fastmtl._C has of the source."""
    pointer = ctypes.c_void_p

    def sum_of_squares(segments: int, n: int, wide: bool, partials: int, total: int, stream: int) -> None:
        arguments = pointer(segments), ctypes.c_int64(n), ctypes.c_bool(wide), pointer(partials), pointer(total)
        assert kernels.sum_of_squares_cuda(*arguments, pointer(stream)) == 0

    def step(table: list[int], rows: list[int], rates: int, factor: int, skip: int, stream: int) -> None:
        lists = (ctypes.c_int64 * 4)(*table), (ctypes.c_int64 * 5)(*rows)
        assert kernels.fused_step_cuda(*lists, *(pointer(value) for value in (rates, factor, skip, stream))) == 0

    return SimpleNamespace(sum_of_squares_cuda=sum_of_squares, fused_step_cuda=step)


@pytest.fixture
def use(monkeypatch, poisoned_memory) -> Callable[..., None]:
    """Choose the kernels, and the order of their blocks and threads."""
    without_devices(monkeypatch)

    def use(kernels: ctypes.CDLL, seed: int) -> None:
        kernels.seed(seed)
        monkeypatch.setattr(fused_step, "extension", lambda: extension_of(kernels))

    return use


@pytest.fixture
def launch(use) -> Callable[..., None]:
    def launch(step: Step, kernels: ctypes.CDLL | None = None, seed: int = 0) -> None:
        use(kernels or library(), seed)
        fused_step._step_cuda(step)

    return launch


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32, first: int = 0) -> Tensor:
    """Multiples of 1/64, so that sums of a few of them are exact; misaligned with `first` = 1."""
    size = int(torch.Size(shape).numel())
    drawn = torch.randint(-64, 64, (size,), generator=torch.Generator().manual_seed(seed)) / 64
    return torch.cat([torch.zeros(first), drawn]).to(dtype)[first:].view(shape)


def problem(
    dtype: torch.dtype = torch.float32, rows: torch.dtype | None = None, K: int = 3, first: int = 0, skip: float = 0.0
) -> Step:
    """Every rule on tensors of several sizes; with gradients of their own, or from rows of dtype `rows`."""
    moves, column, seed = [], 0, 0
    for number, group in enumerate(GROUPS):
        for size in SIZES if number in (0, 4) else SIZES[:-1]:
            seed += 5
            p, m, v = (numbers(size, seed=seed + i, dtype=dtype, first=first) for i in range(3))
            has_first = group.rule != SGD or group.beta1 > 0
            step = torch.tensor(float(seed % 3)) if group.rule != SGD or group.beta2 > 0 else None
            gradient = numbers(size, seed=seed + 3, dtype=dtype, first=first) if rows is None else column
            column += size
            v = v.abs() if group.rule != SGD else None
            moves.append(Move(p, m if has_first else None, v, step, gradient, number))
    J = w = None
    if rows is not None:
        J = numbers(K, column + 8, seed=1, dtype=rows, first=first)[:, :column]
        w = torch.arange(1, K + 1, dtype=dtype) / 8
    return Step(moves, GROUPS, torch.tensor(0.3, dtype=torch.float64), torch.tensor(skip), J, w)


def state(step: Step) -> list[Tensor]:
    held = [tensor for move in step.moves for tensor in (move.parameter, move.first, move.second, move.step)]
    return [tensor for tensor in held if tensor is not None]


def assert_as_defined(launch: Callable[..., None], make: Callable[[], Step]) -> None:
    wanted = make()
    groups = [replace(group, lr=float(group.lr)) for group in wanted.groups]
    fused_step._step_cpp(replace(wanted, groups=groups))
    for seed in (0, 1):
        launch(found := make(), seed=seed)
        assert_bit_equal([state(found), state(wanted)])


@pytest.mark.parametrize("first", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def check_gradients_of_their_own(launch, dtype, first):
    assert_as_defined(launch, lambda: problem(dtype, first=first))


@pytest.mark.parametrize("K", [1, 5])
@pytest.mark.parametrize("rows", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def check_gradients_in_rows(launch, rows, K):
    dtype = torch.promote_types(rows, torch.float32)
    assert_as_defined(launch, lambda: problem(dtype, rows, K, first=int(K == 5)))


def check_a_skipped_step_changes_nothing(launch):
    launch(step := problem(skip=1.0))
    assert_bit_equal([state(step), state(problem())])


def check_more_tensors_and_groups_than_one_launch_holds(launch):
    def make() -> Step:
        tensors = [numbers(number % 7 + 1, seed=number) for number in range(110)]
        moves = [Move(p, None, None, None, p.clone(), max(number - 80, 0)) for number, p in enumerate(tensors)]
        groups = [Group(SGD, 2.0**-number, 0.0, 0.0, 0.0) for number in range(30)]
        return Step(moves, groups, torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0))

    assert_as_defined(partial(launch, kernels=faulty()), make)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def check_sums_of_squares(use, dtype):
    gradients = [numbers(size, seed=size, dtype=dtype, first=first) for size in SIZES for first in (0, 1)]
    found = []
    for seed in range(3):
        use(library(), seed)
        found.append((fused_step._squares_cuda(gradients),))
    assert_bit_equal(found)
    torch.testing.assert_close(found[0][0], fused_step._squares_reference(gradients), rtol=1e-14, atol=0)


FAULTS = (
    ("  __syncthreads();\n  const std", "  if (fault != 1) __syncthreads();\n  const std"),
    ("if (threadIdx.x < K) w[", "if (threadIdx.x < K - (fault == 2)) w["),
    ("  __syncthreads();\n  double sum", "  if (fault != 3 || threadIdx.x != 5) __syncthreads();\n  double sum"),
    ("partials[blockIdx.x] = sum", "partials[blockIdx.x + (fault == 4)] = sum"),
    ("if (odd == 0 && rows_aligned)", "if (fault == 5 || (odd == 0 && rows_aligned))"),
)


def faulty() -> ctypes.CDLL:
    """The source with a switch for each fault, and with the small tables of CUDA 12.0."""
    source = f"static int fault = 0;\n{ENTRY} void plant(int which) {{ fault = which; }}\n{SOURCE}"
    for old, new in FAULTS:
        source = planted(source, old, new)
    return library(source, "-DCUDART_VERSION=12000")


def check_faults_are_found(launch, use):
    kernels = faulty()

    def step(first: int = 0) -> list[Tensor]:
        launch(made := problem(rows=torch.float32, first=first), kernels=kernels)
        return state(made)

    def squares() -> None:
        use(kernels, 0)
        fused_step._squares_cuda([numbers(40_000, seed=0)])

    assert all(tensor.isfinite().all() for tensor in step())
    assert ends_with(squares) == ""
    for unsynchronised_or_uninitialised in (1, 2):
        kernels.plant(unsynchronised_or_uninitialised)
        assert any(tensor.isnan().any() for tensor in step())
    kernels.plant(3)
    assert "not all threads reach the barrier" in ends_with(squares)
    kernels.plant(4)
    assert "heap-buffer-overflow" in ends_with(squares)
    kernels.plant(5)
    assert "misaligned address" in ends_with(lambda: step(first=1))
    kernels.plant(0)
