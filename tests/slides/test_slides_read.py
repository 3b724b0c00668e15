"""What `open_slide` reads, against tifffile, OpenSlide and Pillow."""

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers.slides import TILE, halved, patch_tag, tissue_like, write_jpeg_with_tables, write_tiff
from PIL import Image, ImageOps

from fastmtl import data
from fastmtl.data.dataset import BACKGROUND

LOSSLESS = ["none", "lzw", "deflate", "zstd", "packbits", "lzma", "png"]
LOSSY = ["jpeg", "jpeg2000", "webp", "jpegxl", "aperio_jp2000_rgb"]


def whole(slide, level=0):
    return slide.read_region(0, 0, slide.levels[level].width, slide.levels[level].height, level)


def difference(found, expected):
    return int(np.abs(found.astype(int) - expected.astype(int)).max())


def stitched(slide, region):
    """The region from its pieces, as a loader does it."""
    canvas = np.full((region.height, region.width, 3), BACKGROUND, np.uint8)
    for piece in slide.encoded_tiles(region):
        pixels = imagecodecs.imread(piece.data.tobytes()) if piece.pixels is None else piece.pixels
        pixels = np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3))
        left, top = max(-piece.x, 0), max(-piece.y, 0)
        part = pixels[top : piece.height, left : piece.width][: region.height, : region.width]
        y, x = max(piece.y, 0), max(piece.x, 0)
        part = part[: region.height - y, : region.width - x]
        canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    return canvas


@pytest.mark.parametrize("compression", LOSSLESS + LOSSY)
def test_every_codec_is_read_as_tifffile_reads_it(tmp_path, compression):
    pixels = tissue_like()
    path = write_tiff(tmp_path / "slide.tiff", pixels, levels=2, compression=compression)
    with data.open_slide(path) as slide, tifffile.TiffFile(path) as file:
        assert [(level.width, level.height) for level in slide.levels] == [(300, 210), (150, 105)]
        assert slide.mpp == 0.5
        for level in range(2):
            assert difference(whole(slide, level), file.pages[level].asarray()) == 0
        if compression in LOSSLESS:
            assert difference(whole(slide), pixels) == 0
        region = data.Region(path, -10, 30, 180, 150)
        assert difference(stitched(slide, region), slide.read_region(-10, 30, 180, 150)) <= 2


@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "zstd"])
@pytest.mark.parametrize("options", [{"predictor": 2}, {"bigtiff": True}, {"tile": None, "rowsperstrip": 50}])
def test_predictors_bigtiff_and_strips(tmp_path, compression, options):
    pixels = tissue_like()
    options = {"tile": (TILE, TILE), **options}
    if compression == "none" and options.get("predictor"):
        pytest.skip("nothing is predicted in raw tiles")
    path = tmp_path / "slide.tiff"
    big = options.pop("bigtiff", False)
    tifffile.imwrite(path, pixels, photometric="rgb", compression=compression, bigtiff=big, metadata=None, **options)
    with data.open_slide(path) as slide:
        assert difference(whole(slide), pixels) == 0
        assert difference(slide.read_region(33, 77, 100, 130), pixels[77:207, 33:133]) == 0


@pytest.mark.parametrize("colour", ["ycbcr", "rgb"])
@pytest.mark.parametrize("marked", [False, True], ids=["unmarked", "JFIF"])
def test_shared_jpeg_tables_and_colour_spaces(tmp_path, colour, marked):
    openslide = pytest.importorskip("openslide")
    pixels = tissue_like()
    path = write_jpeg_with_tables(tmp_path / "slide.svs", pixels, colour, marked=marked)
    with data.open_slide(path) as slide, openslide.OpenSlide(path) as other:
        expected = np.asarray(other.read_region((0, 0), 0, (300, 210)).convert("RGB"))
        assert difference(expected, pixels) < 12  # the oracle did see the colours
        assert difference(whole(slide), expected) == 0
        region = data.Region(path, 40, 20, 200, 150)
        assert difference(stitched(slide, region), expected[20:170, 40:240]) <= 1


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_subsampled_jpeg_equals_openslide(tmp_path, subsampling):
    openslide = pytest.importorskip("openslide")
    path = write_tiff(
        tmp_path / "s.tiff", tissue_like(), compression="jpeg", photometric="ycbcr", subsampling=subsampling
    )
    with data.open_slide(path) as slide, openslide.OpenSlide(path) as other:
        expected = np.asarray(other.read_region((-9, 5), 0, (320, 220)))
        inside = expected[..., 3] > 0
        found = slide.read_region(-9, 5, 320, 220)
        assert difference(found[inside], expected[inside][:, :3]) == 0
        assert (found[~inside] == BACKGROUND).all()
        assert inside.any()
        assert not inside.all()


