"""No file makes the program take much memory, or reads another file: what it declares is looked at first."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.tiles import random_pixels, write_image
from PIL import Image

from fastmtl import data
from fastmtl.data import ArrayRow, GreyPicture, Polygons, RunLengths
from fastmtl.data.formats.published.gi_tract import OrganMasks
from fastmtl.data.formats.published.pets import Converted, Trimap
from fastmtl.data.slides.codecs import decode
from fastmtl.data.slides.raster import Encoding
from fastmtl.data.synthetic.tiles import write_pyramid

h5py = pytest.importorskip("h5py")
SIDE = 60_000
DECLARES = "declares .*more than 67,108,864"


def png_that_declares(path: Path, side: int, depth: int = 8) -> Path:
    """A grey PNG of one pixel's data whose header says side x side."""
    header = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\0\0")), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.fixture
def huge(tmp_path: Path) -> dict:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("masks", (2, SIDE, SIDE), np.uint8, chunks=(1, 64, 64))
        file.create_dataset("many", (2, 600, 600, 4000), np.uint8, chunks=(1, 64, 64, 1))
        file.create_dataset("lump", (2000, 1024, 1024), np.uint8, chunks=(2000, 1024, 1024))
    (tmp_path / "p.geojson").write_text('{"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9]]]}')
    grey = png_that_declares(tmp_path / "grey.png", SIDE)
    return {
        "run lengths": RunLengths("1 3", SIDE, SIDE),
        "run lengths down columns": RunLengths("1 3", SIDE, SIDE, "column"),
        "organs": OrganMasks((RunLengths("1 3", SIDE, SIDE),) * 3),
        "polygons": Polygons(tmp_path / "p.geojson", 0, 0, SIDE, SIDE),
        "array": ArrayRow(tmp_path / "a.h5", "masks", 0),
        "deep grey": GreyPicture(png_that_declares(tmp_path / "deep.png", SIDE, 16)),
        "trimap": Trimap(grey),
        "converted": Converted(grey),
        "file": grey,
    }


@pytest.mark.parametrize(
    "kind",
    [
        "run lengths",
        "run lengths down columns",
        "organs",
        "polygons",
        "array",
        "deep grey",
        "trimap",
        "converted",
        "file",
    ],
)
def test_what_declares_too_much_is_refused_unread(tmp_path: Path, huge: dict, kind: str):
    image = write_image(tmp_path / "tile.png", random_pixels(0, 16))
    (problem,) = data.check_tiles([data.Tile("a", image, huge[kind], None, "p")])
    assert "declares" in problem.reason
    assert "more than 67,108,864" in problem.reason
    with pytest.raises(ValueError, match=DECLARES):
        data.open_picture(huge[kind])


def test_the_limit_of_a_check_holds_for_what_is_drawn(tmp_path: Path):
    image = write_image(tmp_path / "tile.png", random_pixels(0, 16))
    for mask in (RunLengths("1 3", 16, 16), write_image(tmp_path / "mask.png", random_pixels(0, 16)[..., 0])):
        problems = data.check_tiles([data.Tile("a", image, mask, None, "p")], max_pixels=100)
        assert problems[-1].reason == "declares 16x16 pixels, more than 100"


