"""Polygons that are not plain: overlapping parts, holes anywhere, outlines that cross themselves, what viewers add."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from helpers.geojson import feature, ring, write_geojson
from helpers.tiles import random_pixels, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtl import data
from fastmtl.data import Polygons, polygon_classes

SIDE = 24


def drawn(folder: Path, content: object, side: int = SIDE, **options) -> np.ndarray:
    return Polygons(write_geojson(folder, content), 0, 0, side, side, **options).draw()


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    pixels = np.zeros((SIDE, SIDE), bool)
    pixels[max(top, 0) : bottom, max(left, 0) : right] = True
    return pixels


SHELL = ring(0, 0, 20, 20)
BOW_TIE = [[0, 0], [20, 20], [20, 0], [0, 20]]
SITUATIONS = {
    "parts overlap": ("MultiPolygon", [[SHELL], [ring(10, 10, 24, 24)]], box(0, 0, 20, 20) | box(10, 10, 24, 24)),
    "a part inside another": ("MultiPolygon", [[SHELL], [ring(5, 5, 9, 9)]], box(0, 0, 20, 20)),
    "a part twice": ("MultiPolygon", [[SHELL], [SHELL]], box(0, 0, 20, 20)),
    "parts share an edge": ("MultiPolygon", [[ring(0, 0, 9, 9)], [ring(9, 0, 20, 9)]], box(0, 0, 20, 9)),
    "a part fills the other's hole": (
        "MultiPolygon",
        [[SHELL, ring(5, 5, 9, 9)], [ring(5, 5, 9, 9)]],
        box(0, 0, 20, 20),
    ),
    "an island in a hole": (
        "MultiPolygon",
        [[SHELL, ring(4, 4, 16, 16)], [ring(8, 8, 12, 12)]],
        box(0, 0, 20, 20) & ~box(4, 4, 16, 16) | box(8, 8, 12, 12),
    ),
    "a hole beyond the outline": ("Polygon", [SHELL, ring(15, 5, 24, 15)], box(0, 0, 20, 20) & ~box(15, 5, 24, 15)),
    "a hole outside": ("Polygon", [ring(0, 0, 9, 9), ring(12, 12, 20, 20)], box(0, 0, 9, 9)),
    "a hole around the outline": ("Polygon", [ring(5, 5, 9, 9), SHELL], box(0, 0, 0, 0)),
    "a hole that is the outline": ("Polygon", [SHELL, SHELL], box(0, 0, 0, 0)),
    "holes overlap": (
        "Polygon",
        [SHELL, ring(2, 2, 12, 12), ring(7, 7, 17, 17)],
        box(0, 0, 20, 20) & ~box(2, 2, 12, 12) & ~box(7, 7, 17, 17),
    ),
    "holes share an edge": (
        "Polygon",
        [SHELL, ring(2, 2, 9, 9), ring(9, 2, 17, 9)],
        box(0, 0, 20, 20) & ~box(2, 2, 17, 9),
    ),
    "a hole in a hole": (
        "Polygon",
        [SHELL, ring(2, 2, 17, 17), ring(5, 5, 9, 9)],
        box(0, 0, 20, 20) & ~box(2, 2, 17, 17),
    ),
    "a hole of no area": ("Polygon", [SHELL, [[3, 3], [5, 5], [3, 3]]], box(0, 0, 20, 20)),
    "wound the other way": ("Polygon", [SHELL[::-1], ring(4, 4, 8, 8)[::-1]], box(0, 0, 20, 20) & ~box(4, 4, 8, 8)),
    "wound twice": ("Polygon", [SHELL[:-1] * 2 + SHELL[:1]], box(0, 0, 20, 20)),
    "its end overlaps its beginning": (
        "Polygon",
        [[*SHELL[:-1], [0, 0], [10, 0], [10, 5], [0, 5]]],
        box(0, 0, 20, 20),
    ),
    "not closed": ("Polygon", [SHELL[:-1]], box(0, 0, 20, 20)),
    "points twice": ("Polygon", [[point for point in SHELL for _ in range(3)]], box(0, 0, 20, 20)),
    "a spike": ("Polygon", [[*SHELL[:2], [24, 0], *SHELL[1:]]], box(0, 0, 20, 20)),
    "heights": ("Polygon", [[[*point, 7.5] for point in SHELL]], box(0, 0, 20, 20)),
    "some heights": ("Polygon", [[SHELL[0] + [1], *SHELL[1:]]], box(0, 0, 20, 20)),
    "a sliver beside": ("MultiPolygon", [[SHELL], [ring(22.1, 0, 22.2, 20)]], box(0, 0, 20, 20)),
    "beyond the picture": ("Polygon", [ring(-1e9, -1e9, 5, 5)], box(0, 0, 5, 5)),
    "around the picture": ("Polygon", [ring(-1e9, -1e9, 1e9, 1e9), ring(3, 3, 9, 9)], ~box(3, 3, 9, 9)),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_polygon_is_its_outline_without_its_holes_and_parts_add_up(tmp_path: Path, name: str):
    kind, coordinates, expected = SITUATIONS[name]
    for content in ({"type": kind, "coordinates": coordinates}, feature(coordinates, kind)):
        np.testing.assert_array_equal(drawn(tmp_path, content) > 0, expected)
    collection = {"type": "GeometryCollection", "geometries": [{"type": kind, "coordinates": coordinates}]}
    within = {"type": "Feature", "properties": {"classification": {"name": "b"}}, "geometry": collection}
    of_class = drawn(tmp_path, {"type": "FeatureCollection", "features": [within]}, classes=("a", "b"))
    np.testing.assert_array_equal(of_class == 1, expected)


def test_both_loops_of_a_bow_tie_are_drawn(tmp_path: Path):
    y, x = np.abs(np.mgrid[:SIDE, :SIDE] + 0.5 - 10)
    pixels = drawn(tmp_path, feature([BOW_TIE]))
    assert pixels[(x > y) & (x < 10)].all()
    assert not pixels[(x < y) | (x > 10)].any()


_RINGS = st.lists(st.tuples(st.integers(-3, 15), st.integers(-3, 15)), min_size=3, max_size=9)


@pytest.mark.long
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(_RINGS, min_size=1, max_size=4), min_size=1, max_size=3),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(-4, 4),
)
def test_random_polygons_match_the_sets_they_stand_for(tmp_path_factory, parts, downsample, corner):
    import shapely

    def covered(points):
        return shapely.make_valid(shapely.Polygon(points), method="structure", keep_collapsed=False)

    shapes = [covered(rings[0]).difference(shapely.union_all([covered(hole) for hole in rings[1:]])) for rings in parts]
    side = 12
    centres = corner + (np.arange(side) + 0.5) * downsample
    points = shapely.points(*np.meshgrid(centres, centres))
    expected = shapely.contains(shapely.union_all(shapes), points)
    lines = shapely.union_all([shapely.LinearRing(ring) for rings in parts for ring in rings])
    clear = shapely.distance(lines, points) > 1e-9
    content = {"type": "MultiPolygon", "coordinates": [*parts, [ring(90, 90, 99, 99)]]}  # a file holds a polygon
    path = write_geojson(tmp_path_factory.getbasetemp(), content)
    got = Polygons(path, corner, corner, side, side, downsample).draw() > 0
    np.testing.assert_array_equal(got[clear], expected[clear])


def test_neighbours_leave_no_gap_and_do_not_overlap(tmp_path: Path):
    """Edges through pixels' centres belong to one side, and windows of a picture agree with the whole."""
    middle = [[11.3, -2.0], [4.5, 5.5], [13.7, 11.1], [2.5, 26.0]]
    left, right = [*middle, [-9, 26], [-9, -2]], [*middle[::-1], [40, -2], [40, 26]]
    one, other = (drawn(tmp_path, {"type": "Polygon", "coordinates": [points]}) > 0 for points in (left, right))
    assert (one ^ other).all()
    path = write_geojson(tmp_path, {"type": "Polygon", "coordinates": [left]})
    for x, y in ((3, 0), (7, 5), (0, 13)):
        np.testing.assert_array_equal(Polygons(path, x, y, 9, 11).draw() > 0, one[y : y + 11, x : x + 9])


