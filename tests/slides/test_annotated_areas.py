"""Slides on which only some areas are annotated, and slides on which nobody has drawn anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastmtl import data
from fastmtl.cli import main
from fastmtl.data import GridOptions, ManifestOptions, PolygonOptions

CLASSES = ("background", "Gland")


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Three slides: one with an area "ROI" over its left half, one without any, one on which nothing is drawn."""
    root = data.generate_slides(tmp_path_factory.mktemp("made") / "slides", num_patients=3, slide_size=512)
    first, second, third = sorted((root / "polygons").glob("*.geojson"))
    for path in (first, second):
        content = json.loads(path.read_text())
        for feature in content["features"]:
            feature["properties"] = {"classification": {"name": "Gland"}}
        if path == first:
            corners = [[0, 0], [256, 0], [256, 512], [0, 512], [0, 0]]
            area = {"type": "Polygon", "coordinates": [corners]}
            content["features"] += [
                {"type": "Feature", "properties": {"classification": {"name": "ROI"}}, "geometry": area}
            ]
        path.write_text(json.dumps(content))
    third.write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    return root


def _read(slides: Path, **options):
    grid = GridOptions(tile_size=128, min_tissue=0.0)
    return data.read_dataset(slides, options=ManifestOptions(grid=grid, polygons=PolygonOptions(**options)))


def test_tiles_outside_the_areas_have_no_mask(slides: Path):
    dataset = _read(slides, classes=CLASSES, region="ROI")
    labelled = [tile for tile in dataset.tiles if tile.mask is not None]
    assert {tile.image.slide.stem for tile in labelled} == {"P001-1"}
    assert {tile.image.x for tile in labelled} == {0, 128}
    assert all(set(np.unique(tile.mask.draw())) <= {0, 1} for tile in labelled)
    reasons = {problem.path.name: problem.reason for problem in dataset.problems}
    assert "no tile is in an area of class 'ROI'" in reasons["P002-1.geojson"]
    assert "40 tiles outside the areas of class 'ROI' have no mask" in reasons["manifest.csv"]


def test_an_area_that_no_file_has_is_an_error(slides: Path):
    with pytest.raises(ValueError, match=r"no polygon is of class 'Roi' .*did you mean 'ROI'"):
        _read(slides, classes=CLASSES, region="Roi")


def test_a_class_that_is_renamed_and_not_there_is_told(slides: Path):
    """As of binary masks, in which it would be drawn as foreground."""
    for renamed, told in ((("Glnd", "background"), 1), (("Gland", "background"), 0), (("ROI", "ROI"), 0)):
        reasons = [problem.reason for problem in _read(slides, renamed=(renamed,)).problems]
        said = "no polygon is of class 'Glnd', which data.polygon_rename renames; did you mean 'Gland'?"
        assert reasons.count(said) == told
        assert sum("data.polygon_rename" in reason for reason in reasons) == told


@pytest.mark.parametrize(("unannotated", "without"), [("background", 0), ("unlabelled", 16)])
def test_a_slide_on_which_nothing_is_drawn(slides: Path, unannotated: str, without: int):
    dataset = _read(slides, renamed=(("ROI", "background"),), unannotated=unannotated)
    assert sum(tile.mask is None for tile in dataset.tiles) == without
    assert any("16 tiles of files without a polygon" in each.reason for each in dataset.problems) == bool(without)


RECIPE = """
[data]
polygon_classes = ["background", "Gland"]
polygon_region = "ROI"
require = ["mask"]
tile_size = 128
min_tissue = 0.0
size = 32
batch_size = 4
group_by = "tile"

[model]
name = "joint_unet"
base_channels = 4

[tasks.glands]
kind = "multiclass_segmentation"
structures = ["background", "gland"]

[training]
epochs = 1
"""


def test_a_recipe_trains_on_annotated_areas(slides: Path, tmp_path: Path, capsys):
    """Pixels and tiles outside the areas are not scored."""
    (tmp_path / "glands.toml").write_text(RECIPE)
    out = tmp_path / "run"
    assert main(["train", str(tmp_path / "glands.toml"), "--data", str(slides), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "40 tiles without mask left out (data.require)" in " ".join(said.split())
    assert 0 < json.loads((out / "summary.json").read_text())["tasks"]["glands"]["pixel_accuracy"] <= 1


def test_a_task_that_cannot_leave_pixels_out_is_refused(slides: Path, tmp_path: Path, capsys):
    binary = RECIPE.replace("multiclass", "binary").replace('structures = ["background", "gland"]', "")
    (tmp_path / "glands.toml").write_text(binary)
    command = ["train", str(tmp_path / "glands.toml"), "--data", str(slides), "--out", str(tmp_path / "run")]
    assert main(command) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "leave pixels out, which only a task of kind multiclass_segmentation can" in said
