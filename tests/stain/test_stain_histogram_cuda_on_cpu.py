"""The CUDA C++ of stain_histogram_cupy.py, run on the CPU under AddressSanitizer and UBSan, counts as NumPy does."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cuda_on_cpu import ENTRY, compiled, ends_with, needs_sanitizers, planted, run_checks, without_devices
from helpers.stain import tissue
from numpy.typing import NDArray
from torch import Tensor

from fastmtl.kernels import stain_histogram_cupy as kernels
from fastmtl.ops.stain import backends
from fastmtl.ops.stain.backends import GpuPasses
from fastmtl.ops.stain.passes import ANGLE_BINS, CONCENTRATION_BINS, Mask
from fastmtl.ops.stain.pixels import Pixels

Array = NDArray[Any]
TABLE = torch.linspace(8.0, 0.0, 256)
MASKS = (Mask(0), Mask(1, 200), Mask(2, 150), Mask(3, tables=torch.rand(2, 3, 256), threshold=1.4))


@pytest.mark.long
@needs_sanitizers
def test_under_the_sanitizers():
    run_checks(__file__)


@cache
def library(source: str, *options: str) -> ctypes.CDLL:
    names = re.findall(r"__global__ void (\w+)\(", source)
    entries = "".join(
        f"""
{ENTRY} void launch_{name}(unsigned across, unsigned down, unsigned threads, std::size_t shared, void** values,
                           const std::size_t* sizes, std::size_t count) {{
  cuda_on_cpu::Launch({{across, down}}, threads, shared).packed({name}, {{values, sizes, count}});
}}"""
        for name in names
    )
    return compiled(source + entries, *options)


class Kernel:
    """As a kernel of CuPy."""

    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._launch = getattr(library, f"launch_{name}")

    def __call__(self, grid: tuple[int, int], block: tuple[int], values: Sequence[Any], shared_mem: int) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        arrays = [np.array([value]) for value in values]
        addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        sizes = (ctypes.c_size_t * len(arrays))(*(array.itemsize for array in arrays))
        self._launch(*grid, *block, ctypes.c_size_t(shared_mem), addresses, sizes, ctypes.c_size_t(len(arrays)))


class Context:
    """As CuPy's device and stream."""

    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...


@pytest.fixture
def passes(monkeypatch, poisoned_memory) -> Callable[..., GpuPasses]:
    """The passes of a GPU in three blocks an image, with `source` for its kernels."""
    without_devices(monkeypatch)
    monkeypatch.setattr(backends, "_blocks", lambda pixels: 3)

    def passes(source: str = kernels.SOURCE, seed: int = 0) -> GpuPasses:
        def module(code: str, options: tuple[str, ...]) -> SimpleNamespace:
            made = library(source, *(option for option in options if option.startswith("-D")))
            made.seed(seed)
            return SimpleNamespace(get_function=lambda name: Kernel(made, name))

        cuda = SimpleNamespace(ExternalStream=Context, Device=Context)
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=module, cuda=cuda))
        kernels._kernel.cache_clear()
        made = GpuPasses()
        made._launch = kernels.launch
        return made

    return passes


def images() -> list[Pixels]:
    """Of 700 pixels, several for each thread: planes, interleaved pixels, rows of a larger image."""
    whole = torch.cat([tissue(number=1, size=28), torch.randint(0, 256, (1, 3, 28, 28), dtype=torch.uint8)])
    inside = (torch.arange(2 * 28 * 28) % 5 > 0).view(2, 28, 28).byte()
    interleaved = whole.contiguous(memory_format=torch.channels_last)
    return [Pixels(whole, None), Pixels(interleaved, inside), Pixels(whole[:, :, 2:27], inside[:, 2:27].contiguous())]


def densities(pixels: Pixels) -> Array:
    """Float32 [B, 3, N]."""
    return TABLE.numpy()[pixels.planes().numpy()]


def tissue_of(pixels: Pixels, mask: Mask) -> Array:
    """Bool [B, N]."""
    rgb = pixels.planes().numpy()
    if mask.kind == 1:
        found = rgb.max(1) <= mask.limit
    elif mask.kind == 2:
        found = rgb.min(1) <= mask.limit
    elif mask.kind == 3:
        r, g, b = (np.take_along_axis(mask.tables.numpy()[:, c], rgb[:, c].astype(int), 1) for c in range(3))
        found = r + g + b < np.float32(mask.threshold)
    else:
        found = np.ones_like(rgb[:, 0], bool)
    return found & inside_of(pixels)


def inside_of(pixels: Pixels) -> Array:
    kept = pixels.kept()
    return np.ones((pixels.batch, pixels.size), bool) if kept is None else kept.numpy()


def counted(bins: Array, kept: Array, number: int) -> Array:
    """[B, number]: how many of each image's bins [B, N] that are `kept` have each value."""
    return np.stack([np.bincount(row[keep], minlength=number) for row, keep in zip(bins, kept, strict=True)])


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"mask {mask.kind}")
def check_moments(passes, mask):
    pixels = images()[mask.kind % 3]
    x, y, z = densities(pixels).swapaxes(0, 1)
    parts = (np.ones_like(x), x, y, z, x * x, x * y, x * z, y * y, y * z, z * z)
    wanted = np.stack([np.where(tissue_of(pixels, mask), part, 0).sum(1, dtype=float) for part in parts], 1)
    found = [passes(seed=seed).moments(pixels, TABLE, mask).numpy() for seed in (0, 1)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-12)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"mask {mask.kind}")
