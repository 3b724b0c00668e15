"""Outlines are the map, whatever it is; they leave out what an option says; memory does not depend on the map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.memory import needs_statm, resident_bytes

from fastmtl import data
from fastmtl.data.slide_output import traced
from fastmtl.data.slide_output.slide_map import read_rows
from fastmtl.data.slide_output.traced import TracedPolygons

NAMES = {1: "Tumor", 2: "stroma", 3: "gland"}


def _map(folder: Path, pixels: np.ndarray) -> Path:
    """`pixels` as a map's file."""
    path = folder / "map.tif"
    written = data.SlideMap(path, pixels.shape[1], pixels.shape[0], mpp=None, description={})
    written.add(pixels)
    written.close()
    return path


def _outlined(folder: Path, pixels: np.ndarray, **options) -> tuple[list[dict], data.Polygons, float]:
    """The features of a map, their drawing, and the smallest area."""
    path = folder / "map.geojson"
    found = data.write_outlines(path, {_map(folder, pixels): NAMES}, 1.0, options=data.OutlineOptions(**options))
    features = json.loads(path.read_text())["features"]
    assert len(features) == found.number
    names = ("nothing", *NAMES.values())
    return features, data.Polygons(path, 0, 0, pixels.shape[1], pixels.shape[0], 1.0, names), found.min_area


@pytest.mark.parametrize("most_corners", [1, 2**20], ids=["cut", "whole"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.65, 0.9])
def test_they_are_valid_and_the_map_itself(tmp_path, monkeypatch, share, most_corners):
    shapely = pytest.importorskip("shapely")
    monkeypatch.setattr(traced, "_MAX_CORNERS", most_corners)
    random = np.random.default_rng(int(share * 100))
    for height, width, num_values in ((1, 1, 1), (40, 1, 1), (1, 40, 2), (70, 53, 1), (41, 120, 3), (99, 31, 2)):
        pixels = (
            random.integers(1, num_values + 1, (height, width)) * (random.random((height, width)) < share)
        ).astype(np.uint8)
        features, drawn, _ = _outlined(tmp_path, pixels)
        np.testing.assert_array_equal(drawn.draw() if features else np.zeros_like(pixels), pixels)
        polygons = [
            shapely.Polygon(f["geometry"]["coordinates"][0], f["geometry"]["coordinates"][1:]) for f in features
        ]
        assert all(polygon.is_valid for polygon in polygons)
        for value, name in NAMES.items():
            own = [p for p, f in zip(polygons, features, strict=True) if _class(f)["name"] == name]
            assert sum(polygon.area for polygon in own) == (pixels == value).sum(), "none covers another"


def _class(feature: dict) -> dict:
    return feature["properties"]["classification"]


def test_a_component_is_one_polygon_unless_it_has_too_many_corners(tmp_path, monkeypatch):
    comb = np.zeros((900, 40), np.uint8)
    comb[::2], comb[:, 0] = 1, 1
    features, _, _ = _outlined(tmp_path, comb)
    assert len(features) == 1
    monkeypatch.setattr(traced, "_MAX_CORNERS", 1)  # there is room for 32 times the width
    features, drawn, _ = _outlined(tmp_path, comb)
    assert 1 < len(features) < 10
    np.testing.assert_array_equal(drawn.draw(), comb)


def test_specks_and_holes_below_the_smallest_area(tmp_path):
    pixels = np.zeros((50, 60), np.uint8)
    pixels[5:25, 5:35] = 1
    pixels[8:10, 8:11], pixels[12:20, 12:22] = 0, 0  # holes of 6 and 80, the latter with an island of 4
    pixels[14:16, 14:16] = 2
    pixels[40:42, 40:45] = 3
    features, drawn, least = _outlined(tmp_path, pixels, min_area=10)
    assert least == 10
    assert [(_class(f)["name"], len(f["geometry"]["coordinates"])) for f in features] == [("Tumor", 2), ("gland", 1)]
    expected = pixels.copy()
    expected[8:10, 8:11], expected[14:16, 14:16] = 1, 0
    np.testing.assert_array_equal(drawn.draw(), expected)
    assert _class(features[0])["color"] == [200, 0, 0], "QuPath's own"
    assert _class(features[1])["color"] not in ([200, 0, 0], _class(_outlined(tmp_path, pixels)[0][0])["color"])


def test_too_many_points_raise_the_smallest_area(tmp_path):
    random = np.random.default_rng(0)
    pixels = (random.random((400, 400)) < 0.4).astype(np.uint8)
    pixels[100:150, 100:200] = 1
    features, _, least = _outlined(tmp_path, pixels, max_points=1500)
    points = sum(len(ring) - 1 for f in features for ring in f["geometry"]["coordinates"])
    assert 0 < points <= 1500
    assert least in (16, 32, 64, 128, 256)
    wanted, _, _ = _outlined(tmp_path, pixels, min_area=least)
    assert features == wanted, "the same as if it had been asked for"


def test_simplified_outlines_are_valid_and_near(tmp_path):
    shapely = pytest.importorskip("shapely")
    rows, columns = np.indices((200, 200))
    radius = np.hypot(rows - 100, columns - 100)
    pixels = ((radius < 80) & (radius > 30)).astype(np.uint8)
    (whole,), _, _ = _outlined(tmp_path, pixels)
    (simple,), _, _ = _outlined(tmp_path, pixels, tolerance=2.0)
    first, second = (
        shapely.Polygon(f["geometry"]["coordinates"][0], f["geometry"]["coordinates"][1:]) for f in (whole, simple)
    )
    assert second.is_valid
    assert shapely.get_num_coordinates(second) < shapely.get_num_coordinates(first) / 5
    assert shapely.hausdorff_distance(first.exterior, second.exterior) < 3
    assert len(second.interiors) == 1


def test_rows_of_a_file_are_its_pixels(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 5, (600, 301), dtype=np.uint8)
    rows = list(read_rows(_map(tmp_path, pixels)))
    assert [len(some) for some in rows] == [256, 256, 88]
    np.testing.assert_array_equal(np.concatenate(rows), pixels)


@needs_statm
def test_a_file_is_not_in_memory_while_it_is_read(tmp_path):
    path = _map(tmp_path, np.random.default_rng(0).integers(0, 256, (6000, 6000), dtype=np.uint8))
    before, rows = resident_bytes(), read_rows(path)
    for _ in range(2):
        next(rows)
    assert resident_bytes() - before < 20e6, "of 36 MB"
    rows.close()


@needs_statm
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.7], ids=["specks", "one component"])
def test_memory_does_not_grow_with_the_map(tmp_path, share):
    random = np.random.default_rng(0)

    def peak(height: int) -> int:
        most = 0
        with (tmp_path / "spool").open("w+b") as file:
            found = TracedPolygons(file, data.OutlineOptions(max_points=200_000))

            def rows():
                nonlocal most
                for number in range(height // 256):
                    if number % 4 == 0:
                        most = max(most, resident_bytes())
                    yield (random.random((256, 2000)) < share).astype(np.uint8)

            found.trace(rows(), {1: "a"})
            for _ in found.read():
                pass
            return max(most, resident_bytes())

    first = peak(2048)
    assert peak(8192) < first + 20e6
