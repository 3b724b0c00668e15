"""A model that looks at one pixel at a time, whose maps are known from the slide itself, and what it leaves on disk."""

from __future__ import annotations

import json

import tifffile
import torch

from fastmtl import data
from fastmtl.prediction.slides import predict_slides
from fastmtl.tasks import create_task

BORDERS = (150.5, 190.5)  # of red
CPU = torch.device("cpu")


class PixelModel(torch.nn.Module):
    """Answers of the red of a pixel alone; of the tile its mean red, and whether that is much."""

    def forward(self, batch):
        red = batch.images[:, :1]
        mean = red.mean((2, 3))
        below, above = red - BORDERS[0], red - BORDERS[1]
        return {
            "gland": above / 4,
            "layers": torch.cat([above, -below], 1) / 4,  # structures that may overlap, and here do not
            "zones": torch.cat([-below, torch.minimum(below, -above), above], 1) / 4,
            "redness": mean,
            "grade": torch.cat([mean * 0, (mean - 128) / 30], 1),
        }


TASKS = [
    create_task("binary_segmentation", "gland", 0),
    create_task("multilabel_segmentation", "layers", 1, structures=["red", "dark"]),
    create_task("multiclass_segmentation", "zones", 2, structures=["dark", "middle", "red"]),
    create_task("regression", "redness", 3, mean=0.0, std=1.0),
    create_task("classification", "grade", 4, class_names=["low", "high"]),
]


def read_tiles(folder, size=64, max_damaged=0.0):
    return data.TileLoader(
        folder.tiles,
        targets={"none": "none"},
        size=size,
        batch_size=5,
        max_damaged=max_damaged,
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255, 1 / 255, 1 / 255),
    )


def predict(slides, out, model=None, read=read_tiles, given=None, options=None, **grid):
    """`predict_slides` of the five TASKS."""
    out.mkdir(exist_ok=True)
    return predict_slides(
        slides,
        out,
        model=model or PixelModel(),
        tasks=TASKS,
        grid=data.GridOptions(**{"tile_size": 64, "min_tissue": 0.0, **grid}),
        read=read,
        device=CPU,
        mpp=given or {},
        options=options,
    )


def lines_of(path):
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def map_of(path, level=0):
    """The pixels of a level of a TIFF file."""
    with tifffile.TiffFile(path) as file:
        return file.pages[level].asarray()
