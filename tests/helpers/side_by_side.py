"""Two small data sets side by side, with a task in common and one of their own, and a recipe of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastmtl.config import Recipe, load_recipe
from helpers.tiles import random_pixels, write_image

COLON = {"normal": 6, "polyp": 6}
LUNG = {"adeno": 8, "benign": 6, "squamous": 6}
RECIPE = """
extends = "demo"
without = ["tasks"]

[data]
generator = ""
size = 32
batch_size = 4

[[data.sets]]
name = "colon"
data = "colon"
tasks = ["gland", "lesion"]

[[data.sets]]
name = "lung"
data = "lung"
tasks = ["gland", "histology"]

[tasks.gland]
kind = "binary_segmentation"

[tasks.lesion]
kind = "classification"

[tasks.histology]
kind = "classification"

[model]
base_channels = 2

[training]
epochs = 2
precision = "float32"
log_every = 1
"""


def write_sets(root: Path) -> Path:
    """The folders colon and lung, and recipe.toml. Patients, two tiles each, have the same names in both."""
    for seed, (name, classes) in enumerate({"colon": COLON, "lung": LUNG}.items()):
        number = 0
        for label, count in classes.items():
            for _ in range(count):
                stem = f"P{number // 2:02d}-{number}"
                write_image(root / name / label / "image" / f"{stem}.png", random_pixels(1000 * seed + number, 32))
                mask = random_pixels(1000 * seed + 500 + number, 8)[..., 0] > 127
                write_image(
                    root / name / label / "label" / f"{stem}.png", np.kron(mask, np.ones((4, 4))).astype(np.uint8) * 255
                )
                number += 1
    (root / "recipe.toml").write_text(RECIPE)
    return root


def recipe_of(root: Path, **changes: object) -> Recipe:
    """The recipe of `write_sets`; `changes` as for `load_recipe`."""
    return load_recipe(root / "recipe.toml", changes)
