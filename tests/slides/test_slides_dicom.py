"""DICOM whole-slide images: pixels as OpenSlide reads them, which files are a slide, and what is refused."""

from __future__ import annotations

import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.slides import TILE, halved, tissue_like

from fastmtl import data
from fastmtl.data.slides.index import FOLDER

pydicom = pytest.importorskip("pydicom")

from helpers.dicom_slides import write_dicom, write_instance  # noqa: E402

PIXELS = tissue_like(300, 210)  # five by four tiles
SPARSE = {"organisation": "TILED_SPARSE", "keep": [0, 1, 3, 7, 8, 12, 19]}


def changed(path: Path, **tags) -> None:
    file = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(path)


def refused(path: Path, words: str) -> str:
    with pytest.raises(data.SlideError, match=words) as caught:
        data.open_slide(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    return str(caught.value)


def parts(folder: Path, *bounds: int, **options) -> Path:
    """Level 0 as a concatenation, its frames cut at `bounds`."""
    folder.mkdir()
    edges = [0, *bounds, 20]
    for number, (first, last) in enumerate(pairwise(edges), 1):
        path = folder / f"part-{number}.dcm"
        write_instance(path, PIXELS, part=(number, len(edges) - 1, first, last), **options)
    write_instance(folder / "small.dcm", halved(PIXELS), mpp=1.0)
    return folder


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
    with pytest.raises(ImportError, match=r"pip install 'fastmtl\[dicom\]'"):  # it is scanned again
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


BAD = {
    "focal planes": ({"TotalPixelMatrixFocalPlanes": 3}, "level-0.dcm has 3 focal planes; only one is read"),
    "optical paths": ({"NumberOfOpticalPaths": 2}, "has 2 optical paths"),
    "16 bits": ({"BitsAllocated": 16}, "has 16-bit samples"),
    "signed": ({"PixelRepresentation": 1}, "has signed-bit samples"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR", "SamplesPerPixel": 1}, "has PALETTE COLOR pixels"),
    "more frames": ({"NumberOfFrames": 21}, "has 21 frames, where its size needs 20"),
    "fewer frames": ({"NumberOfFrames": 19}, "holds 20 frames, and its header says 19"),
    "larger": ({"TotalPixelMatrixColumns": 321}, "left out|has 20 frames, where its size needs 24"),
    "no size": ({"Rows": 0}, "in tiles of 64x0: damaged"),
    "huge": ({"TotalPixelMatrixColumns": 2**31, "TotalPixelMatrixRows": 2**31}, "more than max_pixels"),
    "many tiles": ({"TotalPixelMatrixColumns": 2**18, "Rows": 1, "Columns": 1, "TotalPixelMatrixRows": 2**18}, "tiles"),
    "no words": ({"Rows": None}, "level-0.dcm is a damaged DICOM file"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, that writes what is wrong
def test_bad_headers_are_refused_in_one_line(tmp_path, case):
    tags, words = BAD[case]
    folder = write_dicom(tmp_path / "one", PIXELS)
    changed(folder / "level-0.dcm", **tags)
    refused(folder, words)


@pytest.mark.parametrize(("table", "codec"), [("", "jpeg"), ("extended", "jpeg"), ("basic", "raw")])
def test_a_wrong_number_of_frames_is_refused(tmp_path, table, codec):
    photometric = "RGB" if codec == "raw" else "YBR_FULL_422"
    folder = tmp_path / "one"
    folder.mkdir()
    path = write_instance(folder / "a.dcm", PIXELS, table=table, codec=codec, photometric=photometric)
    changed(path, TotalPixelMatrixRows=150, NumberOfFrames=15)
    refused(folder, "more items than its 15 frames" if not table else "holds 20 frames, and its header says 15")
    changed(path, TotalPixelMatrixRows=300, NumberOfFrames=25)
    refused(folder, "holds 20 frames, and its header says 25")


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        (b"1.2.840.10008.1.2.4.80", "has transfer syntax 1.2.840.10008.1.2.4.80; readable are uncompressed, JPEG"),
        (b"1.2.840.10008.1.2.1.99", "level-0.dcm is compressed as a whole"),
    ],
)
def test_compressions_that_are_not_read_are_named(tmp_path, uid, words):
    folder = write_dicom(tmp_path / "one", PIXELS)
    content = (folder / "level-0.dcm").read_bytes()
    (folder / "level-0.dcm").write_bytes(content.replace(b"1.2.840.10008.1.2.4.50", uid, 1))
    refused(folder, words)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_header_does_not_show_its_words(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS)
    path = folder / "level-0.dcm"
    content = path.read_bytes()
    at = content.index(b"\x28\x00\x08\x00IS\x02\x0020")  # NumberOfFrames
    path.write_bytes(content[: at + 8] + b"Jo" + content[at + 10 :])
    assert "Jo" not in refused(folder, "level-0.dcm is a damaged DICOM file").removeprefix(str(folder))


def test_places_of_frames_are_checked(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    path = write_instance(folder / "a.dcm", PIXELS, **SPARSE)

    def place(number, **tags):
        file = pydicom.dcmread(path)
        for name, value in tags.items():
            setattr(file.PerFrameFunctionalGroupsSequence[number].PlanePositionSlideSequence[0], name, value)
        file.save_as(path)

    place(2, ColumnPositionInTotalImagePixelMatrix=6401)
    refused(folder, "a frame that lies outside of its level")
    place(2, ColumnPositionInTotalImagePixelMatrix=70)
    refused(folder, "tiles that overlap or do not lie in a grid")
    place(2, ColumnPositionInTotalImagePixelMatrix=1)
    refused(folder, "two frames at one place")
    place(2, ColumnPositionInTotalImagePixelMatrix=129, ZOffsetInSlideCoordinateSystem=0.01)
    refused(folder, "several focal planes")
    changed(path, PerFrameFunctionalGroupsSequence=None)
    refused(folder, "does not say where its frames lie")


def test_a_missing_file_of_a_concatenation_is_named(tmp_path):
    for lost in (1, 2, 3):
        folder = parts(tmp_path / str(lost), 7, 11)
        (folder / f"part-{lost}.dcm").unlink()
        refused(folder, f"300x210 cannot be read: lacks file {lost} of the 3 of its concatenation")


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


def test_two_images_of_one_size_are_refused(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS)
    write_instance(folder / "again.dcm", PIXELS)
    refused(folder, "has two images of one size, again.dcm and level-0.dcm")


@pytest.mark.parametrize("content", [b"", b"x" * 5000])
def test_a_damaged_file_in_the_folder_is_named_because_it_may_be_a_level(tmp_path, content):
    folder = write_dicom(tmp_path / "one", PIXELS)
    (folder / "level-0.dcm").write_bytes(content)
    for path in (folder, folder / "level-1.dcm"):
        refused(path, "level-0.dcm is no DICOM file: damaged or empty; copy it again, or remove it")


@pytest.mark.parametrize("options", [{}, {"table": ""}, {"table": "extended"}, {"codec": "raw", "photometric": "RGB"}])
def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path, options):
    folder = write_dicom(tmp_path / "one", PIXELS, **options)
    whole = data.open_slide(folder).read_region(0, 0, 64, 64)
    path = folder / "level-0.dcm"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with data.open_slide(folder) as slide:
        assert "of 20 tiles of level 0 lie beyond the end of level-0.dcm; copy it again" in slide.damage
        np.testing.assert_array_equal(slide.read_region(0, 0, 64, 64), whole)
        with pytest.raises(data.DamagedPieceError, match=r"x=256, y=192 of level 0: lies beyond the end"):
            slide.read_region(256, 192, 8, 8)
        assert slide.read_region(0, 0, 150, 105, 1).shape == (105, 150, 3)
    path.write_bytes(content[:300])
    refused(folder, "level-0.dcm")


def test_overwritten_frames_are_damaged_and_their_neighbours_are_not(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS)
    path = folder / "level-0.dcm"
    places = data.index_slide(folder).layout.rasters[0].offsets % 2**40
    content = bytearray(path.read_bytes())
    content[places[3] : places[3] + 4] = b"\0\0\0\0"  # the head of an item
    content[places[8] + 20 : places[8] + 120] = bytes(100)
    path.write_bytes(content)
    with data.open_slide(folder) as slide:
        with pytest.raises(data.DamagedPieceError, match="no DICOM item where the offset table says"):
            slide.read_region(3 * TILE, 0, 4, 4)
        with pytest.raises(data.DamagedPieceError, match=r"x=192, y=64 of level 0: the JPEG"):
            slide.read_region(3 * TILE, TILE, 4, 4)
        assert slide.read_region(4 * TILE, 0, 4, 4).shape == (4, 4, 3)


def test_a_damaged_offset_table_is_refused(tmp_path):
    folder = write_dicom(tmp_path / "one", PIXELS)
    path = folder / "level-0.dcm"
    content = bytearray(path.read_bytes())
    at = content.index(b"\xe0\x7f\x10\x00OB") + 12 + 8  # the head of the element, and of its first item
    content[at + 8 : at + 12] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    refused(folder, "level-0.dcm has a damaged offset table")


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


def test_folders_that_are_no_slides_say_so(tmp_path):
    refused(tmp_path, "a directory without DICOM files or OME-Zarr metadata")
    write_instance(tmp_path / "label.dcm", PIXELS[:64, :64], flavour="LABEL")
    refused(tmp_path, "no level of a whole-slide image")