def test_training_sets_files_aside_that_declare_too_much(tmp_path: Path):
    png = png_that_declares(tmp_path / "bomb.png", SIDE)
    jpg = write_image(tmp_path / "bomb.jpg", random_pixels(0, 16))
    content = bytearray(jpg.read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", SIDE, SIDE)
    jpg.write_bytes(content)
    sound = write_image(tmp_path / "sound.png", random_pixels(0, 16))
    tiles = [data.Tile(path.name, path, None, None, "p") for path in (png, jpg, sound)]
    reading = data.TileLoader(tiles, targets={"group": "none"}, size=16, batch_size=3, max_damaged=0.9)
    assert [batch.ids for batch in reading] == [["sound.png"]]
    assert all("declares 60000x60000" in entry["reason"] for entry in reading.quarantine)
    assert len(reading.quarantine) == 2
    reading.close()


def test_many_channels_and_large_chunks_are_refused(huge: dict, tmp_path: Path):
    with pytest.raises(ValueError, match="600x600 pixels of 4000 channels"):
        ArrayRow(tmp_path / "a.h5", "many", 0).draw()
    with pytest.raises(ValueError, match=r"lump is stored in pieces of \[2000, 1024, 1024\]"):
        ArrayRow(tmp_path / "a.h5", "lump", 0).draw()


def test_runs_that_fill_the_mask_again_and_again_cost_no_time():
    text = "1 1000000 " * 20_000
    assert (RunLengths(text, 1000, 1000).draw() == 255).all()
    np.testing.assert_array_equal(data.decode_runs("5 3 1 2 4 2 1 1", 1, 8)[0], [1, 1, 0, 1, 1, 1, 1, 0])
    assert not data.decode_runs("", 2, 2).any()
    assert data.decode_runs("1 1", 3, 3, max_pixels=9).any()
    with pytest.raises(ValueError, match="more than 8"):
        data.decode_runs("1 1", 3, 3, max_pixels=8)


ENCODERS = {
    "jpeg2000": lambda codecs, pixels: codecs.jpeg2k_encode(pixels, codecformat="J2K"),
    "jpeg2000 in boxes": lambda codecs, pixels: codecs.jpeg2k_encode(pixels, codecformat="JP2"),
    "webp": lambda codecs, pixels: codecs.webp_encode(pixels),
    "webp lossless": lambda codecs, pixels: codecs.webp_encode(pixels, lossless=True),
    "webp with alpha": lambda codecs, pixels: codecs.webp_encode(np.dstack([pixels, pixels[..., :1]])),
    "jpegxl": lambda codecs, pixels: codecs.jpegxl_encode(pixels),
    "jpegxl in boxes": lambda codecs, pixels: codecs.jpegxl_encode(pixels, usecontainer=True),
    "png": lambda codecs, pixels: codecs.png_encode(pixels),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("width", "height"), [(300, 200), (64, 64), (161, 90), (1, 3)])
def test_a_tile_of_another_size_is_not_decoded(monkeypatch, name: str, width: int, height: int):
    import imagecodecs

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream, codec = ENCODERS[name](imagecodecs, pixels), name.split()[0]
    size = (width, height)
    assert decode(stream, Encoding(codec), size, size).shape == pixels.shape
    assert decode(stream, Encoding(codec), (1, 1), (512, 512)).shape == pixels.shape
    monkeypatch.setattr("fastmtl.data.slides.codecs._samples", lambda *_: pytest.fail("it was decoded"))
    for wanted in ((width + 1, height), (width, height + 1)):
        with pytest.raises(ValueError, match=f"declares {width}x{height} pixels, not {wanted[0]}x{wanted[1]}"):
            decode(stream, Encoding(codec), wanted, wanted)
    for short in (stream[:4], b""):
        with pytest.raises(ValueError, match=f"does not decode as {codec}"):
            decode(short, Encoding(codec), size, size)


def test_codestreams_of_many_components_or_tiles_are_not_decoded(monkeypatch):
    import imagecodecs

    stream = imagecodecs.jpeg2k_encode(np.zeros((128, 128, 3), np.uint8), codecformat="J2K")
    monkeypatch.setattr("fastmtl.data.slides.codecs._samples", lambda *_: pytest.fail("it was decoded"))
    components = stream[:40] + struct.pack(">H", 16384) + stream[42:]
    tiles = stream[:24] + struct.pack(">II", 1, 1) + stream[32:]
    for odd, reason in ((components, "16384 components and 1 tiles"), (tiles, "3 components and 16384 tiles")):
        with pytest.raises(ValueError, match=reason):
            decode(odd, Encoding("jpeg2000"), (128, 128), (128, 128))


def test_a_bomb_in_a_slide_is_named_with_its_tile(tmp_path: Path, monkeypatch):
    import imagecodecs
    import tifffile

    small = imagecodecs.jpeg2k_encode(np.zeros((64, 64, 3), np.uint8), codecformat="J2K")
    bomb = imagecodecs.jpeg2k_encode(np.zeros((4096, 4096, 3), np.uint8), codecformat="J2K")
    path = tmp_path / "slide.tiff"
    tifffile.imwrite(
        path,
        iter([small, bomb]),
        shape=(64, 128, 3),
        dtype=np.uint8,
        tile=(64, 64),
        compression=34712,
        photometric="rgb",
    )
    with data.open_slide(path) as slide:
        assert slide.read_region(0, 0, 64, 64).shape == (64, 64, 3)
        with pytest.raises(data.DamagedPieceError, match=r"tile at x=64, y=0 .*declares 4096x4096 pixels, not 64x64"):
            slide.read_region(64, 0, 64, 64)


@pytest.mark.parametrize(
    ("codec", "cut"), [("lzw", True), ("deflate", False), ("zstd", False), ("lzma", True), ("packbits", False)]
)
def test_rows_that_unpack_to_more_than_the_tile_are_cut_or_refused(codec: str, cut: bool):
    import imagecodecs

    pixels = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
    stream = getattr(imagecodecs, {"deflate": "zlib"}.get(codec, codec) + "_encode")(pixels.tobytes())
    if cut:
        np.testing.assert_array_equal(decode(stream, Encoding(codec), (64, 64), (64, 64)), pixels[:64])
    else:
        with pytest.raises(ValueError, match=f"does not decode as {codec}"):
            decode(stream, Encoding(codec), (64, 64), (64, 64))


def secret(folder: Path) -> Path:
    path = folder / "elsewhere" / "secret.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["masks"] = np.full((1, 4, 4), 7, np.uint8)
    return path


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("external link", "is a link into"),
        ("link to a group elsewhere", "is a link into"),
        ("soft link", "is a link to '/masks'"),
        ("soft link through an external one", "is a link to"),
        ("external storage", "keeps its values in"),
        ("virtual", "is a virtual data set"),
    ],
)
def test_arrays_that_point_into_other_files_are_refused(tmp_path: Path, way: str, says: str):
    other = secret(tmp_path)
    key = "all/masks" if way == "link to a group elsewhere" else "masks"
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if way == "external link":
            file["masks"] = h5py.ExternalLink(str(other), "/masks")
        elif way == "link to a group elsewhere":
            file["all"] = h5py.ExternalLink(str(other), "/")
        elif way == "soft link":
            file["stored"] = np.zeros((1, 4, 4), np.uint8)
            file["masks"] = h5py.SoftLink("/masks")
        elif way == "soft link through an external one":
            file["all"] = h5py.ExternalLink(str(other), "/")
            file["masks"] = h5py.SoftLink("/all/masks")
        elif way == "external storage":
            file.create_dataset("masks", (1, 4, 4), np.uint8, external=[(str(other), 0, 16)])
        else:
            layout = h5py.VirtualLayout((1, 4, 4), np.uint8)
            layout[:] = h5py.VirtualSource(other, "masks", (1, 4, 4))
            file.create_virtual_dataset("masks", layout)
    with pytest.raises(ValueError, match=says) as found:
        ArrayRow(tmp_path / "a.h5", key, 0).draw()
    assert str(found.value).startswith(str(tmp_path / "a.h5"))
    for name in ("images", "bboxes", "binary", "masks"):
        (tmp_path / "train").mkdir(exist_ok=True)
        target = tmp_path / "train" / f"{name}.h5"
        target.write_bytes((tmp_path / "a.h5").read_bytes())
        if name != "masks":
            shapes = {"images": (1, 4, 4, 3), "bboxes": (1, 4), "binary": (1, 1)}
            with h5py.File(target, "w") as file:
                file[name] = np.zeros(shapes[name], np.uint8)
    if key == "masks":
        with pytest.raises(ValueError, match=says):
            data.read_dataset(tmp_path, "pets_hdf5")


