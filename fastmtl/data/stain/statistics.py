"""Colour counts of many tiles, from which a slide's stains are estimated. Sums are exact, so the order of tiles,
workers and ranks does not matter."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...ops.stain.arguments import MIN_TISSUE, ImageLike, check_images, check_inside, check_method
from ...ops.stain.backends import passes_of
from ...ops.stain.fit import Stains, from_colours, mask_of
from ...ops.stain.passes import TorchPasses
from ...ops.stain.pixels import readable
from .files import StainFileError, read_arrays, write_arrays

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
from .image_forms import as_batch

_KIND = "stain statistics"
Tiles: TypeAlias = "ImageLike | Iterable[ImageLike | Sequence[ImageLike]]"


class StainStatistics:
    """Counts of each colour (7 bits per channel, with its exact mean) in a set of tiles, and in their tissue.

    Args:
        convention: defines the tissue mask, as in `ops.stain_normalize`; statistics of different conventions cannot be
        added.

    >>> one, two = StainStatistics(), StainStatistics()
    >>> one.update(torch.full((1, 3, 8, 8), 90, dtype=torch.uint8))
    >>> two.update(torch.full((2, 3, 8, 8), 240, dtype=torch.uint8))
    >>> (one + two).pixels, (one + two).tissue_pixels
    (192, 64)
    """

    def __init__(self, convention: str = "torchstain"):
        check_method("macenko", convention)
        self.convention = convention
        self.colours = torch.zeros(0, 9, dtype=torch.int64)
        """[N, 9], sorted: colour, its pixels, sums of their last bits r, g, b, and the same four of its tissue."""

    @property
    def pixels(self) -> int:
        """Number of pixels inside."""
        return int(self.colours[:, 1].sum())

    @property
    def tissue_pixels(self) -> int:
        return int(self.colours[:, 5].sum())

    def update(self, images: ImageLike | Sequence[ImageLike], inside: Tensor | None = None) -> None:
        """Add uint8 RGB tiles [B, 3, H, W] or [B, H, W, 3], or one without B, as a tensor, an array or a PIL image;
        pixels that are False in `inside` [B, H, W] are excluded."""
        planes = check_images(as_batch(images)[0])
        pixels, chosen = readable(planes, check_inside(inside, planes)), check_method("macenko", self.convention)
        passes = passes_of(planes, "auto") or TorchPasses()
        # Contrast is stretched per image, so the mask must be computed per image.
        parts = pixels.each() if chosen.tissue == "stretched" else [pixels]
        found = [passes.colours(part, mask_of(part, chosen)).cpu() for part in parts]
        self.colours = _added([self.colours, *found])

    def merge(self, other: StainStatistics) -> StainStatistics:
        """Add another's counts to these; returns itself."""
        if not isinstance(other, StainStatistics):
            raise TypeError(f"`other` must be StainStatistics; got {type(other).__name__}.")
        if other.convention != self.convention:
            raise ValueError(
                f"statistics of convention {other.convention!r} do not add to those of {self.convention!r}: their "
                "tissue masks differ. Collect both with one."
            )
        self.colours = _added([self.colours, other.colours])
        return self

    def __add__(self, other: StainStatistics) -> StainStatistics:
        return StainStatistics(self.convention).merge(self).merge(other)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StainStatistics):
            return NotImplemented
        return self.convention == other.convention and torch.equal(self.colours, other.colours)

    def all_reduce(self, group: ProcessGroup | None = None) -> StainStatistics:
        """Sum over all ranks, in place: afterwards every rank has the same counts."""
        import torch.distributed as dist

        device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
        mine, ranks = self.colours.to(device), dist.get_world_size(group)
        lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(ranks)]
        dist.all_gather(lengths, torch.tensor([len(mine)], device=device), group=group)
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, 9, dtype=torch.int64, device=device)
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(ranks)]
        dist.all_gather(parts, padded, group=group)
        self.colours = _added([part[: int(length)].cpu() for part, length in zip(parts, lengths, strict=True)])
        return self

    def estimate(self, method: str = "macenko", min_tissue: int = MIN_TISSUE) -> Stains | None:
        """Stain vectors [1, 3, 2] and 99th percentiles [1, 2] of all pixels; None if they do not contain two stains."""
        chosen = check_method(method, self.convention)
        found = from_colours(self.colours, method, chosen, min_tissue)
        return found.stains if bool(found.valid) else None

    def save(self, path: str | os.PathLike[str], source: str = "") -> None:
        """Write an .npz file, without pickle. `source`: a free description of the data, which `load` compares."""
        words = {"kind": _KIND, "convention": self.convention, "source": source}
        write_arrays(path, {name: np.array(word) for name, word in words.items()} | {"colours": self.colours.numpy()})

    @classmethod
    def load(cls, path: str | os.PathLike[str], source: str | None = None) -> StainStatistics:
        """Raises StainFileError for a file that is missing, damaged, of another kind or version, or, where `source` is
        given, of another source."""
        arrays = read_arrays(path, _KIND)
        try:
            if source not in (None, str(arrays.get("source", ""))):
                raise StainFileError(f"{path} holds the statistics of other data. Collect them again.")
            made = cls(str(arrays["convention"]))
            made.colours = torch.from_numpy(np.ascontiguousarray(arrays["colours"], np.int64)).reshape(-1, 9)
        except (KeyError, ValueError) as error:
            raise StainFileError(f"{path} is damaged ({error}). Collect the statistics again.") from error
        return made


def collected(tiles: Tiles, convention: str) -> StainStatistics:
    """Of one batch, or of any number of batches or single images."""
    statistics = StainStatistics(convention)
    if isinstance(tiles, Tensor | np.ndarray) or not isinstance(tiles, Iterable):
        tiles = [tiles]
    for batch in tiles:
        statistics.update(batch)
    return statistics


def pooled(parts: Iterable[StainStatistics]) -> StainStatistics:
    """The sum of several."""
    parts = list(parts)
    if not parts:
        raise ValueError("`parts` must have at least one StainStatistics.")
    total = StainStatistics(parts[0].convention)
    for part in parts:
        total.merge(part)
    return total


def _added(parts: list[Tensor]) -> Tensor:
    rows = torch.cat(parts)
    keys, where = torch.unique(rows[:, 0], return_inverse=True)
    sums = torch.zeros(len(keys), 8, dtype=torch.int64).index_add_(0, where, rows[:, 1:])
    return torch.cat([keys[:, None], sums], 1)
