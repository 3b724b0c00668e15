"""Slides that are damaged, huge, of another kind than they say, or asked for what they do not have."""

import pickle

import numpy as np
import pytest
import tifffile
from helpers.slides import TILE, patch_tag, patch_tile, tissue_like, write_jpeg_with_tables, write_tiff
from PIL import Image

from fastmtl import data


def refuse(path, match, **options):
    with pytest.raises(data.SlideError, match=match) as found:
        data.open_slide(path, **options)
    assert str(path) in str(found.value)


def zero_half(part):
    part[len(part) // 2 :] = bytes(len(part) - len(part) // 2)


def zero_middle(part):
    part[-300:-100] = bytes(200)


def zero_most(part):
    part[200:-100] = bytes(len(part) - 300)


def cut_off(part):
    part[-300:] = part[:300]


def overwrite_start(part):
    part[:8] = b"overlaid"


@pytest.mark.parametrize(
    ("compression", "change", "reason"),
    [
        ("jpeg", zero_half, "no end marker"),
        ("jpeg", zero_middle, "zero bytes inside"),
        ("jpeg", cut_off, "no end marker"),
        ("jpeg", overwrite_start, "no start marker"),
        ("jpeg2000", zero_most, "zero bytes inside"),
        ("jpeg2000", overwrite_start, "does not decode"),
        ("webp", zero_most, "zero bytes inside"),
        ("webp", overwrite_start, "does not decode"),
        ("lzw", zero_most, "zero bytes inside"),
        ("deflate", zero_middle, "does not decode"),
        ("deflate", overwrite_start, "does not decode"),
        ("zstd", overwrite_start, "does not decode"),
        ("png", zero_middle, "does not decode"),
    ],
)
def test_a_damaged_tile_is_named_and_its_neighbours_are_read(tmp_path, compression, change, reason):
    pixels = tissue_like()
    noisy = (pixels + np.random.default_rng(0).integers(0, 8, pixels.shape)).astype(np.uint8)
    path = write_tiff(tmp_path / "slide.tiff", noisy, compression=compression)
    whole = tifffile.imread(path)
    patch_tile(path, 6, change)  # of five columns: the second row's second
    with data.open_slide(path) as slide:
        region = data.Region(path, 70, 70, 32, 32)
        for read in (lambda: slide.encoded_tiles(region), lambda: slide.read_region(70, 70, 32, 32)):
            with pytest.raises(data.DamagedPieceError, match=reason) as found:
                read()
            assert found.value.coordinate == (TILE, TILE, 0)
        np.testing.assert_array_equal(slide.read_region(0, 0, TILE, TILE), whole[:TILE, :TILE])
    again = pickle.loads(pickle.dumps(found.value))
    assert (str(again), again.coordinate) == (str(found.value), found.value.coordinate)


def test_blank_jpeg_tiles_with_their_own_tables_are_no_damage(tmp_path):
    """Optimised Huffman tables may code "block ends here" as zeros: a blank tile is then a run of zero bytes."""
    import imagecodecs

    stream = imagecodecs.jpeg8_encode(np.full((512, 512, 3), 240, np.uint8), level=75, optimize=True)
    path = tmp_path / "slide.tiff"
    tifffile.imwrite(
        path, iter([stream]), shape=(512, 512, 3), dtype=np.uint8, tile=(512, 512), photometric="ycbcr",
        compression="jpeg", subsampling=(2, 2),
    )  # fmt: skip
    assert bytes(64) in stream
    with data.open_slide(path) as slide:
        assert (slide.read_region(0, 0, 512, 512) == 240).all()


@pytest.mark.parametrize("compression", ["webp", "jpeg2000", "jpegxl", "lzw", "deflate", "jpeg"])
def test_blank_tiles_are_no_damage(tmp_path, compression):
    """WebP leaves runs of zero bytes for what is blank."""
    blank = np.full((1024, 1024, 3), 240, np.uint8)
    path = write_tiff(tmp_path / "slide.tiff", blank, compression=compression, tile=1024)
    with data.open_slide(path) as slide:
        assert np.abs(slide.read_region(0, 0, 1024, 1024).astype(int) - 240).max() <= 2


def test_a_tile_with_another_size_than_the_slide_says(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like(), compression="jpeg", tile=128)
    small = write_tiff(tmp_path / "small.tiff", tissue_like(), compression="jpeg", tile=64)
    with tifffile.TiffFile(small) as file:
        stream = file.filehandle.read_array(np.uint8, file.pages[0].databytecounts[0], file.pages[0].dataoffsets[0])

    def put_small(part):
        part[:] = stream.tobytes()[:-2] + bytes([255] * (len(part) - len(stream))) + b"\xff\xd9"

    patch_tile(path, 0, put_small)
    with data.open_slide(path) as slide, pytest.raises(data.DamagedPieceError, match="64x64 pixels, the tile 128x128"):
        slide.read_region(0, 0, 10, 10)


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_a_truncated_slide_says_so_and_keeps_what_is_left(tmp_path, keep):
    pixels = tissue_like()
    path = write_tiff(tmp_path / "slide.tiff", pixels, compression="deflate")
    stored = path.read_bytes()
    path.write_bytes(stored[: int(len(stored) * keep)])
    with data.open_slide(path) as slide:
        assert "lie beyond its end" in slide.problems[0]
        np.testing.assert_array_equal(slide.read_region(0, 0, 60, 60), pixels[:60, :60])
        with pytest.raises(data.DamagedPieceError, match="beyond the end of the file"):
            slide.read_region(250, 200, 10, 10)
        with pytest.raises(data.DamagedPieceError):
            slide.thumbnail(64)


def test_a_truncated_header(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like(), compression="jpeg")
    path.write_bytes(path.read_bytes()[:60])
    refuse(path, "truncated or damaged")
    path.write_bytes(b"")
    refuse(path, "is empty")
    refuse(tmp_path / "absent.svs", "No such file")
    refuse(tmp_path, "directory")


def test_content_decides_not_the_name(tmp_path):
    Image.fromarray(tissue_like()).save(tmp_path / "image.png")
    wrong = (tmp_path / "image.png").rename(tmp_path / "image.svs")
    with data.open_slide(wrong) as slide:
        assert slide.vendor == "image"
    tiff = write_tiff(tmp_path / "slide.tiff", tissue_like()).rename(tmp_path / "slide.png")
    with data.open_slide(tiff) as slide:
        assert slide.levels[0].tile_width == TILE
    words = tmp_path / "words.svs"
    words.write_text("no slide at all")
    pytest.importorskip("openslide")
    refuse(words, "no known format")


def test_a_tile_of_no_size(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like())
    patch_tag(path, 322, 0)
    refuse(path, "in tiles of 0x64: nothing can have that size")


def test_sizes_beyond_the_limit_are_refused_unread(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like())
    refuse(path, "300x210 pixels, more than max_pixels=1,000", max_pixels=1000)
    patch_tag(path, 256, 60000)
    refuse(path, "lists 20 tiles where its size needs")
    strip = tmp_path / "strip.tiff"
    tifffile.imwrite(strip, tissue_like(), photometric="rgb", compression="deflate", rowsperstrip=210)
    patch_tag(strip, 256, 65000)
    patch_tag(strip, 257, 65000)
    patch_tag(strip, 278, 65000)
    refuse(strip, "decoded in one piece; convert it to smaller tiles")
    bomb = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((9000, 9000), np.uint8)).save(bomb)
    refuse(bomb, "9000x9000 pixels, more than 67,108,864; make it a tiled TIFF")


