"""DICOM whole-slide images that are refused or damaged: the message names the file and says why."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.slides import TILE

from fastmtl import data

pydicom = pytest.importorskip("pydicom")

from helpers.dicom_slides import PIXELS, SPARSE, changed, parts, refused, write_dicom, write_instance  # noqa: E402

BAD = {
    "focal planes": ({"TotalPixelMatrixFocalPlanes": 3}, "level-0.dcm has 3 focal planes; only one is read"),
    "optical paths": ({"NumberOfOpticalPaths": 2}, "has 2 optical paths"),
    "16 bits": ({"BitsAllocated": 16}, "has 16-bit samples"),
    "signed": ({"PixelRepresentation": 1}, "has signed-bit samples"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR", "SamplesPerPixel": 1}, "has PALETTE COLOR pixels"),
    "more frames": ({"NumberOfFrames": 21}, "has 21 frames, where its size needs 20"),
    "fewer frames": ({"NumberOfFrames": 19}, "holds 20 frames, and its header says 19"),
    "larger": ({"TotalPixelMatrixColumns": 321}, "has 20 frames, where its size needs 24: a file is missing"),
    "no size": ({"Rows": 0}, "in tiles of 64x0: damaged"),
    "huge": ({"TotalPixelMatrixColumns": 2**31, "TotalPixelMatrixRows": 2**31}, "more than max_pixels"),
    "many tiles": (
        {"TotalPixelMatrixColumns": 2**18, "TotalPixelMatrixRows": 2**18, "Rows": 1, "Columns": 1},
        "declares more than 16,777,216 tiles",
    ),
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


def test_folders_that_are_no_slides_say_so(tmp_path):
    refused(tmp_path, "a directory without DICOM files or OME-Zarr metadata")
    write_instance(tmp_path / "label.dcm", PIXELS[:64, :64], flavour="LABEL")
    refused(tmp_path, "no level of a whole-slide image")