def test_an_array_of_a_length_that_nothing_was_written_for_is_refused(tmp_path: Path):
    (tmp_path / "train").mkdir()
    for name, shape in (
        ("images", (2**30, 4, 4, 3)),
        ("masks", (2**30, 4, 4)),
        ("bboxes", (2**30, 4)),
        ("binary", (2**30,)),
    ):
        with h5py.File(tmp_path / "train" / f"{name}.h5", "w") as file:
            file.create_dataset(name, shape, np.uint8, chunks=True)
    with pytest.raises(ValueError, match="declares more than 1,048,576 images"):
        data.read_dataset(tmp_path, "pets_hdf5")


@pytest.mark.parametrize("text", ["../tile.png", "/etc/hostname", "a/../../tile.png", "sub/../../x/tile.png"])
def test_a_manifest_names_nothing_outside_its_folder(tmp_path: Path, text: str):
    (tmp_path / "set").mkdir()
    write_image(tmp_path / "tile.png", random_pixels(0))
    (tmp_path / "set" / "m.csv").write_text(f"image,label\n{text},a\n")
    with pytest.raises(ValueError, match=r"line 2: .*is outside the data root"):
        data.read_manifest(tmp_path / "set" / "m.csv")


def test_numbers_in_cells_that_no_picture_has(tmp_path: Path):
    write_image(tmp_path / "tile.png", random_pixels(0, 16))
    for cell in ("rle:" + "9" * 5000 + "x9:1 3", "rle:1x2x3:1 3"):
        (tmp_path / "m.csv").write_text(f"image,mask\ntile.png,{cell}\n")
        with pytest.raises(ValueError, match="line 2: a run-length code reads rle:HEIGHTxWIDTH"):
            data.read_manifest(tmp_path / "m.csv", data.ManifestOptions(columns={"mask": "picture"}))
    tile = data.Tile("a", tmp_path / "tile.png", ArrayRow(tmp_path / "a.h5", "masks", 0, 1e-7), None, "p")
    data.write_manifest(data.Dataset(tmp_path, (), (tile,)), tmp_path / "again.csv")
    assert data.read_manifest(tmp_path / "again.csv").tiles[0].mask == tile.mask