def test_a_deflated_bomb_is_not_unpacked(tmp_path):
    import zlib

    path = tmp_path / "bomb.tiff"
    tifffile.imwrite(
        path, iter([zlib.compress(bytes(2**26))]), shape=(64, 64, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb",
        compression="deflate",
    )  # fmt: skip
    with data.open_slide(path) as slide, pytest.raises(data.DamagedPieceError, match="does not decode as deflate"):
        slide.read_region(0, 0, 64, 64)


def test_a_byte_count_beyond_belief_takes_no_memory(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like(), bigtiff=True, compression="deflate")
    patch_tag(path, 325, 2**31)
    with data.open_slide(path) as slide, pytest.raises(data.DamagedPieceError, match="beyond the end"):
        slide.read_region(0, 0, 10, 10)


@pytest.mark.parametrize(
    ("pixels", "options", "reason"),
    [
        (tissue_like().astype(np.uint16), {}, "16-bit samples"),
        (tissue_like().astype(np.float32), {}, "32-bit samples"),
        (tissue_like()[..., :2].transpose(2, 0, 1), {"photometric": "minisblack", "planarconfig": "separate"}, "apart"),
        (tissue_like(), {"compression": "lerc"}, "TIFF compression 34887; readable are"),
        (
            np.dstack([tissue_like(), tissue_like()]),
            {"photometric": "minisblack", "planarconfig": "contig"},
            "6 samples",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_remedy(tmp_path, pixels, options, reason):
    refuse(write_tiff(tmp_path / "slide.tiff", pixels, **options), reason)


@pytest.mark.parametrize(
    ("resolution", "unit", "problem"),
    [
        ((2004008, 2004008), "CENTIMETER", "0.00499 x 0.00499 micrometres per pixel, outside"),
        ((72, 72), "INCH", "352.778 x 352.778"),
        ((1, 1), "NONE", "says nothing"),
        ((20000, 40000), "CENTIMETER", "not square: 0.5 x 0.25"),
    ],
)
def test_a_false_scale_is_reported_and_not_used(tmp_path, resolution, unit, problem):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like(), resolution=resolution, resolutionunit=unit)
    with data.open_slide(path) as slide:
        assert problem in slide.problems[0]
        assert slide.mpp == (None if "square" not in problem else 0.375)
    with data.open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5


def test_a_scale_that_does_not_fit_the_objective_is_reported(tmp_path):
    words = "Aperio Image Library v1\n300x210 (64x64)|AppMag = 40|MPP = 2.0"
    path = write_tiff(tmp_path / "slide.svs", tissue_like(), description=words)
    with data.open_slide(path) as slide:
        assert slide.mpp == 2
        assert "do not fit a magnification of 40" in slide.problems[0]


def test_bad_arguments_name_what_was_expected(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like(), levels=2)
    with data.open_slide(path) as slide:
        for level in (2, -1):
            with pytest.raises(ValueError, match="`level` must be 0 to 1"):
                slide.read_region(0, 0, 8, 8, level)
        with pytest.raises(ValueError, match="at least 1 pixel; got 0x8"):
            slide.encoded_tiles(data.Region(path, 0, 0, 0, 8))
        with pytest.raises(TypeError):
            slide.read_region(0.5, 0, 8, 8)
    for mpp in (0, -1, 1000, float("nan")):
        with pytest.raises(ValueError, match="`mpp` must be"):
            data.open_slide(path, mpp=mpp)


def test_a_level_that_cannot_be_read_is_left_out_and_named(tmp_path):
    path = tmp_path / "slide.tiff"
    with tifffile.TiffWriter(path) as file:
        options = {"photometric": "rgb", "tile": (TILE, TILE), "metadata": None}
        file.write(tissue_like(), **options)
        file.write(tissue_like()[::2, ::2], compression="lerc", subfiletype=1, **options)
    with data.open_slide(path) as slide:
        assert len(slide.levels) == 1
        assert "page 1 is left out: has TIFF compression 34887" in slide.problems[0]


def test_damaged_jpeg_tables(tmp_path):
    path = write_jpeg_with_tables(tmp_path / "slide.svs", tissue_like(), "ycbcr")
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[347].valueoffset
    stored = bytearray(path.read_bytes())
    stored[at : at + 4] = b"none"
    path.write_bytes(stored)
    refuse(path, "JPEGTables is no JPEG stream")


def test_random_damage_never_crashes(tmp_path):
    """Any one damaged place gives pixels or an error of ours."""
    sound = write_tiff(tmp_path / "sound.tiff", tissue_like(), levels=2, compression="jpeg").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(60):
        stored = bytearray(sound)
        # Half of them in the directories, which stand at the start and between the levels.
        start = int(rng.integers(0, len(stored) - 16)) if number % 2 else int(rng.integers(4, 400))
        stored[start : start + 8] = rng.bytes(8)
        path = tmp_path / "damaged.tiff"
        path.write_bytes(stored)
        try:
            with data.open_slide(path) as slide:
                slide.read_region(0, 0, 300, 210)
        except (data.SlideError, ImportError):
            refused += 1
    assert refused > 5
