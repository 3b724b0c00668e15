"""Vahadane's dictionary on weighted colours: deterministic.

A step needs only the sums of c c^T and x c^T, so all pixels of one colour count as one weighted pixel. Colours of 7
bits per channel, each at the mean of its pixels, move the vectors by a few thousandths of a degree. Several starts run
on larger cells; the best of them is refined on the colours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.stain_conventions import DICTIONARY_PENALTY, HEMATOXYLIN_EOSIN, RUIFROK, Convention
from ...reference.stain_vectors import codes, vahadane_vectors
from ..core import backends
from .passes import Mask, Passes
from .pixels import Pixels

_ITERATIONS, _TOLERANCE = 2000, 1e-6
# Typical stains, Ruifrok's stains, and a pair far from both.
STARTS = (HEMATOXYLIN_EOSIN, RUIFROK, ((0.8, 0.1), (0.5, 0.7), (0.3, 0.7)))


def vahadane(passes: Passes, pixels: Pixels, mask: Mask, convention: Convention, pooled: bool) -> Tensor:
    """Float64 [B, 3, 2], unordered; [1, 3, 2] with `pooled`."""
    if pooled:
        found = [passes.colours(pixels, mask)]
    else:
        found = [passes.colours(one, mask_of_one(mask, b)) for b, one in enumerate(pixels.each())]
    pairs = [tissue_densities(colours, convention) for colours in found]
    return torch.stack([dictionary(*pair).to(pixels.images.device) for pair in pairs])


def mask_of_one(mask: Mask, b: int) -> Mask:
    return mask if mask.tables is None else mask._replace(tables=mask.tables[b : b + 1])


def mean_densities(bins: Tensor, counts: Tensor, convention: Convention) -> Tensor:
    """Mean densities float64 [N, 3] of 7-bit colours [N] with counts [N, 4]; exact, because a bin has two levels."""
    table = convention.densities().to(bins.device)
    low = torch.stack([bins >> 14, (bins >> 7) & 127, bins & 127], 1) << 1
    upper = counts[:, 1:].double() / counts[:, :1].clamp(min=1)
    return table[low] * (1 - upper) + table[low + 1] * upper


def tissue_densities(colours: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """Mean densities float64 [N, 3] and pixels [N] of the colours (`Passes.colours`) that contain tissue."""
    kept = colours[colours[:, 5] > 0]
    return mean_densities(kept[:, 0], kept[:, 5:], convention), kept[:, 5].double()


def dictionary(density: Tensor, weight: Tensor, starts: tuple[object, ...] = STARTS) -> Tensor:
    """The best dictionary over all starts, float64 [3, 2] on the CPU."""
    if len(density) == 0:
        return torch.tensor(HEMATOXYLIN_EOSIN, dtype=torch.float64)
    density, weight = density.cpu(), weight.cpu().contiguous()
    coarse = _coarser(density, weight)
    runs = [_run(*coarse, torch.tensor(start, dtype=torch.float64)) for start in starts]
    best = min(runs, key=lambda run: run[0])[1]
    return _run(density, weight, best)[1]


def _coarser(density: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The same mass in cells of 0.15 density, each at its mean."""
    cell = (density / 0.15).floor().long().clamp(-63, 63) + 64
    where, cells = torch.unique(cell @ torch.tensor([1, 128, 16384]), return_inverse=True)
    total = torch.zeros(len(where), dtype=torch.float64).index_add_(0, cells, weight)
    sums = torch.zeros(len(where), 3, dtype=torch.float64).index_add_(0, cells, density * weight[:, None])
    return sums / total[:, None], total


def _run(density: Tensor, weight: Tensor, start: Tensor) -> tuple[float, Tensor]:
    """Objective and atoms [3, 2]."""
    start, penalty = torch.nn.functional.normalize(start, dim=0), DICTIONARY_PENALTY
    if backends.missing("cpp"):
        atoms = vahadane_vectors(density.T, weight, penalty, _ITERATIONS, _TOLERANCE, start)
        c = codes(density.T, atoms, penalty)
        losses = (density.T - atoms @ c).square().sum(0) / 2 + penalty * c.sum(0)
        return float((losses * weight).sum()), atoms
    atoms, planes = start.T.contiguous(), density.T.contiguous()
    loss = backends.extension().stain_dictionary(
        planes.data_ptr(), weight.data_ptr(), len(density), penalty, _ITERATIONS, _TOLERANCE, atoms.data_ptr()
    )
    return loss, atoms.T.contiguous()
