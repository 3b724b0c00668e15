"""The passes of each backend: C++ on the CPU, CuPy and Triton on NVIDIA GPUs, or none for the exact definition."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

from ..core import backends
from .passes import ANGLE_BINS, CONCENTRATION_BINS, CppPasses, Mask, Passes, TorchPasses
from .pixels import Pixels


def passes_of(images: Tensor, backend: str) -> Passes | None:
    """The passes for `images`; None for the exact definition.

    Raises:
        BackendError: the requested backend cannot run here.
    """
    return backends.choose("stain_normalize", backend, images)()


class GpuPasses(TorchPasses):
    """The apply pass in Triton; the counts in CuPy, or in torch without CuPy and in the interpreter."""

    def __init__(self) -> None:
        from ...kernels import stain_apply_triton, stain_coefficients_triton, stain_fit_triton

        self._apply = stain_apply_triton.apply
        self.small, self.coefficients = stain_fit_triton, stain_coefficients_triton.coefficients
        self._launch = None
        if torch.cuda.is_available() and importlib.util.find_spec("cupy") is not None:
            from ...kernels import stain_histogram_cupy

            self._launch = stain_histogram_cupy.launch

    def moments(self, pixels: Pixels, table: Tensor, mask: Mask) -> Tensor:
        if self._launch is None:
            return super().moments(pixels, table, mask)
        blocks = _blocks(pixels)
        partials = torch.empty(pixels.batch, blocks, 10, dtype=torch.float64, device=table.device)
        self._launch("stain_moments", *pixels, blocks, *_mask(mask), table, partials)
        return partials.sum(1)

    def angles(self, pixels: Pixels, table: Tensor, mask: Mask, basis: Tensor, least_square: float) -> Tensor:
        if self._launch is None:
            return super().angles(pixels, table, mask, basis, least_square)
        counts = torch.zeros(pixels.batch, ANGLE_BINS, dtype=torch.int32, device=table.device)
        self._launch("stain_angles", *pixels, _blocks(pixels), *_mask(mask), table, basis, float(least_square), counts)
        return counts

    def concentrations(
        self, pixels: Pixels, table: Tensor, matrix: Tensor, lasso: Tensor | None, scale: Tensor
    ) -> Tensor:
        if self._launch is None:
            return super().concentrations(pixels, table, matrix, lasso, scale)
        counts = torch.zeros(pixels.batch, 2, CONCENTRATION_BINS, dtype=torch.int32, device=table.device)
        self._launch("stain_concentrations", *pixels, _blocks(pixels), table, matrix, lasso, scale, counts)
        return counts

    def colours(self, pixels: Pixels, mask: Mask) -> Tensor:
        if self._launch is None:
            return super().colours(pixels, mask)
        counts = torch.zeros(2**21, 8, dtype=torch.int32, device=pixels.images.device)
        self._launch("stain_colours", *pixels, _blocks(pixels), *_mask(mask), counts)
        used = counts[:, 0].nonzero()
        return torch.cat([used, counts[used[:, 0]].long()], 1)

    def apply(
        self, pixels: Pixels, table: Tensor, coefficients: Tensor, lasso: bool, out: Tensor, half_up: bool
    ) -> None:
        self._apply(*pixels, table, coefficients, out, lasso, half_up)


def _mask(mask: Mask) -> tuple[int, int, Tensor | None, float]:
    return mask.kind, mask.limit, mask.tables, float(mask.threshold)


def _blocks(pixels: Pixels) -> int:
    """Blocks per image: enough that a batch fills a GPU, few enough that clearing their histograms is cheap."""
    return max(1, min(pixels.size // 16384, 264 // pixels.batch + 1))


backends.register(
    "stain_normalize",
    {
        "cpp": backends.Implementation(cache(CppPasses), "cpu", (torch.uint8,)),
        "triton": backends.Implementation(cache(GpuPasses), "cuda", (torch.uint8,)),
        "reference": backends.Implementation(lambda: None, "any", (torch.uint8,)),
    },
)
