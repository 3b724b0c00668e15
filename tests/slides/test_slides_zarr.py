"""OME-Zarr: pixels as the zarr library reads them, scales and units, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.slides import tissue_like

from fastmtl import data

zarr = pytest.importorskip("zarr")

from helpers.zarr_slides import change_metadata, write_zarr  # noqa: E402

PIXELS = tissue_like(300, 210)


def by_zarr(path: Path, level: int, axes: str) -> np.ndarray:
    """RGB [h, w, 3]."""
    array = zarr.open_array(str(path / str(level)), mode="r")
    found = array[tuple(slice(None) if name in "cyx" else 0 for name in axes)]
    return np.moveaxis(found, 0, -1)


def refused(path: Path, words: str) -> None:
    with pytest.raises(data.SlideError, match=words) as caught:
        data.open_slide(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


KINDS = {
    "0.4": {"version": "0.4"},
    "0.4, three axes": {"version": "0.4", "axes": "cyx"},
    "0.5": {},
    "0.5, four axes": {"axes": "czyx"},
    "0.5 in shards": {"shard": 2},
    "0.5, gzip": {"compressors": zarr.codecs.GzipCodec()},
    "0.5, raw": {"compressors": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_regions_equal_the_arrays(tmp_path, kind):
    path = write_zarr(tmp_path / "a.zarr", PIXELS, **KINDS[kind])
    index = data.index_slide(path)
    assert index.layout.reader == "zarr"
    rng = np.random.default_rng(0)
    with data.open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source, slide.problems) == (0.5, "OME-Zarr", ())
        assert [(level.width, level.height, level.downsample) for level in slide.levels] == [
            (300, 210, 1),
            (150, 105, 2),
        ]
        for number, level in enumerate(slide.levels):
            whole = by_zarr(path, number, KINDS[kind].get("axes", "tczyx"))
            around = np.full((level.height + 600, level.width + 600, 3), 240, np.uint8)
            around[300:-300, 300:-300] = whole
            for _ in range(9):
                x, y, width, height = (*rng.integers(-60, 120, 2).tolist(), *rng.integers(1, 150, 2).tolist())
                expected = around[y + 300 : y + 300 + height, x + 300 : x + 300 + width]
                place = round(x * level.downsample), round(y * level.downsample)
                np.testing.assert_array_equal(slide.read_region(*place, width, height, number), expected)
            [piece] = slide.encoded_tiles(data.Region(path, 0, 0, 40, 30, number))
            np.testing.assert_array_equal(piece.pixels, whole[:30, :40])


def test_levels_have_the_downsamples_of_their_scales(tmp_path):
    images = [PIXELS, np.ascontiguousarray(PIXELS[::3, ::3]), np.ascontiguousarray(PIXELS[::15, ::15])]
    path = write_zarr(tmp_path / "a.zarr", PIXELS, images=images, scales=[1, 3, 15])
    with data.open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 3, 15]
        np.testing.assert_array_equal(slide.read_region(30, 60, 20, 10, 1), images[1][20:30, 10:30])
    change_metadata(path, lambda words: _scale_of(words, 1).__setitem__(slice(3, 5), [0.5, 0.5]))
    refused(path, "its level 1 of 100x70 pixels has 1 times the scale of the first, which does not fit its size")


def _scale_of(words, level):
    return words["multiscales"][0]["datasets"][level]["coordinateTransformations"][0]["scale"]


@pytest.mark.parametrize(
    ("unit", "scale", "mpp"),
    [("nanometer", 250.0, 0.25), ("millimeter", 0.0005, 0.5), ("micrometer", 0.25, 0.25), ("µm", 1.0, 1.0)],
)
def test_units_of_the_scale(tmp_path, unit, scale, mpp):
    slide = data.open_slide(write_zarr(tmp_path / "a.zarr", PIXELS, unit=unit, mpp=scale))
    assert slide.mpp == pytest.approx(mpp)


@pytest.mark.parametrize(
    ("unit", "why"),
    [(None, "OME-Zarr's scale has no unit; pass mpp"), ("second", "is in 'second', which is no length; pass mpp")],
)
def test_a_scale_without_a_length_is_not_believed(tmp_path, unit, why):
    path = write_zarr(tmp_path / "a.zarr", PIXELS, unit=unit)
    slide = data.open_slide(path)
    assert slide.mpp is None
    assert why in slide.why_no_mpp
    assert data.open_slide(path, mpp=0.5).mpp == 0.5


def test_a_scale_of_all_levels_is_applied_too(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", PIXELS)
    more = [{"type": "scale", "scale": [1.0, 1.0, 1.0, 0.5, 0.5]}]
    change_metadata(path, lambda words: words["multiscales"][0].update(coordinateTransformations=more))
    assert data.open_slide(path).mpp == 0.25


def test_half_a_pixel_of_translation_is_usual_and_more_is_refused(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", PIXELS)

    def shift(by):
        found = {"type": "translation", "translation": [0.0, 0.0, 0.0, by, by]}
        change_metadata(
            path,
            lambda words: words["multiscales"][0]["datasets"][1]["coordinateTransformations"].__setitem__(
                slice(1, None), [found]
            ),
        )

    shift(0.25)
    assert len(data.open_slide(path).levels) == 2
    shift(7.5)
    refused(path, "its level 1 begins elsewhere than the first")


def test_bioformats2raw_has_its_image_in_a_group(tmp_path):
    path = tmp_path / "a.zarr"
    write_zarr(path / "0", PIXELS, version="0.4")
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    (path / "OME").mkdir()
    (path / "OME" / ".zattrs").write_text('{"series": ["0"]}')
    with data.open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 300, 210), PIXELS)
    write_zarr(path / "1", PIXELS[:64, :64], version="0.4")
    (path / "OME" / ".zattrs").write_text('{"series": ["0", "1"]}')
    refused(path, "holds 2 images or more; name one, such as a.zarr/0")
    assert data.open_slide(path / "1").levels[0].width == 64


def _channels(colours):
    return {"omero": {"channels": [{"color": colour} for colour in colours]}}


def test_channels_must_be_red_green_and_blue(tmp_path):
    colours = ["FF0000", "00FF00", "0000FF"]
    assert data.open_slide(write_zarr(tmp_path / "a.zarr", PIXELS, words=_channels(colours))).mpp == 0.5
    refused(
        write_zarr(tmp_path / "b.zarr", PIXELS, words=_channels(["0000FF", "00FF00", "FF0000"])),
        "has 3 channels that are not red, green and blue",
    )


def _words(**words):
    return lambda path: change_metadata(path, lambda found: found.update(words))


def _multiscale(**words):
    return lambda path: change_metadata(path, lambda found: found["multiscales"][0].update(words))


def _become_plate(words):
    del words["multiscales"]
    words["plate"] = {}


def _grid(*shape):
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


def _array(**words):
    def change(path):
        file = path / "0" / "zarr.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | words))

    return change


BAD = {
    "no metadata": (lambda path: (path / "zarr.json").write_text("{"), "zarr.json cannot be read"),
    "no object": (lambda path: (path / "zarr.json").write_text("[]"), "zarr.json holds no object"),
    "no image": (lambda path: (path / "zarr.json").write_text("{}"), "no OME-Zarr image: .* describe no image"),
    "plate": (lambda path: change_metadata(path, _become_plate), "describe plate"),
    "version": (_words(version="0.3"), "is OME-Zarr of version '0.3'; readable are 0.4 and 0.5"),
    "axes": (_multiscale(axes=[{"name": name} for name in "abcde"]), "has axes abcde"),
    "no axes": (_multiscale(axes=[]), "no list of axes"),
    "no levels": (_multiscale(datasets=None), "no list of datasets"),
    "outside": (_multiscale(datasets=[{"path": "../b.zarr/0"}]), "a level's path leads out of the store"),
    "lost level": (lambda path: shutil.rmtree(path / "1"), "lacks its level 1; copy the whole store again"),
    "no scale": (_multiscale(datasets=[{"path": "0"}]), "no list of coordinateTransformations"),
    "scale of 0": (
        lambda path: change_metadata(path, lambda words: _scale_of(words, 1).__setitem__(4, 0.0)),
        "a level has no scale of 5 numbers above 0",
    ),
    "type": (_array(data_type="uint16"), "has samples of type uint16"),
    "four channels": (_array(shape=[1, 4, 1, 210, 300]), "has t = 1, c = 4, z = 1; only one RGB image is read"),
    "depth": (_array(shape=[1, 3, 5, 210, 300]), "z = 5; only one RGB image"),
    "times": (_array(shape=[2, 3, 1, 210, 300]), "has t = 2"),
    "no size": (_array(shape=[1, 3, 1, 0, 300]), "no shape and chunks of 5 axes"),
    "chunks": (
        _array(chunk_grid=_grid(1, 3, 1, 10**5, 10**5)),
        "has chunks of 30,000,000,000 values",
    ),
    "many chunks": (
        lambda path: (
            _array(shape=[1, 3, 1, 2**18, 2**18], chunk_grid=_grid(1, 1, 1, 1, 1))(path),
            change_metadata(path, lambda words: words["multiscales"][0]["datasets"].pop()),
        ),
        "declares 206,158,430,208 chunks in a level",
    ),
    "codec": (_array(codecs=[{"name": "bytes"}, {"name": "numcodecs.pickle"}]), "with codec numcodecs.pickle"),
    "no codecs": (_array(codecs=None), "is stored with codec"),
    "uneven": (
        lambda path: (
            _array(shape=[1, 3, 1, 420, 300])(path),
            change_metadata(path, lambda words: _scale_of(words, 0).__setitem__(3, 0.25)),
        ),
        "level 1 is 2 times smaller across and 4 times down",
    ),
    "no number": (
        lambda path: change_metadata(path, lambda words: _scale_of(words, 0).__setitem__(3, 10**400)),
        r"are damaged \(OverflowError\)",
    ),
    "no grid": (_array(chunk_grid=5), r"are damaged \(AttributeError\)"),
    "no shards": (_array(codecs=[{"name": "sharding_indexed", "configuration": 5}]), r"are damaged \(AttributeError\)"),
    "huge": (_array(shape=[1, 3, 1, 2**30, 2**30]), "more than max_pixels"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_other_stores_are_refused_in_one_line(tmp_path, case):
    change, words = BAD[case]
    change(write_zarr(tmp_path / "a.zarr", PIXELS))
    refused(tmp_path / "a.zarr", words)


def test_no_codec_of_a_file_runs_what_it_says(tmp_path):
    """numcodecs' filter "pickle" would."""
    path = write_zarr(tmp_path / "a.zarr", PIXELS, version="0.4")
    file = path / "0" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"filters": [{"id": "pickle"}]}))
    refused(path, "is stored with codec pickle")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"filters": None}))
    slide = data.open_slide(path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"filters": [{"id": "pickle"}]}))
    with pytest.raises(data.SlideError, match="is stored with codec pickle"):  # looked at again before the first read
        slide.read_region(0, 0, 8, 8)