def test_a_polygon_larger_than_a_band_is_drawn_whole(tmp_path: Path, monkeypatch):
    points = [[0, 0], [3000, 100], [2000, 2000], [100, 1400]]
    path = write_geojson(tmp_path, {"type": "Polygon", "coordinates": [points, ring(500, 500, 900, 900)]})
    whole = Polygons(path, 0, 0, 3000, 2000).draw()
    for x, y in ((0, 0), (1500, 300), (400, 1300)):
        np.testing.assert_array_equal(Polygons(path, x, y, 300, 300).draw(), whole[y : y + 300, x : x + 300])


def test_thousands_of_crossings_cost_no_time(tmp_path: Path):
    """Every edge of this star crosses nearly every other."""
    angles = np.arange(4001) * 2 * np.pi * 2000 / 4001
    star = (500 + 490 * np.stack([np.cos(angles), np.sin(angles)], 1)).tolist()
    Polygons(write_geojson(tmp_path, feature([ring(0, 0, 4, 4)])), 0, 0, 8, 8).draw()  # compiles
    path = write_geojson(tmp_path, feature([star]))
    started = time.process_time()
    pixels = Polygons(path, 0, 0, 1000, 1000).draw()
    assert time.process_time() - started < 5
    assert pixels[400:600, 400:600].all()
    assert not pixels[:5].any()


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"name": "Tumor", "colorRGB": -3670016}}, "Tumor"),
        ({"classification": {"names": ["Tumor", "Positive"], "color": [200, 0, 0]}}, "Tumor: Positive"),
        ({"classification": {"names": ["Tumor"]}}, "Tumor"),
        ({"classification": {"name": " Tumor "}}, "Tumor"),
        ({"classification": {"names": [" CD3", "CD8 "]}}, "CD3: CD8"),
        ({"classification": {"names": []}, "label": "x"}, "x"),
        ({"classification": "Tumor"}, "Tumor"),
        ({"classification": None, "name": "Annotation 3", "isLocked": True}, ""),
        ({"classifications": ["CD3", "CD8"]}, "CD3: CD8"),
        ({"class": {"name": "Tumor"}}, "Tumor"),
        ({"class": 3}, "3"),
        ({"label": 3.0}, "3"),
        ({"label": 0}, "0"),
        ({"classification": {"name": None}}, ""),
        ({"class": {"name": {"name": "x"}}, "label": [[["x"]]]}, ""),
        ({}, ""),
    ],
)
def test_a_class_has_the_name_that_viewers_show(tmp_path: Path, properties: dict, name: str):
    path = write_geojson(tmp_path, [feature([SHELL], **properties)])
    assert polygon_classes(path) == {name: 1}


