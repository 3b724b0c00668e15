"""Figures on real tiles: how far from the exact algorithm, how far from the target, what stays of the structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastmtl import data, ops
from fastmtl.reference import stain_normalize as exact
from fastmtl.reference.stain_conventions import CONVENTIONS, HEMATOXYLIN_EOSIN, MAX_CONCENTRATION
from fastmtl.reference.stain_lab import to_lab

TARGET = torch.tensor(HEMATOXYLIN_EOSIN).double(), torch.tensor(MAX_CONCENTRATION).double()


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).contiguous()


def ebhi_tiles(root: Path, number: int) -> Tensor:
    """One tile each of `number` patients, of all classes in turn, uint8 [number, 3, 224, 224]."""
    patients: dict[str, Path] = {}
    classes = [sorted((folder / "image").iterdir()) for folder in sorted(root.iterdir()) if folder.is_dir()]
    for place in range(max(map(len, classes))):
        for paths in classes:
            if place * 7 < len(paths):
                patients.setdefault(paths[place * 7].name.split("-")[0].upper(), paths[place * 7])
    return torch.stack([read(path) for path in list(patients.values())[:number]])


def cmu_tiles(root: Path, number: int) -> Tensor:
    """The slide's tiles with the most tissue, uint8 [number, 3, 256, 256]."""
    import tifffile

    pixels = torch.from_numpy(tifffile.imread(root / "CMU-1-Small-Region.svs")).permute(2, 0, 1)
    tiles = pixels.unfold(1, 256, 256).unfold(2, 256, 256).permute(1, 2, 0, 3, 4).reshape(-1, 3, 256, 256)
    darkest = tiles.float().mean((1, 2, 3)).argsort()[:number]
    return tiles[darkest].contiguous()


def errors(tiles: Tensor, method: str, convention: str) -> tuple[float, float]:
    """Median and 99th percentile of the difference from the exact algorithm over all the tiles, grey levels."""
    chosen, found = CONVENTIONS[convention], []
    known = (torch.tensor(exact.RUIFROK).double(), TARGET[1]) if convention == "histomicstk" else TARGET
    made = ops.stain_normalize(tiles, method, convention=convention, dtype=torch.float32)
    for tile, image in zip(tiles, made, strict=True):
        pixels = tile.flatten(1)
        truth = exact.restain(pixels, exact.estimate(pixels, method, chosen), chosen, known)
        found.append((image.flatten(1) - truth).abs().flatten())
    everything = torch.cat(found).sort()[0]
    return everything[len(everything) // 2].item(), everything[int(0.99 * len(everything))].item()


def pooled_error(tiles: Tensor, method: str) -> float:
    """Median over tiles of their median difference when stains come from pooled colours instead of exact pixels."""
    chosen, found = CONVENTIONS["torchstain"], []
    for tile in tiles:
        statistics, pixels = data.StainStatistics(), tile.flatten(1)
        statistics.update(tile[None])
        stains = statistics.estimate(method)
        assert stains is not None
        truth = exact.restain(pixels, exact.estimate(pixels, method, chosen), chosen)
        made = exact.restain(pixels, (stains.vectors[0], stains.maxima[0]), chosen)
        found.append((made - truth).abs().median())
    return torch.stack(found).median().item()


def mean_lab(image: Tensor) -> Tensor:
    """Of the tissue, [3]."""
    pixels = image.flatten(1)
    kept = exact.tissue(pixels, CONVENTIONS["torchstain"])
    return to_lab(pixels, "cie")[:, kept].mean(1)


def approach(tiles: Tensor, target: Tensor, method: str, convention: str = "torchstain") -> tuple[float, float]:
    """By which share the mean distance of the tiles' mean LAB from the target's falls, and the mean SSIM of L."""
    from skimage.metrics import structural_similarity

    made = ops.stain_normalize(tiles, method, convention=convention, target=target)
    wanted = mean_lab(target)
    before, after = ([(mean_lab(one) - wanted).norm() for one in images] for images in (tiles, made))
    pairs = zip(tiles, made, strict=True)
    lightness = [[to_lab(one.flatten(1), "cie")[0].view(one.shape[1:]).numpy() for one in pair] for pair in pairs]
    similar = [structural_similarity(*pair, data_range=100.0) for pair in lightness]
    return 1 - float(sum(after) / sum(before)), float(np.mean(similar))