def test_damaged_chunks_are_named_and_missing_ones_are_counted(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", PIXELS, axes="cyx", compressors=zarr.codecs.ZstdCodec(checksum=True))
    chunk = path / "0" / "c" / "0" / "1" / "2"
    content = bytearray(chunk.read_bytes())
    content[60:90] = bytes(30)
    chunk.write_bytes(content)
    (path / "0" / "c" / "0" / "0" / "0").unlink()
    with data.open_slide(path) as slide:
        assert slide.problems == ("1 of 20 chunks of level 0 are not stored: the store's fill value is read there",)
        with pytest.raises(data.DamagedPieceError, match=r"x=128, y=64 of level 0: its chunks cannot be read"):
            slide.read_region(128, 64, 8, 8)
        np.testing.assert_array_equal(slide.read_region(192, 64, 60, 60), PIXELS[64:124, 192:252])
        assert not slide.read_region(0, 0, 64, 64).any()


def test_an_index_is_used_until_the_metadata_change(tmp_path, monkeypatch):
    path = write_zarr(tmp_path / "a.zarr", PIXELS)
    data.index_slide(path)
    assert (tmp_path / ".fastmtl" / "a.zarr.safetensors").is_file()
    monkeypatch.setattr("fastmtl.data.slides.scan.scan_zarr", lambda *_: pytest.fail("scanned"))
    assert data.open_slide(path).levels[1].width == 150
    os.utime(path / "1" / "zarr.json", ns=(1, 1))
    with pytest.raises(pytest.fail.Exception, match="scanned"):
        data.open_slide(path)


def test_an_open_slide_that_became_another_is_not_read(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", PIXELS)
    slide = data.open_slide(path)
    shutil.rmtree(path)
    write_zarr(path, PIXELS[:150])
    with pytest.raises(data.SlideError, match="changed since it was opened"):
        slide.read_region(0, 0, 8, 8)


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    path = write_zarr(tmp_path / "a.zarr", PIXELS)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"opening OME-Zarr slides needs zarr; .* 'fastmtl-engine\[zarr\]'"):
        data.open_slide(path)
