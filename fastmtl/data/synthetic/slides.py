"""Synthetic whole slides with polygons and a manifest, for demos and tests.

Nothing in it is medical data.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require
from ..manifest.table_io import write_table
from .folder import check_limits, make_folder
from .tiles import CLASS_NAMES, tissue_outline, write_pyramid
from .tissue import ARCHITECTURES, expose, paint, random_stain

VERSION = 1
"""Increased when the same parameters produce other pixels; older data sets are then regenerated."""

_STREAM = 0x736C6964


@dataclass(frozen=True)
class SlideRecipe:
    """The parameters, stored with the data to identify it."""

    num_patients: int
    slides_per_patient: int
    slide_size: int
    seed: int
    generator: str = "fastmtl.data.synthetic.slides"
    version: int = VERSION


def generate_slides(
    root: str | Path,
    *,
    num_patients: int = 9,
    slides_per_patient: int = 1,
    slide_size: int = 1024,
    seed: int = 0,
) -> Path:
    """Write slides, polygons and a manifest to `root` atomically and return `root`.

    `root/manifest.csv` has the columns slide, mask, label, patient, case, cellularity: slides/NAME.tiff (a pyramid of
    JPEG tiles, three levels, 2 micrometres per pixel), polygons/NAME.geojson (its glands, class "gland", level-0
    pixels), the tissue's class, and the gland fraction of the tissue. The same arguments give the same pixels on all
    machines; nothing is done if `root` already holds them.

    Args:
        root: the folder to make.
        num_patients: each has one stain and one class; 3 or more, so that no class is empty.
        slides_per_patient: 1 .. 9.
        slide_size: pixels a side, a multiple of 4, 256 .. 16384.
        seed: 0 .. 2**63 - 1.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: `root` is a folder that this function did not make; it is left alone.
    """
    recipe = SlideRecipe(num_patients, slides_per_patient, slide_size, seed)
    limits = {
        "num_patients": (3, 10_000),
        "slides_per_patient": (1, 9),
        "slide_size": (256, 16_384),
        "seed": (0, 2**63 - 1),
    }
    check_limits(recipe, limits)
    return make_folder(Path(root), asdict(recipe), lambda folder: _write_all(folder, recipe))


def _write_all(root: Path, recipe: SlideRecipe) -> None:
    (root / "slides").mkdir()
    (root / "polygons").mkdir()
    rows = []
    for patient in range(recipe.num_patients):
        person = f"P{patient + 1:03d}"
        stain = random_stain(_random(recipe, patient, 0))
        label = CLASS_NAMES[patient % len(CLASS_NAMES)]
        for number in range(recipe.slides_per_patient):
            rng = _random(recipe, patient, 1 + number)
            size, name = recipe.slide_size, f"{person}-{number + 1}"
            haematoxylin, eosin, gland = paint(rng, size, size, ARCHITECTURES[label])
            tissue = tissue_outline(rng, size)
            write_pyramid(root / "slides" / f"{name}.tiff", expose(rng, haematoxylin * tissue, eosin * tissue, stain))
            gland &= tissue
            _write_polygons(root / "polygons" / f"{name}.geojson", gland)
            share = gland.sum() / max(int(tissue.sum()), 1)
            places = (f"slides/{name}.tiff", f"polygons/{name}.geojson")
            rows.append([*places, label, person, name, f"{share:.4f}"])
    write_table(root / "manifest.csv", ["slide", "mask", "label", "patient", "case", "cellularity"], rows)


def _random(recipe: SlideRecipe, patient: int, item: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[recipe.seed, _STREAM], counter=[0, 0, item, patient]))


def _write_polygons(path: Path, mask: NDArray[np.bool_]) -> None:
    """The outlines of the mask's pixels, including holes: drawn at level 0 they reproduce the mask exactly."""
    shapes = require("rasterio.features", "writing polygons", "wsi").shapes(mask.astype(np.uint8), mask)
    features = [
        {"type": "Feature", "properties": {"classification": {"name": "gland"}}, "geometry": geometry}
        for geometry, _ in shapes
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