def test_dali_decodes_tiles_to_the_same_pixels(tmp_path):
    dali = pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, types

    paths = [write_jpeg_with_tables(tmp_path / f"{colour}.tiff", tissue_like(), colour) for colour in ("rgb", "ycbcr")]
    grey = write_tiff(tmp_path / "grey.tiff", tissue_like()[..., 0], compression="jpeg")
    for path in [*paths, grey]:
        with data.open_slide(path) as slide:
            (piece,) = slide.encoded_tiles(data.Region(path, 10, 10, 20, 20))
            assert piece.data is not None
            assert (piece.x, piece.y, piece.width, piece.height) == (-10, -10, TILE, TILE)
            pipe = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
            with pipe:
                encoded = fn.external_source(source=lambda: [piece.data])
                pipe.set_outputs(
                    fn.decoders.image(encoded, device="cpu", output_type=types.RGB, jpeg_fancy_upsampling=True)
                )
            pipe.build()
            decoded = np.asarray(pipe.run()[0].as_tensor())[0]
            assert difference(decoded, slide.read_region(0, 0, TILE, TILE)) <= 2


def test_levels_are_found_and_other_pages_are_beside_the_slide(tmp_path):
    pixels = tissue_like(520, 360)
    path = tmp_path / "slide.svs"
    words = "Aperio Image Library v1\n520x360 (64x64) JPEG/RGB Q=30|AppMag = 20|MPP = 0.4990"
    tiled = {"photometric": "rgb", "tile": (TILE, TILE), "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, description=words, **tiled)
        file.write(pixels[::8, ::8], photometric="rgb", description=words.replace("(64x64)", "-"), metadata=None)
        file.write(pixels[::4, ::4], description=words, **tiled)
        file.write(pixels[:40, :50], photometric="rgb", description="Aperio v1\nlabel 50x40", metadata=None)
        file.write(pixels[50:90, :90], photometric="rgb", description="Aperio v1\nmacro 90x40", metadata=None)
    with data.open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1, 4]
        assert (slide.mpp, slide.magnification, slide.vendor) == (0.499, 20, "aperio")
        assert slide.associated_names == ("thumbnail", "label", "macro")
        assert difference(slide.associated("label"), pixels[:40, :50]) == 0
        assert difference(whole(slide, 1), pixels[::4, ::4]) == 0
        assert not slide.problems
        with pytest.raises(ValueError, match="thumbnail, label, macro; got 'slide'"):
            slide.associated("slide")


