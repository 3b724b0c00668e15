"""Pictures that no image file holds: polygons, run-length codes, stretched grey, HDF5 rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.tiles import random_pixels, write_image
from PIL import Image

from fastmtl import data
from fastmtl.data import ArrayRow, GreyPicture, Polygons, RunLengths, decode_runs, encode_runs


def _ring(left: float, top: float, right: float, bottom: float) -> list:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def _feature(coordinates: list, name: str | None = None, kind: str = "Polygon") -> dict:
    properties = {} if name is None else {"classification": {"name": name}}
    return {"type": "Feature", "properties": properties, "geometry": {"type": kind, "coordinates": coordinates}}


def _file(folder: Path, content: object) -> Path:
    (folder / "p.geojson").write_text(json.dumps(content))
    return folder / "p.geojson"


def _square(size: int, *boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    pixels = np.zeros((size, size), np.uint8)
    for left, top, right, bottom, value in boxes:
        pixels[top:bottom, left:right] = value
    return pixels


def test_polygons_with_holes_and_parts(tmp_path: Path):
    with_hole = _feature([_ring(2, 3, 12, 10), _ring(4, 5, 7, 8)])
    parts = _feature([[_ring(14, 14, 16, 18)], [_ring(17, 0, 19, 2)]], kind="MultiPolygon")
    point = {"type": "Feature", "properties": None, "geometry": {"type": "Point", "coordinates": [1, 1]}}
    path = _file(tmp_path, {"type": "FeatureCollection", "features": [with_hole, point, parts]})
    expected = _square(20, (2, 3, 12, 10, 255), (4, 5, 7, 8, 0), (14, 14, 16, 18, 255), (17, 0, 19, 2, 255))
    np.testing.assert_array_equal(Polygons(path, 0, 0, 20, 20).draw(), expected)
    # A window, and the same at half the resolution.
    np.testing.assert_array_equal(Polygons(path, 3, 4, 8, 6).draw(), expected[4:10, 3:11])
    fine = Polygons(path, 0.5, 0.5, 38, 38, downsample=0.5).draw()  # no pixel's centre on an edge
    np.testing.assert_array_equal(fine, expected.repeat(2, 0).repeat(2, 1)[1:39, 1:39])
    assert Polygons(path, 100, 100, 5, 4).draw().tolist() == [[0] * 5] * 4


def test_polygon_classes_become_their_places(tmp_path: Path):
    path = _file(tmp_path, [_feature([_ring(0, 0, 8, 8)], "stroma"), _feature([_ring(4, 4, 12, 12)], "tumour")])
    drawn = Polygons(path, 0, 0, 16, 16, classes=("background", "tumour", "stroma")).draw()
    np.testing.assert_array_equal(drawn, _square(16, (0, 0, 8, 8, 2), (4, 4, 12, 12, 1)))
    assert data.polygon_classes(path) == {"stroma": 1, "tumour": 1}
    with pytest.raises(
        ValueError, match=r"polygon of class 'stroma'; `classes` knows background, tumour.*polygon_ignore"
    ):
        Polygons(path, 0, 0, 16, 16, classes=("background", "tumour")).draw()


def test_polygon_classes_are_renamed_ignored_and_limited_to_regions(tmp_path: Path):
    content = [
        _feature([_ring(0, 0, 12, 12)], "ROI"),
        _feature([_ring(2, 2, 6, 6)], "Tumour"),
        _feature([_ring(8, 2, 15, 6)]),
        _feature([_ring(2, 8, 6, 11)], "Ignore*"),
        _feature([_ring(8, 8, 10, 10)], "Vessel"),
    ]
    path = _file(tmp_path, content)
    renamed = (("Tumour", "tumour"), ("", "stroma"), ("Vessel", "background"))
    options = {"classes": ("none", "tumour", "stroma"), "renamed": renamed, "ignored": ("Ignore*",), "region": "ROI"}
    expected = np.full((16, 16), 255, np.uint8)
    expected[:12, :12] = _square(12, (2, 2, 6, 6, 1), (8, 2, 12, 6, 2), (2, 8, 6, 11, 255))
    np.testing.assert_array_equal(Polygons(path, 0, 0, 16, 16, **options).draw(), expected)
    np.testing.assert_array_equal(Polygons(path, 4, 4, 8, 8, **options).draw(), expected[4:12, 4:12])
    drawn = Polygons(path, 0, 0, 16, 16, **options)
    found = {name: drawn.drawn_as(name) for name in ("ROI", "Tumour", "", "Ignore*", "Vessel", "Fat")}
    not_listed = "not in data.polygon_classes"
    assert [*found.values()] == ["region", "1", "2", "ignored", "0", not_listed]
    assert drawn.is_annotated()
    assert not Polygons(path, 12, 0, 4, 16, **options).is_annotated()
    with pytest.raises(ValueError, match="`ignored` and `region` need `classes`"):
        Polygons(path, 0, 0, 16, 16, ignored=("Ignore*",))
    # Without classes everything is foreground but what is renamed to the background.
    plain = Polygons(path, 0, 0, 12, 12, renamed=(("ROI", "background"), ("Vessel", "background"))).draw()
    np.testing.assert_array_equal(plain, _square(12, (2, 2, 6, 6, 255), (8, 2, 12, 6, 255), (2, 8, 6, 11, 255)))
    corner = _feature([[[0, 0], [16, 0], [0, 16]]], "ROI")  # its box covers everything
    assert not Polygons(_file(tmp_path, [corner]), 9, 9, 4, 4, **options).is_annotated()


def test_an_offset_moves_polygons(tmp_path: Path):
    path = _file(tmp_path, _feature([_ring(0, 0, 4, 4)]))
    np.testing.assert_array_equal(Polygons(path, 0, 0, 8, 8, offset=(2, 3)).draw(), _square(8, (2, 3, 6, 7, 255)))


def test_a_changed_file_is_read_again(tmp_path: Path):
    path = _file(tmp_path, _feature([_ring(0, 0, 4, 4)]))
    assert Polygons(path, 0, 0, 8, 8).draw().any()
    _file(tmp_path, _feature([_ring(20, 20, 24.5, 24.5)]))
    assert not Polygons(path, 0, 0, 8, 8).draw().any()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"type": "FeatureCollection"}, "has no polygon"),
        ({"type": "Topology"}, "is not GeoJSON: expected"),
        ([1, 2], "is not GeoJSON"),
        (_feature([[["a", 0], [1, 1], [2, 2], [0, 0]]]), "polygon 1 cannot be read"),
        (_feature([[[0, 0], [1, 1]]]), "polygon 1 cannot be read"),
    ],
)
def test_bad_polygons_say_what_is_wrong(tmp_path: Path, content: object, says: str):
    with pytest.raises(ValueError, match=says):
        Polygons(_file(tmp_path, content), 0, 0, 4, 4).draw()


def test_polygon_files_that_are_none(tmp_path: Path):
    (tmp_path / "p.geojson").write_text("{")
    with pytest.raises(ValueError, match="is not GeoJSON"):
        Polygons(tmp_path / "p.geojson", 0, 0, 4, 4).draw()
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        Polygons(tmp_path / "q.geojson", 0, 0, 4, 4).draw()


def _brute_force(mask: np.ndarray, order: str) -> str:
    flat = [value for line in (mask if order == "row" else mask.T) for value in line]
    words: list[int] = []
    for at, value in enumerate(flat):
        if value and (at == 0 or not flat[at - 1]):
            words += [at + 1, 0]
        if value:
            words[-1] += 1
    return " ".join(map(str, words))


@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_run_lengths_match_brute_force(order, share: float):
    for seed, shape in enumerate([(1, 1), (1, 7), (9, 1), (13, 8), (6, 17)]):
        mask = np.random.default_rng(seed).random(shape) < share
        text = encode_runs(mask, order)
        assert text == _brute_force(mask, order)
        np.testing.assert_array_equal(decode_runs(text, *shape, order), mask)
        np.testing.assert_array_equal(RunLengths(text, *shape, order).draw(), mask * np.uint8(255))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1", "pairs of start and length; got 1"),
        ("1 2 x 4", "whole numbers; got 'x'"),
        ("1 2.5", "whole numbers; got '2.5'"),
        ("0 2", r"run 1 of the code \(start 0, length 2\)"),
        ("1 2 11 3", r"run 2 of the code \(start 11, length 3\) is not inside a mask of 3 rows and 4 columns"),
        ("1 0", "length 0"),
        ("5 9223372036854775807", "length 9223372036854775807"),
        ("5 99999999999999999999", "whole numbers; got"),
    ],
)
def test_bad_codes_say_what_is_wrong(text: str, says: str):
    with pytest.raises(ValueError, match=says):
        decode_runs(text, 3, 4)
    with pytest.raises(ValueError, match='"row" or "column"'):
        decode_runs("1 2", 3, 4, "diagonal")  # type: ignore[arg-type]


def test_deep_grey_is_stretched(tmp_path: Path):
    values = np.array([[1000, 1500], [3000, 2000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    drawn = GreyPicture(tmp_path / "deep.png").draw()
    expected = np.rint((values - 1000.0) / 2000 * 255).astype(np.uint8)
    np.testing.assert_array_equal(drawn, np.stack([expected] * 3, -1))
    Image.fromarray(np.full((2, 3), 777, np.uint16)).save(tmp_path / "flat.png")
    assert not GreyPicture(tmp_path / "flat.png").draw().any()
    write_image(tmp_path / "colour.png", random_pixels(1))
    with pytest.raises(ValueError, match="RGB pixels"):
        GreyPicture(tmp_path / "colour.png").draw()
    with pytest.raises(ValueError, match="unknown preprocessing 'maxmin'; known: min_max"):
        GreyPicture(tmp_path / "deep.png", "maxmin").draw()


def test_rows_of_arrays(tmp_path: Path):
    import h5py

    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    masks = (images[..., :1] > 127).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["masks"] = images, masks
    np.testing.assert_array_equal(ArrayRow(tmp_path / "a.h5", "images", 2).draw(), images[2])
    drawn = ArrayRow(tmp_path / "a.h5", "masks", 1, scale=255).draw()
    np.testing.assert_array_equal(drawn, (masks[1, ..., 0] * 255).astype(np.uint8))
    for key, row, says in (("image", 0, "no array 'image'; it has images, masks"), ("images", 3, "has no image 3")):
        with pytest.raises(ValueError, match=says):
            ArrayRow(tmp_path / "a.h5", key, row).draw()
    (tmp_path / "b.h5").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        ArrayRow(tmp_path / "b.h5", "images", 0).draw()


def test_any_picture_opens_as_rgb(tmp_path: Path):
    pixels = random_pixels(3, 12)[:8]
    turned = Image.Exif()
    turned[0x0112] = 6
    path = write_image(tmp_path / "turned.png", pixels, exif=turned)
    np.testing.assert_array_equal(data.open_picture(path), np.rot90(pixels, -1))
    assert data.picture_size(path) == (8, 12)
    mask = RunLengths("1 2", 3, 4)
    assert data.open_picture(mask).shape == (3, 4, 3)
    assert data.picture_size(mask) == (4, 3)
