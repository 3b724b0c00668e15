"""TileLoader on regions of slides compared with OpenSlide in torch's DataLoader and with wsistream: the same generated
slides and regions, which cross the slide's own tiles, two threads or two workers."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmtl import data
from fastmtl.data.loading.loader import IMAGENET_MEAN, IMAGENET_STD

from ..decoding import NAME, decode_alone
from ..registry import Case, Inputs, Run, register

SIZE, WORKERS, BATCH, SLIDES, SLIDE_SIZE = 224, 2, 16, 4, 2048
_REGIONS = SLIDES * (SLIDE_SIZE // SIZE) ** 2


@cache
def regions() -> tuple[data.Region, ...]:
    """A grid on every slide of the demo (JPEG tiles of 256 x 256), in a folder that goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="fastmtl-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = data.generate(folder / "colon", num_patients=SLIDES, tiles_per_patient=1, num_slides=SLIDES)
    slides = sorted((root / "slides").glob("*.tiff"))
    places = range(0, SLIDE_SIZE - SIZE + 1, SIZE)
    return tuple(data.Region(slide, x, y, SIZE, SIZE) for slide in slides for y in places for x in places)


def _key(slide: str, x: int, y: int) -> str:
    return f"{Path(slide).name} {int(x):06d} {int(y):06d}"


class OpenSlideRegions(torch.utils.data.Dataset):
    """What most training code does: a region a sample, slides open in each worker."""

    def __init__(self, places: tuple[data.Region, ...]):
        self.places, self.slides = places, {}
        self.mean, self.std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        import openslide

        place = self.places[index]
        if place.slide not in self.slides:
            self.slides[place.slide] = openslide.OpenSlide(place.slide)
        read = self.slides[place.slide].read_region((place.x, place.y), place.level, (place.width, place.height))
        pixels = (np.asarray(read.convert("RGB"), np.float32) / np.float32(255) - self.mean) / self.std
        name = _key(str(place.slide), place.x, place.y)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), name


def _make(device: torch.device) -> Inputs:
    return {"regions": regions(), "device": device}


def _tiles(inputs: Inputs) -> list[data.Tile]:
    return [data.Tile(_key(str(r.slide), r.x, r.y), r, None, None, r.slide.stem) for r in inputs["regions"]]


def _ours(inputs: Inputs) -> Run:
    device: Any = "gpu" if inputs["device"].type == "cuda" else "cpu"
    loader = data.TileLoader(
        _tiles(inputs), targets={"self": "none"}, size=SIZE, batch_size=BATCH, device=device, num_threads=WORKERS
    )
    return _checked_once(lambda: [(batch.images.to(inputs["device"]), batch.ids) for batch in loader])


def _decoding(inputs: Inputs) -> Run:
    """Returns our answer the first time, because it does not join what it decodes."""
    answers, device = iter([_truth(inputs)]), inputs["device"]
    run = decode_alone(_tiles(inputs), {"self": "none"}, batch_size=BATCH, num_threads=WORKERS, device=device)

    def epoch() -> tuple[Tensor, ...]:
        run()
        return next(answers, ())

    return epoch


def _openslide(inputs: Inputs) -> Run:
    import openslide  # noqa: F401 - not installed is to be said here, not in a worker

    return _torch(OpenSlideRegions(inputs["regions"]), inputs["device"])


def _wsistream(inputs: Inputs) -> Run:
    from wsistream import GridSampler, NormalizeTransform, OpenSlideBackend
    from wsistream.torch import WsiStreamDataset

    detector: Any = _Everything()
    dataset = WsiStreamDataset(
        sorted({str(place.slide) for place in inputs["regions"]}),
        OpenSlideBackend(),
        detector,
        GridSampler(patch_size=SIZE, tissue_threshold=0.0),
        transforms=NormalizeTransform(IMAGENET_MEAN, IMAGENET_STD),
        pool_size=SLIDES,
        patches_per_slide=_REGIONS,
        cycle=False,
        tissue_mask_cache_size=SLIDES,
    )
    return _torch(dataset, inputs["device"])


class _Everything:
    """wsistream's tissue detector that finds tissue everywhere: the others read all regions too."""

    def detect(self, thumbnail: np.ndarray, downsample: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
        return np.ones(thumbnail.shape[:2], bool)


def _torch(dataset: Any, device: torch.device) -> Run:
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context="spawn",  # a fork would copy DALI's threads, which are then no threads
        pin_memory=device.type == "cuda",
    )

    def epoch() -> list[tuple[Tensor, list[str]]]:
        batches = []
        for batch in loader:
            if isinstance(batch, dict):
                names = map(_key, batch["slide_path"], batch["x"], batch["y"])
                batches.append((batch["image"].to(device, non_blocking=True), list(names)))
            else:
                batches.append((batch[0].to(device, non_blocking=True), list(batch[1])))
        return batches

    return _checked_once(epoch)


def _checked_once(epoch: Any) -> Run:
    """Only the first run is compared, so the others do not compute the digest."""
    compared = False

    def run() -> tuple[Tensor, ...]:
        nonlocal compared
        batches = epoch()
        compared, first = True, not compared
        return _digest(batches) if first else ()

    return run


def _digest(batches: list[tuple[Tensor, list[str]]]) -> tuple[Tensor, ...]:
    """Means of blocks of pixels, in the order of slide and place: decoders round by a grey level."""
    names = [name for _, several in batches for name in several]
    order = sorted(range(len(names)), key=names.__getitem__)
    images = torch.cat([images for images, _ in batches])[order]
    return (torch.nn.functional.avg_pool2d(images, 16),)


def _truth(inputs: Inputs) -> tuple[Tensor, ...]:
    dataset = OpenSlideRegions(inputs["regions"])
    pixels, names = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    return tuple(part.to(inputs["device"]) for part in _digest([(torch.stack(pixels), list(names))]))


register(
    Case(
        op="TileLoader",
        shape=f"{_REGIONS} regions {SIZE} x {SIZE} of {SLIDES} slides (JPEG tiles 256 x 256), B={BATCH}",
        mode="one epoch",
        make=_make,
        contenders={
            "fastmtl": _ours,
            "torch DataLoader, 2 workers, OpenSlide": _openslide,
            "wsistream, 2 workers": _wsistream,
            NAME: _decoding,
        },
        min_bytes=0,
        tolerance=0.05,
        truth=_truth,
        figures={"torch DataLoader, 2 workers, OpenSlide": 1.5, "wsistream, 2 workers": 1.0},
        items=_REGIONS,
    )
)
