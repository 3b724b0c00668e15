"""Damaged and odd files of every kind that data come in: one line that names the file, and never another exception."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from helpers.geojson import feature, ring
from helpers.tiles import random_pixels, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtl import data
from fastmtl.data import ArrayRow, Polygons, RunLengths
from fastmtl.data.formats.published.pets import Converted, Trimap, _box
from fastmtl.errors import UserError

h5py = pytest.importorskip("h5py")
arrow = pytest.importorskip("pyarrow")
_TIMES = count()
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)
MOST = 500  # MB that the whole of a test may add to the process


@pytest.fixture(scope="module", autouse=True)
def memory():
    """Peak memory of this process must hardly grow."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def one_line(read: Callable[[], object], path: Path) -> None:
    """Runs `read`: it returns, or raises what the command line says in one line that names the file."""
    try:
        read()
    except (ValueError, OSError, UserError) as error:
        message = str(error)
        assert path.name in message, message
        assert len(message.splitlines()) == 1, message
        assert len(message) < 600, message


def damaged(content: bytes):
    """`content` cut short, overwritten in one place, with a piece left out or put in."""

    def change(kind: int, at: int, junk: bytes) -> bytes:
        if kind == 0:
            return content[:at]
        if kind == 1:
            return content[:at] + junk + content[at + len(junk) :]
        return content[:at] + content[at + len(junk) :] if kind == 2 else content[:at] + junk + content[at:]

    return st.builds(change, st.integers(0, 3), st.integers(0, len(content)), st.binary(min_size=1, max_size=12))


_NUMBERS = st.one_of(
    st.integers(-30, 30),
    st.floats(),
    st.sampled_from([10**400, -(10**19), 1e300, 2**63, True, None, "1", [], {}, [1, 2], "\0"]),
)
_JUNK = st.recursive(_NUMBERS, lambda inner: st.lists(inner, max_size=5), max_leaves=12)
_COORDINATES = st.one_of(
    _JUNK,
    st.lists(st.lists(st.lists(_NUMBERS, max_size=3), max_size=5), max_size=3),
    st.lists(st.lists(st.lists(st.lists(_NUMBERS, max_size=3), max_size=5), max_size=3), max_size=3),
)
_KINDS = st.sampled_from(
    ["Polygon", "MultiPolygon", "Point", "GeometryCollection", "Feature", "FeatureCollection", 3, None, []]
)
_GEOMETRIES = st.fixed_dictionaries(
    {"type": _KINDS},
    optional={"coordinates": _COORDINATES, "geometries": _JUNK, "features": _JUNK, "plane": _JUNK, "geometry": _JUNK},
)
_CLASSES = st.one_of(_JUNK, st.dictionaries(st.sampled_from(["name", "names"]), _JUNK, max_size=2))
_PROPERTIES = st.one_of(
    _JUNK, st.dictionaries(st.sampled_from(["classification", "class", "label", "objectType"]), _CLASSES, max_size=3)
)
_FEATURES = st.fixed_dictionaries(
    {"type": st.just("Feature"), "geometry": _GEOMETRIES, "properties": _PROPERTIES},
    optional={"id": _JUNK, "nucleusGeometry": _JUNK},
)


@pytest.mark.long
@settings(EXAMPLES, max_examples=200)
@given(st.one_of(_JUNK, _GEOMETRIES, st.lists(_FEATURES, max_size=3)), st.sampled_from([(), ("a", "b")]))
def test_geojson_of_any_shape(folder: Path, content: object, classes: tuple[str, ...]):
    path = folder / "shape.geojson"
    path.write_text(json.dumps(content))
    os.utime(path, ns=(0, next(_TIMES)))  # parsed once for each time of change
    one_line(Polygons(path, 0, 0, 16, 16, 0.5, classes).draw, path)


_SOUND = json.dumps({"type": "FeatureCollection", "features": [feature([ring(0, 0, 9, 9)], label="a")] * 2}).encode()