def manifest_of(folder: Path, content: object, **options) -> data.Dataset:
    write_image(folder / "a.png", random_pixels(0, SIDE))
    write_geojson(folder, content)
    (folder / "m.csv").write_text("image,mask\na.png,p.geojson\n")
    return data.read_manifest(folder / "m.csv", data.ManifestOptions(**options))


def reasons(folder: Path, content: object, **options) -> list[str]:
    problems = manifest_of(folder, content, **options).problems
    assert {problem.path.name for problem in problems} <= {"p.geojson"}
    return [problem.reason for problem in problems]


def plain(kind: str, coordinates: object) -> dict:
    return {"type": "Feature", "properties": {}, "geometry": {"type": kind, "coordinates": coordinates}}


def test_what_is_not_drawn_is_noticed(tmp_path: Path):
    tumor = {"name": "Tumor"}
    square = feature([SHELL], objectType="annotation", isLocked=True, classification=tumor)
    assert reasons(tmp_path, [square]) == []
    others = [plain("Point", [1, 1]), plain("LineString", [[0, 0], [5, 5]]), plain("Point", [2, 2])]
    empty = {"type": "Feature", "properties": {}, "geometry": None}
    (reason,) = reasons(tmp_path, [square, *others, empty])
    assert reason.startswith("ignored: 1 LineString, 2 Point, 1 feature without a geometry")
    cell = {**feature([SHELL], objectType="cell", classification=tumor), "nucleusGeometry": square["geometry"]}
    assert reasons(tmp_path, [square, cell]) == [
        "1 cells have a separate nucleus, which is not drawn",
        "all kinds of objects are drawn: 1 annotation, 1 cell",
    ]
    older = {**feature([SHELL]), "id": "PathDetectionObject"}
    assert reasons(tmp_path, [older]) == ["all kinds of objects are drawn: 1 detection"]
    line = feature([[[1, 1], [9, 9], [5, 5], [1, 1]]], classification=tumor)
    assert reasons(tmp_path, [square, line]) == ["1 polygons have no area"]
    planes = [feature([SHELL]), feature([SHELL])]
    for z, one in enumerate(planes):
        one["geometry"]["plane"] = {"c": -1, "z": z, "t": 0}
    assert reasons(tmp_path, planes) == ["polygons of 2 planes (z, t) are drawn together"]