def test_ome_levels_are_sub_directories(tmp_path):
    pixels, path = tissue_like(), tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        scale = {"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
        tiled = {"photometric": "rgb", "tile": (TILE, TILE), "compression": "deflate"}
        file.write(pixels, subifds=2, metadata={"axes": "YXS", **scale}, **tiled)
        file.write(halved(pixels), subfiletype=1, **tiled)
        file.write(halved(halved(pixels)), subfiletype=1, **tiled)
    with data.open_slide(path) as slide:
        assert len(slide.levels) == 3
        assert (slide.vendor, slide.mpp) == ("ome", 0.25)
        assert difference(whole(slide, 2), halved(halved(pixels))) == 0


def test_positions_are_level_0_pixels_and_outside_is_background(tmp_path):
    pixels = tissue_like()
    path = write_tiff(tmp_path / "slide.tiff", pixels, levels=2, compression="deflate")
    with data.open_slide(path) as slide:
        expected = np.full((40, 50, 3), BACKGROUND, np.uint8)
        expected[10:, 20:] = halved(pixels)[:30, :30]
        assert difference(slide.read_region(-40, -20, 50, 40, 1), expected) == 0
        assert (slide.read_region(1000, 1000, 8, 8) == BACKGROUND).all()
        assert slide.encoded_tiles(data.Region(path, 1000, 0, 8, 8)) == []


def test_tiles_that_were_never_scanned_are_background(tmp_path):
    pixels = tissue_like()
    path = write_tiff(tmp_path / "slide.tiff", pixels, compression="deflate")
    patch_tag(path, 325, 0)  # the first tile's byte count
    with data.open_slide(path) as slide:
        found = whole(slide)
        assert (found[:TILE, :TILE] == BACKGROUND).all()
        assert difference(found[TILE:], pixels[TILE:]) == 0


@pytest.mark.parametrize("code", range(1, 9))
@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
def test_orientation_is_undone_as_pillow_does(tmp_path, code, compression):
    pixels = tissue_like(150, 100)
    path = write_tiff(tmp_path / "s.tiff", pixels, compression=compression, extratags=[(274, 3, 1, code, True)])
    with Image.fromarray(tifffile.imread(path)) as image:
        image.getexif()[274] = code
        expected = np.asarray(ImageOps.exif_transpose(image))
    with data.open_slide(path) as slide:
        assert difference(whole(slide), expected) == 0
        part = slide.read_region(11, 70, 60, 60)
        assert difference(part[: expected.shape[0] - 70], expected[70:130, 11:71]) == 0
        assert difference(stitched(slide, data.Region(path, 11, 30, 60, 60)), expected[30:90, 11:71]) <= 1


def test_grey_inverted_palette_and_alpha_become_rgb(tmp_path):
    grey = tissue_like()[..., 0]
    alpha = np.where(np.arange(300) < 150, 255, 0)[None, :, None].repeat(210, 0).astype(np.uint8)
    palette = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    cases = {
        "grey": (write_tiff(tmp_path / "grey.tiff", grey, compression="lzw"), np.stack([grey] * 3, -1)),
        "inverted": (write_tiff(tmp_path / "i.tiff", grey, photometric="miniswhite"), np.stack([255 - grey] * 3, -1)),
        "palette": (
            write_tiff(tmp_path / "p.tiff", grey, photometric="palette", colormap=palette * 257),
            palette.T[grey].astype(np.uint8),
        ),
        "alpha": (
            write_tiff(tmp_path / "a.tiff", np.dstack([tissue_like(), alpha]), extrasamples=["unassalpha"]),
            np.where(alpha > 0, tissue_like(), BACKGROUND).astype(np.uint8),
        ),
    }
    for name, (path, expected) in cases.items():
        with data.open_slide(path) as slide:
            assert difference(whole(slide), expected) == 0, name


@pytest.mark.parametrize("suffix", ["png", "jpg", "jp2"])
def test_plain_images_are_slides_of_one_level(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(tissue_like()).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    with data.open_slide(path, mpp=0.25) as slide:
        assert (len(slide.levels), slide.mpp, slide.problems) == (1, 0.25, ())
        assert difference(whole(slide), expected) == 0
        assert difference(stitched(slide, data.Region(path, 50, -5, 99, 88))[5:], expected[:83, 50:149]) <= 1


def test_png_palettes_and_exif_turns(tmp_path):
    palette, turned = tmp_path / "palette.png", tmp_path / "turned.jpg"
    image = Image.fromarray(tissue_like())
    image.quantize(16).save(palette)
    exif = Image.Exif()
    exif[274] = 6
    image.save(turned, exif=exif)
    for path in (palette, turned):
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        with data.open_slide(path) as slide:
            assert difference(whole(slide), expected) == 0
            assert difference(stitched(slide, data.Region(path, 3, 4, 60, 50)), expected[4:54, 3:63]) == 0


@pytest.mark.long
def test_large_tiles_are_decoded_once(tmp_path, monkeypatch):
    from fastmtl.data.slides import encoded_tiles

    path = tmp_path / "large.png"
    Image.fromarray(np.tile(tissue_like(512, 512), (5, 4, 1))).save(path)
    calls = []
    monkeypatch.setattr(
        encoded_tiles, "decode", lambda *args, real=encoded_tiles.decode: calls.append(1) or real(*args)
    )
    with data.open_slide(path) as slide:
        first, again = slide.read_region(0, 0, 40, 40), slide.read_region(512, 512, 40, 40)
        with pytest.warns(DeprecationWarning, match="now called Slide.encoded_tiles"):
            (tile,) = slide.pieces(data.Region(path, 0, 0, 40, 40))
        assert difference(first, again) == difference(tile.pixels, first) == 0
        assert len(calls) == 1


def test_threads_share_a_slide(tmp_path):
    pixels = tissue_like(800, 700)
    path = write_tiff(tmp_path / "slide.tiff", pixels, compression="deflate")
    corners = np.random.default_rng(0).integers(0, 600, (200, 2)).tolist()
    with data.open_slide(path) as slide, ThreadPoolExecutor(8) as pool:
        for (x, y), found in zip(corners, pool.map(lambda at: slide.read_region(*at, 90, 90), corners), strict=True):
            assert difference(found, pixels[y : y + 90, x : x + 90]) == 0


def test_a_closed_slide_opens_again(tmp_path):
    path = write_tiff(tmp_path / "slide.tiff", tissue_like())
    slide = data.open_slide(path)
    before = whole(slide)
    slide.close()
    assert difference(whole(slide), before) == 0
    slide.close()


def test_open_files_have_one_bound_and_a_slide_that_goes_closes_its_own(tmp_path, monkeypatch):
    from fastmtl.data.slides import open_files

    monkeypatch.setattr(open_files, "_MOST_OPEN", 5)
    pixels = tissue_like()
    paths = [write_tiff(tmp_path / f"{number}.tiff", pixels) for number in range(12)]
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.exists() else 0

    def opened():
        return len(list(folder.iterdir())) - before if folder.exists() else 0

    gc.disable()  # nothing may wait for the collector
    try:
        slides = [data.open_slide(path) for path in paths]
        for slide in [*slides, *slides]:
            assert difference(whole(slide), pixels) == 0
            assert opened() <= 5
        with ThreadPoolExecutor(8) as pool:
            assert all(difference(found, pixels) == 0 for found in pool.map(whole, slides * 5))
        del slides, slide
        assert opened() <= 0
    finally:
        gc.enable()


def test_thumbnail_averages_the_whole_slide(tmp_path):
    pixels = tissue_like(512, 384)
    path = write_tiff(tmp_path / "slide.tiff", pixels, compression="deflate")
    with data.open_slide(path) as slide:
        small = slide.thumbnail(64)
        expected = pixels.reshape(48, 8, 64, 8, 3).mean((1, 3))
        assert small.shape == (48, 64, 3)
        assert np.abs(small - expected).max() <= 1
        assert difference(slide.thumbnail(4096), pixels) == 0


@pytest.mark.parametrize(("code", "colour"), [(33003, "YCbCr"), (33005, "RGB")])
def test_aperio_jpeg2000_equals_openslide(tmp_path, code, colour):
    """33003 holds YCbCr, and the codestream does not say so."""
    openslide = pytest.importorskip("openslide")
    pixels, path = tissue_like(128, 64), tmp_path / "slide.svs"
    stored = np.asarray(Image.fromarray(pixels).convert(colour))
    streams = [
        imagecodecs.jpeg2k_encode(np.ascontiguousarray(stored[:, left : left + 64]), codecformat="j2k", mct=False)
        for left in (0, 64)
    ]
    words = "Aperio Image Library v1\n128x64 (64x64) J2K/KDU Q=30|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path) as file:
        file.write(
            iter(streams), shape=pixels.shape, dtype=np.uint8, tile=(64, 64), photometric="rgb", compression=code,
            description=words, metadata=None,
        )  # fmt: skip
    with data.open_slide(path) as slide, openslide.OpenSlide(path) as other:
        expected = np.asarray(other.read_region((0, 0), 0, (128, 64)).convert("RGB"))
        assert difference(expected, pixels) <= 3
        assert difference(whole(slide), expected) <= 2
        assert slide.encoded_tiles(data.Region(path, 0, 0, 8, 8))[0].data is None