@EXAMPLES
@given(damaged(_SOUND))
def test_damaged_geojson(folder: Path, content: bytes):
    path = folder / "damaged.geojson"
    path.write_bytes(content)
    os.utime(path, ns=(0, next(_TIMES)))
    one_line(Polygons(path, 0, 0, 16, 16).draw, path)


@EXAMPLES
@given(
    st.one_of(
        st.text(alphabet="0123456789 -+.ex\0\n٣", max_size=40),
        st.lists(st.integers()).map(lambda x: " ".join(map(str, x))),
    ),
    st.sampled_from([-1, 0, 1, 7, 60_000, 2**40]),
    st.sampled_from([1, 9, 60_000]),
    st.sampled_from(["row", "column"]),
)
def test_run_lengths_of_any_text(text: str, height: int, width: int, order):
    try:
        RunLengths(text, height, width, order).draw()
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


def _written(write: Callable[[Path], object], suffix: str) -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as place:
        path = Path(place, "a" + suffix)
        write(path)
        return path.read_bytes()


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("masks", data=random_pixels(0, 12)[None], chunks=True, compression="gzip")
        file["text"] = "words"


def _parquet(path: Path) -> None:
    import pyarrow.parquet

    columns = {"image": ["a.png", "b.png"], "label": ["x", "y"], "age": [1.5, None]}
    pyarrow.parquet.write_table(arrow.table(columns), path)


_IMAGES = {
    suffix: _written(lambda path: write_image(path, random_pixels(0, 12)), suffix)
    for suffix in (".png", ".jpg", ".tif")
}


@EXAMPLES
@given(damaged(_written(_hdf5, ".h5")), st.sampled_from(["masks", "text", "/", "", "masks/x", ".", "nothing"]))
def test_damaged_hdf5(folder: Path, content: bytes, key: str):
    path = folder / "damaged.h5"
    path.write_bytes(content)
    one_line(ArrayRow(path, key, 0).draw, path)


@pytest.mark.parametrize("suffix", _IMAGES)
def test_damaged_images(folder: Path, suffix: str):
    path = folder / f"damaged{suffix}"

    @settings(EXAMPLES, max_examples=25)
    @given(damaged(_IMAGES[suffix]))
    def check(content: bytes):
        path.write_bytes(content)
        for read in (
            lambda: data.open_picture(path),
            data.GreyPicture(path).draw,
            Trimap(path).draw,
            Converted(path).draw,
        ):
            one_line(read, path)
        for problem in data.check_tiles([data.Tile("a", path, None, None, "p")], num_threads=1):
            assert problem.path == path
            assert len(problem.reason.splitlines()) == 1

    check()


_CSV = b"image,label,patient,age,box\na.png,x,p1,3,1 2 3 4\nb.png,y,p2,,2 2 3 3\n"


@settings(EXAMPLES, max_examples=100)
@given(st.one_of(damaged(_CSV), st.binary(max_size=60), damaged(_CSV.decode().encode("utf-16"))))
def test_damaged_manifests(folder: Path, content: bytes):
    for name in ("a.png", "b.png"):
        if not (folder / name).exists():
            write_image(folder / name, random_pixels(0, 12))
    path = folder / "damaged.csv"
    path.write_bytes(content)
    one_line(lambda: data.read_manifest(path), path)


@EXAMPLES
@given(damaged(_written(_parquet, ".parquet")))
def test_damaged_parquet(folder: Path, content: bytes):
    path = folder / "damaged.parquet"
    path.write_bytes(content)
    one_line(lambda: data.read_manifest(path), path)


def test_parquet_of_nested_types(folder: Path):
    import pyarrow.parquet

    nested = {"image": [["a.png"], ["b.png"]], "label": [{"a": {"b": [1]}}, None], "data": [b"\xff\0", b""]}
    pyarrow.parquet.write_table(arrow.table(nested), folder / "nested.parquet")
    one_line(lambda: data.read_manifest(folder / "nested.parquet"), folder / "nested.parquet")