def test_a_table_of_a_published_set_names_nothing_outside_it(tmp_path: Path):
    (tmp_path / "train_images").mkdir()
    write_image(tmp_path / "secret.tiff", random_pixels(0))
    write_image(tmp_path / "train_images" / "1.tiff", random_pixels(0))
    (tmp_path / "train.csv").write_text("id,organ,img_height,img_width,rle\n../secret,kidney,24,24,1 3\n")
    with pytest.raises(ValueError, match=r"id must be the name of an image in train_images; got '\.\./secret'"):
        data.read_dataset(tmp_path, "hubmap_hpa")


def test_pipes_do_not_hang(tmp_path: Path):
    for name in ("a.h5", "a.png", "a.csv", "split.json", "images.h5"):
        os.mkfifo(tmp_path / name)
    for read in (
        ArrayRow(tmp_path / "a.h5", "masks", 0).draw,
        GreyPicture(tmp_path / "a.png").draw,
        Trimap(tmp_path / "a.png").draw,
        lambda: data.picture_size(tmp_path / "a.png"),
        lambda: data.open_picture(tmp_path / "a.png"),
        lambda: data.load_split(tmp_path / "split.json"),
    ):
        with pytest.raises(ValueError, match="not a file"):
            read()
    with pytest.raises(FileNotFoundError, match="is not a file"):
        data.read_manifest(tmp_path / "a.csv")


def test_a_plain_image_of_a_slide_reader_declares_no_more_than_a_tile(tmp_path: Path):
    write_pyramid(tmp_path / "slide.tiff", random_pixels(0, 256))
    png_that_declares(tmp_path / "a.png", SIDE)
    with pytest.raises(data.SlideError, match="declares"):
        data.open_slide(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS  # Pillow's own limit stays
