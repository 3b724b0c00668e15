"""Slides that are folders or several files, where slides are looked for: prepare, manifests, checks, prediction."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.slides import TILE, tissue_like, write_tiff
from helpers.tiles import write_image

from fastmtl import data
from fastmtl.data.checks.prepare import prepare
from fastmtl.prediction.sharing import size_of

pytest.importorskip("pydicom")
pytest.importorskip("zarr")

from helpers.dicom_slides import write_dicom, write_instance
from helpers.zarr_slides import write_zarr

PIXELS = tissue_like(300, 210)


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """One of each kind, among other files."""
    folder = tmp_path / "slides"
    write_dicom(folder / "P1" / "1.2.840.7", PIXELS)
    write_dicom(folder / "P2", PIXELS, series="1.2.5")
    write_zarr(folder / "P3.ome.zarr", PIXELS)
    write_zarr(folder / "P4-store", PIXELS, version="0.4")
    write_tiff(folder / "P5.tif", PIXELS, levels=2)
    flat = folder / "flat"
    write_dicom(flat, PIXELS, series="1.2.6", levels=1)
    write_instance(flat / "other.dcm", PIXELS, series="1.2.7")
    for name in ("P3", "P4-store"):
        write_image(folder / f"{name}_mask.png", np.zeros((210, 300), np.uint8))
    (folder / "P2" / "notes.txt").write_text("notes")
    return folder


NAMES = ["P1/1.2.840.7", "P2", "P3.ome.zarr", "P4-store", "P5.tif", "flat/label.dcm", "flat/other.dcm"]


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def test_prepare_lists_each_slide_once(slides):
    found = prepare(slides)
    rows = rows_of(found.manifest)
    assert [row["slide"] for row in rows] == NAMES
    assert [row["id"] for row in rows] == [
        *("P1/1.2.840.7", "P2", "P3.ome", "P4-store", "P5", "flat/label", "flat/other"),
    ]
    assert [row["mask"] for row in rows] == ["", "", "P3_mask.png", "P4-store_mask.png", "", "", ""]
    assert [row["patient"] for row in rows] == ["1.2.840", "P2", "P3", "P4", "P5", "LABEL", "OTHER"]
    assert found.patients == ("1.2.840", "LABEL", "OTHER", "P2", "P3", "P4", "P5")
    assert [(one.kind, one.size, one.mpp) for one in found.found] == [("slide", (300, 210), 0.5)] * 7
    assert found.passed_over == {".txt": 1}
    assert sorted(path.name for path in (slides / ".fastmtl").iterdir()) == [
        *("P2.safetensors", "P3.ome.zarr.safetensors", "P4-store.safetensors", "P5.tif.safetensors")
    ]


def test_prepare_of_a_folder_that_is_a_slide_names_a_file(slides):
    assert [row["slide"] for row in rows_of(prepare(slides / "P2").manifest)] == ["label.dcm"]


def test_prepare_reports_damaged_files_of_a_series(slides):
    (slides / "P2" / "level-1.dcm").write_bytes(b"")
    found = prepare(slides)
    wrong = {one.path.name: one.problems[0] for one in found.found if not one.kind}
    assert sorted(wrong) == ["label.dcm", "level-0.dcm", "level-1.dcm", "macro.dcm"]
    assert wrong.pop("level-1.dcm") == "the file is empty"
    assert all("level-1.dcm is no DICOM file" in line for line in wrong.values())


def test_find_slides_takes_a_folder_that_is_a_slide_for_one(slides):
    found = data.find_slides(slides)
    assert list(found.slides) == NAMES
    for name in NAMES:
        source = slides / name
        assert data.find_slides(source).slides == {source.name: source}
    (slides / "P2" / "more").mkdir()
    assert list(data.find_slides(slides / "P2").slides) == ["label.dcm"]


def test_tiles_of_a_manifest_are_the_pixels_of_the_slides(slides):
    manifest = prepare(slides).manifest
    grid = data.GridOptions(tile_size=TILE, mpp=1.0, min_tissue=0.0)
    dataset = data.read_dataset(manifest, options=data.ManifestOptions(grid=grid))
    regions = {tile.image.slide.name: tile.image for tile in dataset.tiles if tile.image.x == tile.image.y == 0}
    assert len(regions) == 7
    expected = data.open_picture(regions["P5.tif"])
    for name in ("P3.ome.zarr", "P4-store"):
        np.testing.assert_array_equal(data.open_picture(regions[name]), expected)
    assert np.abs(data.open_picture(regions["P2"]).astype(int) - expected).max() < 20


def test_one_slide_under_two_names_is_noticed(slides, tmp_path):
    shutil.copytree(slides / "P2", slides / "again")
    (slides / "manifest.csv").write_text(
        "slide,patient\nP2,P2\nP2/level-1.dcm,P7\nagain,P9\nP3.ome.zarr,P3\nP4-store,P4\nflat/label.dcm,P8\n"
    )
    grid = data.GridOptions(tile_size=TILE, mpp=1.0, min_tissue=0.0)
    dataset = data.read_dataset(slides / "manifest.csv", options=data.ManifestOptions(grid=grid))
    found = [problem.reason for problem in data.duplicate_notices(dataset)]
    assert any("slide under several names, 1 of them in two patients" in line for line in found), found


def test_slides_are_shared_over_ranks_by_the_bytes_of_their_files(slides):
    total = sum(path.stat().st_size for path in (slides / "P2").iterdir())
    assert size_of(slides / "P2") == total
    assert size_of(slides / "P3.ome.zarr") > 10_000
    assert size_of(slides / "nothing") == 0