def test_parquet_text_that_is_not_utf8(folder: Path):
    import pyarrow.parquet

    latin = arrow.array([b"\xe9.png"], arrow.binary()).view(arrow.string())
    pyarrow.parquet.write_table(arrow.table({"image": latin}), folder / "latin.parquet")
    with pytest.raises(ValueError, match=r"latin\.parquet cannot be read as Parquet: 'utf-8' codec"):
        data.read_manifest(folder / "latin.parquet")


_SPLIT = json.dumps({"validation_patients": ["p2"], "train": ["a"], "validation": ["b"], "test": ["c"]}).encode()
_LISTS = st.one_of(_JUNK, st.lists(st.text(max_size=3), max_size=3))


@pytest.mark.long
@settings(EXAMPLES, max_examples=100)
@given(
    st.one_of(
        damaged(_SPLIT),
        _JUNK.map(lambda content: json.dumps(content).encode()),
        st.fixed_dictionaries(
            {"validation_patients": _LISTS, "train": _LISTS, "validation": _LISTS},
            optional={"test": _LISTS, "test_patients": _LISTS},
        ).map(lambda content: json.dumps(content).encode()),
        st.just(b"[" * 100_000),
    )
)
def test_split_files_of_any_shape(folder: Path, content: bytes):
    path = folder / "split.json"
    path.write_bytes(content)
    for read in (data.load_split, data.load_groups, data.load_test_groups):
        one_line(lambda read=read: read(path), path)


_XML = (
    b"<annotation><size><width>50</width><height>40</height></size><object><bndbox><xmin>1</xmin><ymin>2</ymin>"
    b"<xmax>30</xmax><ymax>31</ymax></bndbox></object></annotation>"
)


@EXAMPLES
@given(damaged(_XML))
def test_damaged_boxes(folder: Path, content: bytes):
    path = folder / "damaged.xml"
    path.write_bytes(content)
    one_line(lambda: _box(path), path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "declares a document type"),
        (b"<a>" * 5000, "no size and box"),
        (_XML.replace(b"50", b"nan"), "not inside"),
        (_XML.replace(b"50", b"1e999"), "not inside"),
        (_XML.replace(b"50", b"fifty"), "no size and box"),
        (b"", "no size and box"),
    ],
)
def test_odd_boxes_say_what_is_wrong(folder: Path, content: bytes, says: str):
    path = folder / "odd.xml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as found:
        _box(path)
    assert str(path) in str(found.value)


@pytest.mark.parametrize("name", ["a.h5", "a.csv", "a.parquet", "a.geojson", "a.json", "a.png"])
@pytest.mark.parametrize("kind", ["empty", "a folder", "missing"])
def test_empty_files_folders_and_missing_ones(tmp_path: Path, name: str, kind: str):
    path = tmp_path / name
    if kind == "empty":
        path.touch()
    elif kind == "a folder":
        path.mkdir()
    read = {
        ".h5": ArrayRow(path, "masks", 0).draw,
        ".csv": lambda: data.read_manifest(path),
        ".parquet": lambda: data.read_manifest(path),
        ".geojson": Polygons(path, 0, 0, 4, 4).draw,
        ".json": lambda: data.load_split(path),
        ".png": lambda: data.open_picture(path),
    }[path.suffix]
    with pytest.raises((ValueError, OSError)) as found:
        read()
    assert name in str(found.value)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_files_that_may_not_be_read(tmp_path: Path):
    for name in ("a.h5", "a.csv", "a.geojson", "a.json"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0)
    for read in (
        ArrayRow(tmp_path / "a.h5", "masks", 0).draw,
        Polygons(tmp_path / "a.geojson", 0, 0, 4, 4).draw,
        lambda: data.read_manifest(tmp_path / "a.csv"),
        lambda: data.load_split(tmp_path / "a.json"),
    ):
        with pytest.raises(ValueError, match="cannot be read"):
            read()
