"""Targets and brightness for stain normalisation: a mosaic target of all stainings, and white-background scaling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ops.stain.arguments import ImageLike, check_images, is_interleaved
from ...ops.stain.lab import from_lab, to_lab
from .image_forms import as_batch


def mosaic_target(tiles: ImageLike | Sequence[ImageLike], columns: int | None = None) -> Tensor:
    """All tiles side by side in one image: a target with every staining variant, as in switched-auxiliary
    training.

    Args:
        tiles: uint8 RGB [B, 3, H, W] or [B, H, W, 3], or a list of images of one size (tensors, arrays, PIL images),
            one or a few of each slide, scanner or centre.
        columns: tiles per row; as square as possible by default. The last row is filled by repeating the first tiles.

    Returns:
        uint8 [3, rows * H, columns * W], for `StainNormalizer.fit` or `target=`.

    >>> mosaic_target(torch.zeros(5, 3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([3, 16, 24])
    """
    planes = check_images(as_batch(tiles, "tiles")[0], "tiles")
    batch, _, height, width = planes.shape
    columns = columns if columns is not None else -(-int((4 * batch) ** 0.5 + 1) // 2)
    if not isinstance(columns, int) or columns < 1:
        raise ValueError(f"`columns` must be a whole number, 1 or more; got {columns!r}.")
    columns = min(columns, batch)
    rows = -(-batch // columns)
    order = torch.arange(rows * columns, device=planes.device) % batch
    grid = planes[order].view(rows, columns, 3, height, width)
    return grid.permute(2, 0, 3, 1, 4).reshape(3, rows * height, columns * width)


@torch.no_grad()
def standardize_luminosity(images: Tensor, method: str = "lab", percentile: float | None = None) -> Tensor:
    """Stretch brightness so that the background is white; use it before estimating stains on dim or tinted slides.

    Args:
        images: uint8 RGB [B, 3, H, W] or [B, H, W, 3].
        method: "lab" (StainTools) maps the percentile of LAB's L to 255; "rgb" maps each channel's percentile to 255.
        percentile: in 0..100; default 95 for "lab" and 90 for "rgb".

    Returns:
        uint8, in the layout of `images`. A black image stays black.
    """
    planes = check_images(images)
    if method not in ("lab", "rgb"):
        raise ValueError(f"`method` must be 'lab' or 'rgb'; got {method!r}.")
    percentile = percentile if percentile is not None else 95.0 if method == "lab" else 90.0
    if not 0 <= percentile <= 100:
        raise ValueError(f"`percentile` must be in 0..100; got {percentile}.")
    batch, flat = len(planes), planes.flatten(2)
    if method == "rgb":
        top = _percentile(flat.double().flatten(0, 1), percentile).view(batch, 3, 1)
        made = flat * (255 / top.clamp(min=1))
    else:
        lab = to_lab(flat, "cie 8 bit")
        lightness = 2.55 * lab[:, 0]
        top = _percentile(lightness, percentile)[:, None].clamp(min=1)
        lab[:, 0] = (255 * lightness / top).clamp(0, 255).add(1e-6).floor() / 2.55
        made = from_lab(lab, "cie 8 bit")
    result = made.clamp(0, 255).add(0.5).floor().byte().view(planes.shape)
    return result.permute(0, 2, 3, 1) if is_interleaved(images) else result


def _percentile(rows: Tensor, percentile: float) -> Tensor:
    """The interpolated quantile of each row [R, N]; sorts because torch.quantile is limited to 16 million elements."""
    ordered, rank = rows.sort(1)[0], percentile / 100 * (rows.shape[1] - 1)
    low = int(rank)
    high = min(low + 1, rows.shape[1] - 1)
    return ordered[:, low] + (rank - low) * (ordered[:, high] - ordered[:, low])