def check_angles(passes, mask):
    basis = torch.tensor([[[0.7, 0.5, 0.4], [-0.3, 0.8, -0.5]], [[0.6, -0.6, 0.5], [0.1, 0.5, 0.8]]])
    for pixels in images():
        r, g, u = densities(pixels).swapaxes(0, 1)
        e = basis.numpy()
        x, y = (e[:, i, :1] * r + e[:, i, 1:2] * g + e[:, i, 2:] * u for i in range(2))
        along = x / (np.abs(x) + np.abs(y) + np.float32(1e-30))
        angle = np.where(y < 0, along - 1, 1 - along)
        bins = np.minimum(((angle + 2) * np.float32(ANGLE_BINS / 4)).astype(int), ANGLE_BINS - 1)
        wanted = counted(bins, tissue_of(pixels, mask) & (x * x + y * y >= np.float32(1.5)), ANGLE_BINS)
        np.testing.assert_array_equal(passes().angles(pixels, TABLE, mask, basis, 1.5), wanted)


@pytest.mark.parametrize("with_lasso", [False, True])
def check_concentrations(passes, with_lasso):
    matrix = torch.tensor([[0.7, 0.5, 0.4, -0.1], [-0.3, 0.8, -0.5, 0.2]]).repeat(2, 1, 1)
    scale = torch.tensor([[500.0, 2000.0], [900.0, 100.0]])
    lasso = torch.tensor([[0.6, 1 / (1 - 0.6**2)], [0.2, 1 / (1 - 0.2**2)]])
    for pixels in images():
        r, g, u = densities(pixels).swapaxes(0, 1)
        p, (product, inverse) = matrix.numpy(), (lasso.numpy()[:, i : i + 1] for i in range(2))
        c0, c1 = (p[:, i, :1] * r + p[:, i, 1:2] * g + p[:, i, 2:3] * u + p[:, i, 3:] for i in range(2))
        if with_lasso:
            both = (c0 - product * c1) * inverse, (c1 - product * c0) * inverse
            only = np.maximum(c0, 0), np.maximum(c1, 0)
            inner, zeroth = (both[0] >= 0) & (both[1] >= 0), only[0] >= only[1]
            c0 = np.where(inner, both[0], np.where(zeroth, only[0], 0))
            c1 = np.where(inner, both[1], np.where(zeroth, 0, only[1]))
        wanted = []
        for i, c in enumerate((c0, c1)):
            bins = np.clip(c * scale.numpy()[:, i : i + 1], 0, CONCENTRATION_BINS - 1).astype(int)
            wanted.append(counted(bins, inside_of(pixels), CONCENTRATION_BINS))
        found = passes().concentrations(pixels, TABLE, matrix, lasso if with_lasso else None, scale)
        np.testing.assert_array_equal(found, np.stack(wanted, 1))


def check_colours(passes):
    for pixels, mask in zip(images(), MASKS, strict=False):
        rgb = pixels.planes().numpy().astype(int).swapaxes(0, 1)
        colour = (rgb[0] >> 1 << 14) | (rgb[1] >> 1 << 7) | (rgb[2] >> 1)
        amounts = np.stack([np.ones_like(rgb[0]), *(rgb & 1)])
        both = np.concatenate([amounts * inside_of(pixels), amounts * tissue_of(pixels, mask)])
        counts = np.zeros((8, 2**21), int)
        for count, amount in zip(counts, both, strict=True):
            np.add.at(count, colour, amount)
        used = counts[0].nonzero()[0]
        np.testing.assert_array_equal(passes().colours(pixels, mask), np.column_stack([used, counts[:, used].T]))


FAULTS = (
    ("= sums[k];\n    __syncthreads();", "= sums[k];\n    if (fault != 1) __syncthreads();"),
    ("double sums[10] = {};", "double sums[10]; if (fault != 2) memset(sums, 0, sizeof sums);"),
    ("k < ANGLES; k += blockDim.x) bins[k] = 0;", "k < ANGLES - (fault == 3); k += blockDim.x) bins[k] = 0;"),
    ("shared[threadIdx.x] = sums[k];", "shared[threadIdx.x + (fault == 4)] = sums[k];"),
    ("(ANGLES / 4.0f)), ANGLES - 1)", "(ANGLES / 4.0f)), ANGLES - 1) + 100 * (fault == 5)"),
    ("+ blockIdx.x) * 10 + k]", "+ blockIdx.x) * 10 + k + (fault == 6)]"),
)


def check_faults_are_found(passes):
    source = kernels.SOURCE
    for old, new in FAULTS:
        source = planted(source, old, new)
    source = f"static int fault = 0;\n{ENTRY} void plant(int which) {{ fault = which; }}\n{source}"
    gpu, basis = passes(source), torch.tensor([[[0.7, 0.5, 0.4], [0.0, 0.0, 0.0]]] * 2)
    white = torch.zeros(2, 3, 20, 20, dtype=torch.uint8)

    def moments() -> Tensor:
        return gpu.moments(images()[0], TABLE, Mask(0))

    def angles() -> Tensor:
        return gpu.angles(Pixels(white, None), TABLE, Mask(0), -basis, 0.0)

    sound = moments(), angles()
    faulty = library(source, *kernels.DEFINES)
    for unsynchronised_or_uninitialised in (1, 2):
        faulty.plant(unsynchronised_or_uninitialised)
        assert not torch.allclose(moments(), sound[0], equal_nan=True)
    faulty.plant(3)
    assert not torch.equal(angles(), sound[1])
    for out_of_bounds, run in ((4, moments), (5, angles), (6, moments)):
        faulty.plant(out_of_bounds)
        assert re.search("index 256 out of bounds|heap-buffer-overflow", ends_with(run))
    faulty.plant(0)
    assert "a wrong number of arguments" in ends_with(lambda: kernels.launch("stain_colours", *images()[0], 1, 0))
