"""The passes over pixels that all stain methods use, in plain torch on any device and in C++ on the CPU.

All of them share the small computations between the passes (`small_problems.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..core import backends
from ..core.pointers import address, num_threads
from . import small_problems
from .pixels import Pixels, describe_output

ANGLE_BINS, CONCENTRATION_BINS = 16384, 8192  # as csrc/stain/stain.hpp
_LOCAL = threading.local()  # each thread keeps its table of zeros, because fresh pages take as long as a tile
_CHUNK = 65536  # pixels whose moments one thread sums


class Mask(NamedTuple):
    """Which pixels are tissue; see `StainMask` in csrc/stain/stain.hpp."""

    kind: int
    limit: int = 0
    tables: Tensor | None = None  # float32 [B, 3, 256]
    threshold: float = 0.0


class Passes(Protocol):
    """The passes that a device implements. `table`: float32 [256], the densities of the grey levels.

    Attributes:
        small: the module that solves the small problems between the passes: `small_problems` or its kernels.
        coefficients: `small_problems.coefficients`, or its kernel.
    """

    small: ModuleType
    coefficients: Callable[..., Tensor]

    def moments(self, pixels: Pixels, table: Tensor, mask: Mask) -> Tensor:
        """Float64 [B, 10]: tissue pixels, sums of density, sums of products rr rg rb gg gb bb."""
        ...

    def angles(self, pixels: Pixels, table: Tensor, mask: Mask, basis: Tensor, least_square: float) -> Tensor:
        """Int [B, ANGLE_BINS]: tissue by the diamond angle of its density in the plane `basis` float32 [B, 2, 3]."""
        ...

    def concentrations(
        self, pixels: Pixels, table: Tensor, matrix: Tensor, lasso: Tensor | None, scale: Tensor
    ) -> Tensor:
        """Int [B, 2, CONCENTRATION_BINS]: pixels by their two concentrations times `scale` float32 [B, 2]."""
        ...

    def colours(self, pixels: Pixels, mask: Mask) -> Tensor:
        """Int64 [N, 9] of all images together, sorted: 7-bit colour, its pixels, sums of their last bits r, g, b, and
        the same four numbers of its tissue."""
        ...

    def apply(
        self, pixels: Pixels, table: Tensor, coefficients: Tensor, lasso: bool, out: Tensor, half_up: bool
    ) -> None:
        """Write `out` by float32 `coefficients` [B, 44]; see csrc/stain/stain.hpp."""
        ...


class CppPasses:
    """On the CPU."""

    small, coefficients = small_problems, staticmethod(small_problems.coefficients)

    def moments(self, pixels: Pixels, table: Tensor, mask: Mask) -> Tensor:
        chunks = -(-pixels.size // _CHUNK)
        partials = torch.empty(pixels.batch, chunks, 10, dtype=torch.float64)
        backends.extension().stain_moments(
            pixels.describe(), address(table), *_mask(mask), _CHUNK, address(partials), num_threads()
        )
        return partials.sum(1)

    def angles(self, pixels: Pixels, table: Tensor, mask: Mask, basis: Tensor, least_square: float) -> Tensor:
        slots, counts = _histograms(pixels, ANGLE_BINS + 1)
        backends.extension().stain_angles(
            pixels.describe(),
            address(table),
            *_mask(mask),
            address(basis),
            least_square,
            address(counts),
            slots,
            num_threads(),
        )
        return _total(counts)[..., :-1]

    def concentrations(
        self, pixels: Pixels, table: Tensor, matrix: Tensor, lasso: Tensor | None, scale: Tensor
    ) -> Tensor:
        slots, counts = _histograms(pixels, 2, CONCENTRATION_BINS + 1)
        backends.extension().stain_concentrations(
            pixels.describe(),
            address(table),
            address(matrix),
            address(lasso),
            address(scale),
            address(counts),
            slots,
            num_threads(),
        )
        return _total(counts)[..., :-1]

    def colours(self, pixels: Pixels, mask: Mask) -> Tensor:
        index = getattr(_LOCAL, "index", None)
        if index is None:
            index = np.zeros(2**21, np.int32)
        _LOCAL.index = None  # an error below would leave it non-zero
        entries = np.empty((min(2**21, pixels.batch * pixels.size), 9), np.int64)
        used = backends.extension().stain_colours(
            pixels.describe(), *_mask(mask), index.ctypes.data, entries.ctypes.data, 0
        )
        index[entries[:used, 0]] = 0
        _LOCAL.index = index
        found = torch.from_numpy(entries[:used].copy())
        return found[found[:, 0].argsort()]

    def apply(
        self, pixels: Pixels, table: Tensor, coefficients: Tensor, lasso: bool, out: Tensor, half_up: bool
    ) -> None:
        backends.extension().stain_apply(
            pixels.describe(),
            address(table),
            address(coefficients),
            lasso,
            describe_output(out, half_up),
            num_threads(),
        )


def _mask(mask: Mask) -> tuple[int, int, int, float]:
    return mask.kind, mask.limit, address(mask.tables), mask.threshold


def _histograms(pixels: Pixels, *shape: int) -> tuple[int, Tensor]:
    """The number of threads per image, and zeros for each of them."""
    slots = max(1, min(num_threads() // pixels.batch, pixels.size // 4096))
    return slots, torch.zeros(pixels.batch, slots, *shape, dtype=torch.int32)


def _total(counts: Tensor) -> Tensor:
    return counts[:, 0] if counts.shape[1] == 1 else counts.sum(1, dtype=torch.int32)


class TorchPasses:
    """On any device, in many small kernels: the fallback, and the reference for the other implementations."""

    small, coefficients = small_problems, staticmethod(small_problems.coefficients)

    def moments(self, pixels: Pixels, table: Tensor, mask: Mask) -> Tensor:
        x = torch.where(tissue(pixels, mask)[:, None], table[pixels.planes().int()], 0.0).double()  # [B, 3, N]
        square = x @ x.transpose(1, 2)
        upper = square[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
        return torch.cat([tissue(pixels, mask).sum(1, keepdim=True).double(), x.sum(2), upper], 1)

    def angles(self, pixels: Pixels, table: Tensor, mask: Mask, basis: Tensor, least_square: float) -> Tensor:
        x, y = (basis @ table[pixels.planes().int()]).unbind(1)
        along = x / (x.abs() + y.abs() + 1e-30)
        angle = torch.where(y < 0, along - 1, 1 - along)
        bins = ((angle + 2) * (ANGLE_BINS / 4)).int().clamp(max=ANGLE_BINS - 1)
        counted = tissue(pixels, mask) & (x * x + y * y >= least_square)
        return _count(torch.where(counted, bins, ANGLE_BINS), ANGLE_BINS)

    def concentrations(
        self, pixels: Pixels, table: Tensor, matrix: Tensor, lasso: Tensor | None, scale: Tensor
    ) -> Tensor:
        c = matrix[..., :3] @ table[pixels.planes().int()] + matrix[..., 3:]
        if lasso is not None:
            c = lasso_pair(c, lasso)
        bins = (c * scale[..., None]).clamp(0, CONCENTRATION_BINS - 1).int()
        kept = pixels.kept()
        if kept is not None:
            bins = torch.where(kept[:, None], bins, CONCENTRATION_BINS)
        return _count(bins, CONCENTRATION_BINS)

    def colours(self, pixels: Pixels, mask: Mask) -> Tensor:
        rgb, kept = pixels.planes().long().transpose(0, 1).flatten(1), pixels.kept()  # [3, B N]
        bins = (rgb[0] >> 1 << 14) | (rgb[1] >> 1 << 7) | (rgb[2] >> 1)
        amounts = torch.cat([torch.ones_like(rgb[:1]), rgb & 1])
        if kept is not None:
            amounts = amounts * kept.flatten()
        both = torch.cat([amounts, amounts * tissue(pixels, mask).flatten()])
        counts = torch.zeros(8, 2**21, dtype=torch.int64, device=rgb.device)
        counts.scatter_add_(1, bins.expand(8, -1), both)
        used = counts[0].nonzero()[:, 0]
        return torch.cat([used[:, None], counts[:, used].T], 1)

    def apply(
        self, pixels: Pixels, table: Tensor, coefficients: Tensor, lasso: bool, out: Tensor, half_up: bool
    ) -> None:
        m = coefficients[:, :, None]
        density = table[pixels.planes().int()]
        y = coefficients[:, :9].view(-1, 3, 3) @ density + m[:, 9:12]
        if lasso:
            c = lasso_pair(y[:, :2], coefficients[:, 12:14])
            y = coefficients[:, 14:20].view(-1, 3, 2) @ c + m[:, 20:23]
        values = (y.clamp(-30, 9).exp2() - m[:, 23:24]).clamp(0, 255)
        values = torch.where(m[:, 42:43] > 0, pixels.planes().float(), values)
        write_output(pixels, values, coefficients[:, 24:42], m[:, 43:44], out, half_up)


def write_output(pixels: Pixels, values: Tensor, colour: Tensor, outside: Tensor, out: Tensor, half_up: bool) -> None:
    """`write_block` of csrc/stain/stain_store.hpp: values [B, 3, N], colour [B, 18], outside [B, 1, 1]."""
    kept, m = pixels.kept(), colour[:, :, None]
    if kept is not None:
        values = torch.where(kept[:, None], values, outside)
    values = colour[:, :9].view(-1, 3, 3) @ values + m[:, 9:12]
    values = values.maximum(m[:, 12:15]).minimum(m[:, 15:18])
    if out.dtype == torch.uint8:
        values = (values + (0.5 if half_up else 1e-4)).floor()
    out.copy_(values.view(out.shape))


def tissue(pixels: Pixels, mask: Mask) -> Tensor:
    """Bool [B, N]."""
    rgb, kept = pixels.planes(), pixels.kept()
    if mask.kind == 1:
        found = (rgb <= mask.limit).all(1)
    elif mask.kind == 2:
        found = (rgb <= mask.limit).any(1)
    elif mask.kind == 3:
        assert mask.tables is not None
        found = mask.tables.gather(2, rgb.long()).sum(1) < mask.threshold
    else:
        found = torch.ones_like(rgb[:, 0], dtype=torch.bool)
    return found if kept is None else found & kept


def lasso_pair(b: Tensor, lasso: Tensor) -> Tensor:
    """The non-negative codes [B, 2, N] of two unit vectors; lasso [B, 2]: their product and 1 / (1 - product^2)."""
    product, inverse = lasso[:, :1], lasso[:, 1:]
    both = torch.stack([b[:, 0] - product * b[:, 1], b[:, 1] - product * b[:, 0]], 1) * inverse[..., None]
    only, first = b.clamp(min=0), (b[:, 0] >= b[:, 1])[:, None]
    chosen = only * torch.cat([first, ~first], 1)
    return torch.where((both >= 0).all(1, keepdim=True), both, chosen)


def _count(bins: Tensor, size: int) -> Tensor:
    """How often each of 0 .. size - 1 occurs along the last dim; `size` itself is dropped."""
    counts = torch.zeros(*bins.shape[:-1], size + 1, dtype=torch.int32, device=bins.device)
    counts.scatter_add_(-1, bins.long(), torch.ones((), dtype=torch.int32, device=bins.device).expand(bins.shape))
    return counts[..., :-1]
