"""Images of two patients that are one image, saved in another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.slides import tissue_like
from helpers.tiles import write_image
from PIL import Image

from fastmtl import data


def _dataset(root: Path, copy: Image.Image, name: str = "copy.png", patient: str = "q") -> data.Dataset:
    """Six images of six patients, and `copy`."""
    for number in range(6):
        write_image(root / f"{number}.png", tissue_like(96, 96, seed=number))
    copy.save(root / name)
    rows = [f"{number}.png,p{number}" for number in range(6)] + [f"{name},{patient}"]
    (root / "manifest.csv").write_text("\n".join(["image,patient", *rows]))
    return data.read_manifest(root / "manifest.csv")


def _notices(dataset: data.Dataset) -> list[str]:
    return [each["reason"] for each in data.examine(dataset)["notices"] if "look like" in each["reason"]]


def _first() -> Image.Image:
    return Image.fromarray(tissue_like(96, 96, seed=0))


@pytest.mark.parametrize(
    ("copy", "name"),
    [
        (_first(), "copy.jpg"),
        (_first().resize((64, 64)), "copy.png"),
        (_first().transpose(Image.Transpose.ROTATE_90), "copy.png"),
        (_first().transpose(Image.Transpose.TRANSVERSE), "copy.jpg"),
        (Image.fromarray((np.asarray(_first()) * 0.8).astype(np.uint8)), "copy.png"),
    ],
    ids=["saved as JPEG", "resized", "turned", "mirrored", "darker"],
)
def test_a_copy_is_found(copy: Image.Image, name: str, tmp_path: Path):
    (notice,) = _notices(_dataset(tmp_path, copy, name))
    assert notice == (
        "2 tiles look like one of another patient (saved again, resized or turned?): if they are the same, a split can "
        "leak; first 0 of p0 and copy of q"
    )


def test_edges_of_tissue_are_not_alike(tmp_path: Path):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    rows = []
    for number in range(40):
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-20, 20)
        tissue = (x - 48) * np.cos(angle) + (y - 48) * np.sin(angle) > offset
        pixels = np.where(tissue, rng.integers(120, 200, (96, 96)), 240).astype(np.uint8)
        write_image(tmp_path / f"{number}.png", pixels.repeat(3).reshape(96, 96, 3))
        rows.append(f"{number}.png,p{number}")
    (tmp_path / "manifest.csv").write_text("\n".join(["image,patient", *rows]))
    assert _notices(data.read_manifest(tmp_path / "manifest.csv")) == []


def test_other_images_equal_files_and_the_same_patient_are_not_reported(tmp_path: Path):
    assert _notices(_dataset(tmp_path / "other", Image.fromarray(tissue_like(96, 96, seed=9)))) == []
    assert _notices(_dataset(tmp_path / "same", _first().resize((64, 64)), patient="p0")) == []
    assert _notices(_dataset(tmp_path / "equal", _first())) == []  # told as one picture in two tiles
    blank = Image.fromarray(np.full((96, 96, 3), 240, np.uint8))
    dataset = _dataset(tmp_path / "blank", blank)
    blank.save(tmp_path / "blank" / "5.png")
    assert _notices(dataset) == []
