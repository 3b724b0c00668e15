"""DICOM whole-slide images: pixels as OpenSlide reads them, which files are a slide, and what an index keeps."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.slides import TILE, halved, tissue_like

from fastmtl import data
from fastmtl.data.slides.index import FOLDER

pydicom = pytest.importorskip("pydicom")

from helpers.dicom_slides import PIXELS, SPARSE, changed, parts, refused, write_dicom, write_instance  # noqa: E402

KINDS = {
    "4:2:2": {},
    "RGB": {"photometric": "RGB"},
    "extended table": {"table": "extended"},
    "no table": {"table": ""},
    "fragments": {"fragments": 3},
    "raw": {"codec": "raw", "photometric": "RGB"},
    "JPEG 2000": {"codec": "jpeg2000", "photometric": "YBR_RCT"},
    "JPEG 2000 lossy": {"codec": "jpeg2000 lossy", "photometric": "YBR_ICT"},
    "JPEG 2000 of RGB": {"codec": "jpeg2000", "photometric": "RGB"},
    "positions": {"organisation": "TILED_SPARSE"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_regions_equal_openslide(tmp_path, kind):
    _compare(write_dicom(tmp_path / "one", PIXELS, **KINDS[kind]), "level-0.dcm")


def test_files_of_a_concatenation_are_one_level(tmp_path):
    _compare(parts(tmp_path / "one", 7, 11), "part-2.dcm")


def test_tiles_that_are_not_stored_are_background_at_every_level(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    write_instance(folder / "a.dcm", PIXELS, **SPARSE)
    write_instance(folder / "b.dcm", halved(PIXELS), mpp=1.0, organisation="TILED_SPARSE", keep=[0, 2])
    _compare(folder, "a.dcm")
    with data.open_slide(folder) as slide:
        assert slide.read_region(TILE * 2, 0, 1, 1).tolist() == [[[240, 240, 240]]]
        assert slide.problems == ("has empty tiles: 13 of 20 of level 0 (background), 4 of 6 of level 1 (background)",)


def _compare(folder: Path, first: str) -> None:
    openslide = pytest.importorskip("openslide")
    data.index_slide(folder)
    rng = np.random.default_rng(0)
    with data.open_slide(folder) as slide, openslide.OpenSlide(folder / first) as other:
        assert len(slide.levels) == other.level_count == 2
        assert slide.mpp == pytest.approx(float(other.properties["openslide.mpp-x"]))
        assert slide.magnification == 20
        assert slide.damage == ""
        for number, level in enumerate(slide.levels):
            assert (level.width, level.height) == other.level_dimensions[number]
            assert level.downsample == pytest.approx(other.level_downsamples[number])
            boxes = [(-9, -5, level.width + 30, level.height + 20)]
            boxes += [(*rng.integers(-20, 250, 2).tolist(), *rng.integers(1, 150, 2).tolist()) for _ in range(9)]
            for x, y, width, height in boxes:
                x, y = round(x * level.downsample), round(y * level.downsample)
                found = np.asarray(other.read_region((x, y), number, (width, height)))
                expected = np.where(found[..., 3:] > 0, found[..., :3], np.uint8(240))
                np.testing.assert_array_equal(slide.read_region(x, y, width, height, number), expected)
        for name in slide.associated_names:
            found = np.asarray(other.associated_images[name].convert("RGB"))
            np.testing.assert_array_equal(slide.associated(name), found)


@pytest.mark.parametrize(
    ("options", "close"),
    [
        ({"photometric": "YBR_FULL"}, 12),
        ({"codec": "implicit", "photometric": "RGB"}, 0),
        ({"codec": "raw", "photometric": "MONOCHROME2"}, 0),
    ],
)
def test_kinds_that_openslide_does_not_read_have_the_pixels_that_were_written(tmp_path, options, close):
    grey = options["photometric"] == "MONOCHROME2"
    pixels = PIXELS[..., :1] if grey else PIXELS
    with data.open_slide(write_dicom(tmp_path / "one", pixels, beside=False, **options)) as slide:
        found = slide.read_region(0, 0, 300, 210).astype(int)
    assert np.abs(found - pixels).max() <= close


def test_any_file_of_a_series_is_the_slide_whatever_it_is_called(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS)
    shutil.copy(folder / "level-0.dcm", folder / "a copy.dcm")
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "level-1.dcm").rename(folder / "1.2.840.3")
    write_instance(folder / "thumbnail.dcm", halved(PIXELS), flavour="THUMBNAIL")
    report = pydicom.dcmread(folder / "label.dcm")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    report.save_as(folder / "report.dcm")
    whole = data.open_slide(folder).read_region(0, 0, 300, 210)
    for name in ("level-0.dcm", "1.2.840.3", "label.dcm"):
        with data.open_slide(folder / name) as slide:
            assert [level.width for level in slide.levels] == [300, 150]
            assert slide.associated_names == ("thumbnail", "label", "macro")
            assert (slide.vendor, slide.mpp, slide.mpp_source, slide.problems) == ("dicom", 0.5, "DICOM", ())
            np.testing.assert_array_equal(slide.read_region(0, 0, 300, 210), whole)
    refused(folder / "report.dcm", "no level of a whole-slide image")


def test_two_series_in_a_folder_need_a_choice(tmp_path):
    folder = write_dicom(tmp_path / "two", PIXELS)
    for number in range(2):
        side = 100 - 50 * number
        write_instance(folder / f"other-{number}.dcm", PIXELS[:side, :side], series="1.2.4", mpp=50 / side)
    message = refused(folder, "holds 2 slides")
    assert "label.dcm (4 files) and other-0.dcm (2 files); name a file of the one meant" in message
    with data.open_slide(folder / "other-1.dcm") as slide:
        assert [level.width for level in slide.levels] == [100, 50]
    assert len(data.open_slide(folder / "level-1.dcm").levels) == 2


def test_an_indexed_slide_opens_without_its_headers(tmp_path, monkeypatch):
    folder = write_dicom(tmp_path / "one", PIXELS)
    data.index_slide(folder)
    assert (tmp_path / FOLDER / "one.safetensors").is_file()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with data.open_slide(folder) as slide:
        assert slide.read_region(0, 0, 64, 64).shape == (64, 64, 3)
        assert slide.associated("label").shape == (64, 64, 3)
    content = (folder / "level-1.dcm").read_bytes()
    (folder / "level-1.dcm").unlink()
    with pytest.raises(ImportError, match=r"pip install 'fastmtl-engine\[dicom\]'"):  # it is scanned again
        data.open_slide(folder)
    monkeypatch.undo()
    assert len(data.open_slide(folder).levels) == 1
    (folder / "level-1.dcm").write_bytes(content)
    assert len(data.open_slide(folder).levels) == 2


def test_only_the_frames_that_are_needed_are_read(tmp_path, monkeypatch):
    folder = write_dicom(tmp_path / "one", PIXELS, codec="raw", photometric="RGB")
    read, original = [], os.preadv

    def counting(file, buffers, offset):
        read.append(sum(map(len, buffers)))
        return original(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", counting)
    with data.open_slide(folder) as slide:
        assert read == []
        slide.read_region(TILE, TILE, 30, 30)
    assert read == [TILE * TILE * 3]


def test_the_scale_is_of_the_imaged_volume_if_there_is_no_spacing(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS, SharedFunctionalGroupsSequence=None, mpp=0.25)
    assert data.open_slide(folder).mpp == pytest.approx(0.25)
    for path in folder.glob("level-*.dcm"):
        changed(path, ImagedVolumeWidth=None)
    slide = data.open_slide(folder)
    assert slide.mpp is None
    assert "says nothing about its micrometres per pixel" in slide.why_no_mpp
    assert data.open_slide(folder, mpp=0.5).mpp == 0.5


def test_a_level_of_another_view_is_left_out(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS)
    write_instance(folder / "other.dcm", PIXELS[:50, :150], mpp=1.0)
    write_instance(folder / "part.dcm", PIXELS[:70, :100], mpp=0.5)
    with data.open_slide(folder) as slide:
        assert [level.width for level in slide.levels] == [300, 150]
        assert "a level of 150x50 is left out: it does not show the slide's view" in slide.problems
        assert "a level of 100x70 is left out: it does not show the slide's view" in slide.problems


def test_a_finest_level_that_was_computed_is_reported(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS)
    (folder / "level-0.dcm").unlink()
    slide = data.open_slide(folder)
    assert (slide.mpp, slide.levels[0].width) == (1.0, 150)
    assert slide.problems == (
        "its finest level, level-1.dcm, was computed from a finer one, which may be missing",
        "1 micrometres per pixel do not fit a magnification of 20",
    )


@pytest.mark.parametrize(("stored", "declared"), [("YBR_FULL", "RGB"), ("RGB", "YBR_FULL")])
def test_colours_that_the_frames_contradict_are_refused(tmp_path, stored, declared):
    """Either of the two would be read in wrong colours."""
    folder = write_dicom(tmp_path / "one", PIXELS, photometric=stored)
    data.open_slide(folder)
    changed(folder / "level-1.dcm", PhotometricInterpretation=declared)
    marked = "RGB" if stored == "RGB" else "YCbCr"
    refused(folder, f"level-1.dcm declares {declared}, and its JPEG frames are marked as {marked}: its colours are")


def test_a_level_whose_size_and_scale_differ_is_told(tmp_path):
    folder, pixels = tmp_path / "one", tissue_like(1600, 1200)
    options = {"codec": "raw", "photometric": "RGB", "tile": 512}
    write_dicom(folder, pixels, levels=2, beside=False, **options)
    assert data.open_slide(folder).problems == ()
    changed(folder / "level-1.dcm", TotalPixelMatrixColumns=812, TotalPixelMatrixRows=609)  # as if padded
    assert data.open_slide(folder).problems == (
        "a level of 812x609 is 1.97 times smaller by its size and 2 times by its PixelSpacing: the size is used",
    )


def test_a_file_that_changes_while_it_is_open_is_not_read_further(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS)
    slide = data.open_slide(folder)
    slide.read_region(0, 0, 8, 8)
    for name in ("level-0.dcm", "level-1.dcm"):  # one that is open, and one that is not
        os.utime(folder / name, ns=(1, 1))
    for level in (0, 1):
        with pytest.raises(data.SlideError, match="changed since it was opened"):
            slide.read_region(0, 0, 8, 8, level)


def test_nothing_of_the_patient_is_kept(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS)
    index = data.index_slide(folder)
    assert b"SECRET" not in (tmp_path / FOLDER / "one.safetensors").read_bytes()
    assert "SECRET" not in repr(index.layout)


def test_an_index_names_no_file_outside_of_the_folder(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS)
    data.index_slide(folder)
    stored = tmp_path / FOLDER / "one.safetensors"
    (tmp_path / "outside1").write_bytes(b"")
    content = stored.read_bytes()
    changed_index = content.replace(b"label.dcm", b"../abcdef")
    assert changed_index != content
    stored.write_bytes(changed_index)
    with data.open_slide(folder) as slide:  # scanned again
        assert slide._layout.files[0].name == "label.dcm"