def test_what_is_drawn_otherwise_than_it_looks_is_noticed(tmp_path: Path):
    (reason,) = reasons(tmp_path, [feature([BOW_TIE]), feature([SHELL])])
    assert reason.startswith("1 of 2 polygons are invalid (Self-intersection")
    (reason,) = reasons(tmp_path, [feature([SHELL, ring(15, 5, 24, 15)])])
    assert reason.startswith("1 of 1 polygons are invalid")
    two = [feature([SHELL], label="stroma"), feature([SHELL], label="tumor")]
    (reason,) = reasons(tmp_path, two)
    assert reason.startswith("polygons of 2 classes (stroma, tumor) are drawn as one")
    named = data.PolygonOptions(("background", "stroma", "tumor"))
    assert reasons(tmp_path, two, polygons=named) == []
    (reason,) = reasons(tmp_path, two, polygons=data.PolygonOptions(("tumor", "stroma")))
    assert reason.startswith("polygons of class 'tumor' are drawn as 0, as everything outside polygons is")
    (reason,) = reasons(tmp_path, feature([ring(5, 5, 90, 9)]))
    assert reason == "1 of 1 polygons reach beyond a.png (24x24)"
    with pytest.raises(ValueError, match=r"all 1 polygons are outside .*a\.png \(24x24 pixels\)"):
        manifest_of(tmp_path, feature([ring(50, 50, 90, 90)]))


def test_a_file_of_polygons_that_cannot_be_read_is_one_of_the_damaged(tmp_path: Path):
    dataset = manifest_of(tmp_path, [1, 2])
    assert dataset.problems == ()
    (problem,) = data.check_tiles(dataset.tiles)
    assert "is not GeoJSON" in problem.reason


HUGE = int("9" * 400)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"type": "Polygon", "coordinates": null}', "expected a list of rings; found None"),
        ('{"type": "Polygon", "coordinates": "x"}', "expected a list of rings; found 'x'"),
        ('{"type": "Polygon", "coordinates": [[["0", "0"], ["9", "0"], ["9", "9"]]]}', "expected positions"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, null]]]}', "expected positions"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [9, 0], {"x": 9}]]}', "expected positions"),
        ('{"type": "Polygon", "coordinates": [[0, 0, 9, 0, 9, 9]]}', "expected positions"),
        ('{"type": "Polygon", "coordinates": [[[[0, 0], [9, 0], [9, 9]]]]}', "expected positions"),
        ('{"type": "MultiPolygon", "coordinates": [[[0, 0], [9, 0], [9, 9]]]}', "expected positions"),
        (f'{{"type": "Polygon", "coordinates": [[[0, 0], [{HUGE}, 0], [9, 9]]]}}', "expected positions"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1e400, 0], [9, 9]]]}', "not finite"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 0], [9, 9]]]}', "not finite"),
        (
            '{"type": "Polygon", "coordinates": [[[0, 0], [1e300, 0], [9, 9]]]}',
            "coordinate of 1e\\+300; expected pixels",
        ),
        ('{"type": "Polygon"}', "found None"),
        ('{"type": "FeatureCollection", "features": 3}', "found 3"),
        ('{"type": "FeatureCollection", "features": null}', "found None"),
        ('{"type": ["Polygon"]}', "GeoJSON `type`"),
        ('{"type": "Point", "coordinates": [1, 2]}', "has no polygon; ignored: 1 Point"),
        ("9" * 5000, "is not GeoJSON"),
        ("", "is not GeoJSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
        ('{"type": "GeometryCollection", "geometries": [' * 100 + "]}" * 100, "nested too deeply"),
    ],
)
def test_a_file_of_another_shape_is_one_line(tmp_path: Path, text: str, says: str):
    path = tmp_path / "p.geojson"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as found:
        polygon_classes(path)
    message = str(found.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    assert len(message) < 400


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"type": "x"}'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ('{"type": "Größe"}'.encode("latin-1"), r"line 1: byte 0xf6 is not UTF-8 \('ö' in Windows-1252"),
        (b'{"type": \0\0', "line 1: a zero byte"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, content: bytes, says: str):
    (tmp_path / "p.geojson").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        polygon_classes(tmp_path / "p.geojson")
