"""Small files that stand for much: refused in one line that names the file, before they take memory or time."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers.tiles import random_pixels, write_image
from PIL import Image

from fastmtl import config, data
from fastmtl.config import ConfigError
from fastmtl.data.manifest.table_io import read_table
from fastmtl.data.stain.files import StainFileError, read_arrays
from fastmtl.models.weights import _read
from fastmtl.utils.json_toml import read_json, read_toml


def postscript(path: Path) -> None:
    Image.fromarray(random_pixels(0, 12)).save(path, "EPS")


def endless_jpeg(path: Path) -> None:
    """A progressive file of one scan that refines nothing, again and again."""
    stored = io.BytesIO()
    Image.fromarray(np.zeros((4096, 4096), np.uint8)).save(stored, "JPEG", progressive=True)
    whole = stored.getvalue()
    last, end = whole.rfind(b"\xff\xda"), whole.rfind(b"\xff\xd9")
    path.write_bytes(whole[:last] + whole[last:end] * 5000 + whole[end:])


def endless_jpeg_in_tiff(path: Path) -> None:
    endless_jpeg(path)
    stream = path.read_bytes()
    shape = (4096, 4096)
    tifffile.imwrite(path, iter([stream]), shape=shape, dtype=np.uint8, compression="jpeg", rowsperstrip=4096)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (postscript, "not an image"),
        (endless_jpeg, "more than 50 scans"),
        (endless_jpeg_in_tiff, "more than 50 scans"),
    ],
)
def test_images_that_run_a_program_or_never_end(tmp_path, write, says):
    path = tmp_path / "tile.png"
    write(path)
    for read in (data.open_picture, lambda path: data.GreyPicture(path).draw()):
        with pytest.raises(ValueError, match=says) as found:
            read(path)
        assert str(path) in str(found.value)
    (problem,) = data.check_tiles([data.Tile("a", path, None, None, "p")])
    assert says in problem.reason
    if write is endless_jpeg:
        with data.open_slide(path) as slide, pytest.raises(data.DamagedPieceError, match=says):
            slide.read_region(0, 0, 8, 8)


def test_a_picture_of_several_jpeg_streams_is_none_that_never_ends(tmp_path):
    path = tmp_path / "tile.tif"
    tifffile.imwrite(path, random_pixels(0, 1024), photometric="rgb", compression="jpeg", rowsperstrip=8)
    assert path.read_bytes().count(b"\xff\xda") > 50
    assert data.open_picture(path).shape == (1024, 1024, 3)


@pytest.mark.long
def test_formats_that_dali_would_decode_at_any_size_are_read_by_their_declared_size(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    sound = write_image(tmp_path / "sound.png", random_pixels(0, 16))
    tiles = [data.Tile("sound", sound, None, None, "p")]
    for name, stream in (
        ("jp2", imagecodecs.jpeg2k_encode(np.zeros((9000, 9000), np.uint8), codecformat="JP2")),
        ("webp", imagecodecs.webp_encode(np.zeros((9000, 9000, 3), np.uint8))),
        ("bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, *[0] * 6) + bytes(100)),
    ):
        (tmp_path / f"{name}.png").write_bytes(stream)
        tiles.append(data.Tile(name, tmp_path / f"{name}.png", None, None, "p"))
    reading = data.TileLoader(tiles, targets={"group": "none"}, size=16, batch_size=4, max_damaged=0.9)
    assert [batch.ids for batch in reading] == [["sound"]]
    assert all("declares" in entry["reason"] for entry in reading.quarantine)
    assert len(reading.quarantine) == 3
    reading.close()


def chain_of_pages(path: Path, count: int, cyclic: bool) -> None:
    tags = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, 256)]
    size = 2 + 12 * len(tags) + 4
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    ends = [8 + size * (number + 1) for number in range(count - 1)] + [8 if cyclic else 0]
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, 8) + b"".join(directory + struct.pack("<I", at) for at in ends) + bytes(300)
    )


@pytest.mark.parametrize("cyclic", [False, True])
def test_directories_without_end(tmp_path, cyclic, caplog):
    path = tmp_path / "pages.tif"
    chain_of_pages(path, 100_000, cyclic)
    with pytest.raises(data.SlideError, match="more than 10,000 pages"):
        data.open_slide(path)
    (problem,) = data.check_tiles([data.Tile("a", path, None, None, "p")])
    assert "holds 1000 pictures" in problem.reason
    chain_of_pages(path, 1, cyclic)
    assert len(data.open_slide(path).levels) == 1


def test_a_description_with_entities_is_not_parsed(tmp_path):
    ring = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 9))
    words = (
        f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY l0 "ha">{ring}]><OME><Image><Pixels>&l8;</Pixels></Image></OME>'
    )
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, random_pixels(0, 64), tile=(64, 64), photometric="rgb", description=words, metadata=None)
    with pytest.raises(data.SlideError, match="declares a document type or entities"):
        data.open_slide(path)


@pytest.mark.long
def test_stain_files_that_unpack_to_too_much(tmp_path):
    path = tmp_path / "stain.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("format.npy", "w", force_zip64=True) as out,
    ):
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (2**31,)})
        for _ in range(600):
            out.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(StainFileError, match=r"stain\.npz is no stain file"):
        read_arrays(path, "target")


def test_weights_that_unpack_to_too_much(tmp_path):
    sound, path = tmp_path / "sound.pt", tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(2**20)}, sound)
    with zipfile.ZipFile(sound) as file, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for entry in file.infolist():
            out.writestr(entry.filename, file.read(entry))
    assert _read(sound, sound)["a"].numel() == 2**20
    with pytest.raises(ValueError, match=r"weights\.pt cannot be read .*it is compressed"):
        _read(path, path)


def test_tables_that_repeat_a_cell_or_have_endless_columns(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    many = arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(40_000_000, np.int8)), ["a.png"])
    parquet.write_table(arrow.table({"image": many}), tmp_path / "many.parquet")
    assert (tmp_path / "many.parquet").stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"many\.parquet .*40,000,000 rows"):
        data.read_manifest(tmp_path / "many.parquet")
    long = arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(20_000, np.int32)), ["a" * 200_000])
    parquet.write_table(arrow.table({"note": long}), tmp_path / "long.parquet")  # 4 GB, a row at a time
    assert len(read_table(tmp_path / "long.parquet").rows) == 20_000
    names = ",".join(f"c{number}" for number in range(60_000))
    (tmp_path / "wide.csv").write_text(f"{names}\n{names}\n")
    with pytest.raises(ValueError, match=r"wide\.csv has 60,000 columns, more than 10,000"):
        data.read_manifest(tmp_path / "wide.csv")
    (tmp_path / "commas.csv").write_text("image\n" + "," * 20_000_000 + "\n")
    with pytest.raises(ValueError, match=r"commas\.csv, line 2: more than 1,048,576 cells"):
        data.read_manifest(tmp_path / "commas.csv")


def test_parquet_cells_are_those_of_the_same_csv(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "image": ["a.png", "b.png", "c.png"],
        "note": arrow.array(["x", None, "x"]).dictionary_encode(),
        "grade": arrow.array([1, None, 1], arrow.int64()).dictionary_encode(),
    }
    parquet.write_table(arrow.table(columns), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("image,note,grade\na.png,x,1\nb.png,,\nc.png,x,1\n")
    found, wanted = (data.read_manifest(tmp_path / f"m.{suffix}").tiles for suffix in ("parquet", "csv"))
    assert found == wanted


def test_polygons_above_each_other(tmp_path):
    path = tmp_path / "p.geojson"
    ring = [[0, 0], [9000, 0], [9000, 9000], [0, 9000], [0, 0]]
    path.write_text(json.dumps([{"type": "Polygon", "coordinates": [ring]}] * 3000))
    with pytest.raises(ValueError, match=r"p\.geojson: 3,000 polygons cover 2048x2048 pixels 3,003 times"):
        data.Polygons(path, 0, 0, 2048, 2048).draw()
    assert (data.Polygons(path, 0, 0, 16, 16).draw() == 255).all()


def test_files_of_any_length_and_pipes_are_not_read(tmp_path):
    for name in ("a.csv", "a.png", "a.json", "a.geojson", "a.toml", "a.npz"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)  # takes no room on the disk
        os.mkfifo(tmp_path / f"pipe-{name}")
    readers = {
        "a.csv": data.read_manifest,
        "a.png": data.open_picture,
        "a.json": data.load_split,
        "a.geojson": data.polygon_classes,
        "a.toml": config.load_recipe,
    }
    for name, read in readers.items():
        with pytest.raises(ValueError, match="bytes, more than") as found:
            read(tmp_path / name)
        assert name in str(found.value)
    for read in (read_json, read_toml):
        for name in ("pipe-a.json", "a.json"):
            with pytest.raises(ValueError, match=r"is not a file|bytes, more than"):
                read(tmp_path / name)
    with pytest.raises(StainFileError, match=r"pipe-a\.npz"):
        read_arrays(tmp_path / "pipe-a.npz", "target")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model." + "a." * 20_000 + "b = 1", "line 1 has 20001 dots"),
        ("v = " + "[" * 5000, "nested too deeply"),
        ("v = " + "{a=" * 5000, "nested too deeply"),
        ("a.".join(["x." * 150] * 1) + "b = 1", "unknown key 'x'"),
        ("name = '" + "x" * 2**20 + "'", "bytes, more than"),
        ("epochs = " + "9" * 5000, "not valid TOML"),
    ],
)
def test_recipes_nested_without_end(tmp_path, text, says):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ConfigError, match=says) as found:
        config.load_recipe(tmp_path / "r.toml")
    assert len(str(found.value)) < 2000


LIMITED = """
import resource, sys
from fastmtl import data
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
try:
    data.open_slide(sys.argv[1]).read_region(0, 0, 64, 64)
except data.SlideError as error:
    print(error)
"""


@pytest.mark.long
def test_a_slide_that_declares_everything_fits_in_little_memory(tmp_path):
    path = tmp_path / "slide.tif"
    tags = [(256, 2**19), (257, 2**19), (258, 8), (259, 8), (262, 1), (277, 1), (322, 64), (323, 64)]
    lists = [(324, 2**26), (325, 2**26)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory += b"".join(struct.pack("<HHII", tag, 4, count, 8) for tag, count in lists)
    count = struct.pack("<H", len(tags) + len(lists))
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + count + directory + bytes(100))
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(path))
    assert len(done.stdout.splitlines()) == 1
