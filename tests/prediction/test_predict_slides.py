"""Maps of whole slides lie where the slide's pixels lie: of a model that looks at one pixel at a time, the stitched map
is the slide itself, read directly and thresholded."""

import json
import threading

import numpy as np
import pytest
import tifffile
import torch
from helpers.pixel_model import BORDERS, CPU, PixelModel, lines_of, map_of, predict, read_tiles
from helpers.slides import patch_tile, tissue_like, write_tiff
from PIL import Image

from fastmtl import data
from fastmtl.prediction.slide_maps import MapOptions
from fastmtl.prediction.stitching import Band


def _slide(path, orientation=1, size=(301, 211)):
    """Lossless, of odd sizes, four levels."""
    tag = [(274, 3, 1, orientation, True)]
    return write_tiff(path, tissue_like(*size), levels=4, compression="deflate", extratags=tag)


@pytest.fixture
def slide(tmp_path):
    return _slide(tmp_path / "slide.tif")


@pytest.mark.parametrize(
    ("level", "overlap", "orientation"),
    [(0, 0, 1), (0, 20, 1), (0, 50, 6), (0, 7, 3), (1, 20, 1), (1, 0, 8)],
)
def test_a_map_is_the_slide_itself_thresholded(tmp_path, level, overlap, orientation):
    # By its sizes, level 1 of 301 x 211 is reduced 1.993 times, and regions would lie beside their true places.
    slide = _slide(tmp_path / "slide.tif", orientation, (302, 214) if level else (301, 211))
    mpp = 0.5 * 2**level
    assert predict({"slide": slide}, tmp_path / "out", mpp=mpp, overlap=overlap).new == 1
    folder = tmp_path / "out" / "slide"
    with data.open_slide(slide) as source:
        width, height = source.levels[level].width, source.levels[level].height
        red = source.read_region(0, 0, width, height, level)[..., 0]
    gland = map_of(folder / "gland.tif")
    assert gland.shape == (height, width)
    np.testing.assert_array_equal(gland, (red > BORDERS[1]) * 255)
    np.testing.assert_array_equal(map_of(folder / "layers" / "dark.tif"), (red < BORDERS[0]) * 255)
    np.testing.assert_array_equal(map_of(folder / "zones.tif"), (red > BORDERS[0]) + 1 * (red > BORDERS[1]))
    (line,) = lines_of(tmp_path / "out" / "predictions.jsonl")
    assert line["gland"] == {
        "outlines": "slide/gland.geojson",
        "mask": "slide/gland.tif",
        "foreground": pytest.approx((gland > 0).mean()),
    }
    assert line["zones"]["shares"]["middle"] == pytest.approx((map_of(folder / "zones.tif") == 1).mean())
    assert line["layers"]["red"]["mask"] == "slide/layers/red.tif"


@pytest.mark.long
def test_generated_slides_with_tissue_alone(tmp_path):
    root = data.generate_slides(tmp_path / "slides", num_patients=3, slide_size=512)
    found = data.find_slides(root)
    assert list(found.slides) == [f"slides/P00{number}-1.tiff" for number in (1, 2, 3)]
    predict(found.slides, tmp_path / "out", mpp=2.0, overlap=16, min_tissue=0.7)
    for name, path in found.slides.items():
        tiles = lines_of(tmp_path / "out" / name / "tiles.jsonl")
        seen = np.zeros((512, 512), bool)
        for tile in tiles:
            assert (tile["width"], tile["height"]) == (64, 64)
            seen[tile["y"] : tile["y"] + 64, tile["x"] : tile["x"] + 64] = True
        assert 0.2 < seen.mean() < 1
        with data.open_slide(path) as source:
            red = source.read_region(0, 0, 512, 512)[..., 0].astype(int)
        gland = map_of(tmp_path / "out" / name / "gland.tif")
        sure = abs(red - BORDERS[1]) > 2  # JPEG decoders differ by so much
        np.testing.assert_array_equal(gland[sure], (((red > BORDERS[1]) & seen) * 255)[sure])
        assert gland.any()


def test_the_file_is_a_pyramid_that_openslide_reads(tmp_path):
    openslide = pytest.importorskip("openslide")
    slide = write_tiff(tmp_path / "slide.tif", tissue_like(1203, 571), levels=2, compression="deflate")
    predict({"slide": slide}, tmp_path / "out", mpp=1.0, overlap=9)
    path = tmp_path / "out" / "slide" / "gland.tif"
    whole = map_of(path)
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        assert [page.shape for page in file.pages] == [(286, 602), (143, 301), (72, 151)]
        assert [page.aspage().compression.name for page in file.pages] == ["ADOBE_DEFLATE"] * 3
        assert all(page.aspage().is_tiled for page in file.pages)
        words = json.loads(file.pages[0].description)
    assert (words["mpp"], words["downsample"], words["values"]) == (1.0, 2.0, {"255": "gland"})
    np.testing.assert_array_equal(map_of(path, 1), whole[::2, ::2])
    np.testing.assert_array_equal(map_of(path, 2), whole[::4, ::4])
    with openslide.OpenSlide(path) as other:
        assert other.level_count == 3
        assert float(other.properties["openslide.mpp-x"]) == pytest.approx(1.0)
        np.testing.assert_array_equal(np.asarray(other.read_region((0, 0), 0, (602, 286)))[..., 0], whole)
    with data.open_slide(path) as ours:
        assert ours.mpp == pytest.approx(1.0)
        assert not ours.problems


@pytest.mark.parametrize("level", [0, 1])
def test_outlines_drawn_again_are_the_map(tmp_path, slide, level):
    predict({"slide": slide}, tmp_path / "out", mpp=0.5 * 2**level, overlap=11)
    folder = tmp_path / "out" / "slide"
    for task, classes in (("gland", ()), ("zones", ("dark", "middle", "red"))):
        expected = map_of(folder / f"{task}.tif")
        height, width = expected.shape
        drawn = data.Polygons(folder / f"{task}.geojson", 0, 0, width, height, 2.0**level, classes)
        np.testing.assert_array_equal(drawn.draw(), expected)
    assert data.polygon_classes(folder / "layers.geojson").keys() == {"red", "dark"}
    features = json.loads((folder / "gland.geojson").read_text())["features"]
    gland = {"name": "gland", "color": [230, 159, 0]}
    assert features[0]["properties"] == {"objectType": "annotation", "classification": gland}


def test_tiles_and_their_means(tmp_path, slide):
    predict({"slide": slide}, tmp_path / "out", overlap=10)
    (line,) = lines_of(tmp_path / "out" / "predictions.jsonl")
    tiles = lines_of(tmp_path / "out" / "slide" / "tiles.jsonl")
    with data.open_slide(slide) as source:
        regions = data.grid(source, 64, level=0, overlap=10)
        assert [(tile["x"], tile["y"]) for tile in tiles] == [(region.x, region.y) for region in regions]
        reds = [source.read_region(r.x, r.y, 64, 64)[..., 0].mean() for r in regions]
        assert line["tissue"] == pytest.approx(source.tissue.fraction(0, 0, 301, 211))
    assert [tile["redness"]["value"] for tile in tiles] == pytest.approx(reds, abs=1e-3)
    assert line["redness"]["value"] == pytest.approx(np.mean(reds), abs=1e-3)
    shares = [tile["grade"]["probabilities"]["high"] for tile in tiles]
    assert line["grade"]["probabilities"]["high"] == pytest.approx(np.mean(shares))
    assert line["grade"]["class"] == ("high" if np.mean(shares) > 0.5 else "low")
    assert (line["tiles"], line["mpp"], line["downsample"]) == (len(tiles), 0.5, 1.0)


def test_overlapping_tiles_are_averaged():
    side, step, width, height = 16, 11, 45, 38
    random = torch.Generator().manual_seed(0)
    sums, counts = torch.zeros(2, 60, 80), torch.zeros(60, 80)
    band, found = Band(2, side, width, height, CPU), []
    for y in (0, step, 3 * step):  # no tile in the third row
        found += band.until(y)
        for x in range(0, width, step):
            tile = torch.rand(2, side, side, generator=random)
            band.add(x, tile)
            sums[:, y : y + side, x : x + side] += tile
            counts[y : y + side, x : x + side] += 1
    found += band.until(height)
    means, seen = torch.zeros(2, height, width), torch.zeros(height, width, dtype=torch.bool)
    top = 0
    for rows in found:
        columns = slice(rows.left, rows.left + rows.seen.shape[1])
        means[:, top : top + rows.number, columns] = rows.means
        seen[top : top + rows.number, columns] = rows.seen
        top += rows.number
    assert top == height
    torch.testing.assert_close(means, (sums / counts.clamp(min=1))[:, :height, :width])
    assert seen.equal((counts > 0)[:height, :width])
    assert not seen.all()


def test_scanned_bounds_that_begin_elsewhere(tmp_path, slide, monkeypatch):
    """Viewers count from level 0 whatever was scanned: the map covers all of it, and outlines are exact."""
    from fastmtl.data.slide_output import slide_cut

    source = data.open_slide(slide)
    source.bounds = (51, 31, 200, 150)
    monkeypatch.setattr(slide_cut, "opened", lambda path, mpp: source)
    predict({"slide": slide}, tmp_path / "out", mpp=1.0, overlap=4)
    expected = np.zeros((106, 151), np.uint8)  # begins half a pixel of the map off: 51 is 25.5
    top, left = round(31 / 2), round(51 / 2)
    read = source.read_region(51, 31, 150, 120, 1)[: 106 - top, : 151 - left, 0]
    found = map_of(tmp_path / "out" / "slide" / "gland.tif")
    expected[top:, left:][: read.shape[0], : read.shape[1]] = (read > BORDERS[1]) * 255
    tiles = lines_of(tmp_path / "out" / "slide" / "tiles.jsonl")
    right, bottom = max((t["x"] - 51) // 2 for t in tiles) + 64, max((t["y"] - 31) // 2 for t in tiles) + 64
    expected[top + bottom :], expected[:, left + right :] = 0, 0
    np.testing.assert_array_equal(found, expected)
    outlines = tmp_path / "out" / "slide" / "gland.geojson"
    x, y = 51 - 2 * left, 31 - 2 * top
    np.testing.assert_array_equal(data.Polygons(outlines, x, y, 151, 106, 2.0).draw(), expected)


def test_what_cannot_be_read_is_set_aside_and_tried_again(tmp_path, slide):
    torn = tmp_path / "torn.svs"
    torn.write_bytes(slide.read_bytes()[:300])
    slides = {"a/torn.svs": torn, "slide.tif": slide, "fine.tif": slide}
    found = predict(slides, tmp_path / "out")
    assert found == ("slides", 2, 0, 1)
    (entry,) = lines_of(tmp_path / "out" / "quarantine.jsonl")
    assert (entry["slide"], entry["file"]) == ("a/torn.svs", str(torn))
    assert entry["reason"].startswith("lists 0 tiles")
    assert [line["slide"] for line in lines_of(tmp_path / "out" / "predictions.jsonl")] == ["fine.tif", "slide.tif"]
    torn.write_bytes(slide.read_bytes())
    before = (tmp_path / "out" / "fine.tif" / "summary.json").stat()
    assert predict(slides, tmp_path / "out") == ("slides", 1, 2, 0)
    assert (tmp_path / "out" / "fine.tif" / "summary.json").stat() == before
    assert not (tmp_path / "out" / "quarantine.jsonl").exists()
    assert len(lines_of(tmp_path / "out" / "predictions.jsonl")) == 3
    finer = predict(slides, tmp_path / "other", mpp=0.1)  # than 0.5, as it was scanned
    assert finer.unreadable == 3
    assert lines_of(tmp_path / "other" / "quarantine.jsonl")[0]["reason"].startswith("`mpp` 0.1 is finer")


def test_a_truncated_slide_is_set_aside_and_never_an_empty_map(tmp_path, slide):
    short = tmp_path / "short.tif"
    short.write_bytes(slide.read_bytes()[: slide.stat().st_size // 2])
    assert predict({"short.tif": short, "slide.tif": slide}, tmp_path / "out") == ("slides", 1, 0, 1)
    (entry,) = lines_of(tmp_path / "out" / "quarantine.jsonl")
    assert "truncated" in entry["reason"]
    assert not (tmp_path / "out" / "short.tif").exists()


@pytest.mark.long
def test_another_mpp_predicts_a_slide_again(tmp_path, slide):
    def go(**mpp):
        return predict({"a.tif": slide, "b.tif": slide}, tmp_path / "out", given=mpp, mpp=1.0)

    assert go() == ("slides", 2, 0, 0)
    assert go(**{"a.tif": 0.45}) == ("slides", 1, 1, 0)
    told = json.loads((tmp_path / "out" / "a.tif" / "summary.json").read_text())
    assert (told["mpp_source"], told["downsample"]) == ("given", pytest.approx(1 / 0.45))
    assert go(**{"a.tif": 0.45}) == ("slides", 0, 2, 0)
    assert go(**{"a.tif": 0.55}) == ("slides", 1, 1, 0)
    assert go() == ("slides", 1, 1, 0)


def test_damaged_tiles_are_left_out_as_the_recipe_allows(tmp_path, slide):
    def garble(part):
        part[10:] = bytes(len(part) - 10)

    whole = predict({"whole": slide}, tmp_path / "out").new
    patch_tile(slide, 7, garble)  # of 5 in a row: x 128, y 64
    assert predict({"torn": slide}, tmp_path / "out") == ("slides", 0, 0, 1)
    found = predict({"torn": slide}, tmp_path / "out", read=lambda folder: read_tiles(folder, max_damaged=0.1))
    assert found == ("slides", whole, 0, 0)
    (entry,) = lines_of(tmp_path / "out" / "quarantine.jsonl")
    assert (entry["slide"], entry["x"], entry["y"]) == ("torn", 128, 64)
    lines = {line["slide"]: line for line in lines_of(tmp_path / "out" / "predictions.jsonl")}
    assert (lines["torn"]["tiles"], lines["torn"]["damaged"]) == (20, 1)
    expected = map_of(tmp_path / "out" / "whole" / "zones.tif").copy()
    expected[64:128, 128:192] = 0
    np.testing.assert_array_equal(map_of(tmp_path / "out" / "torn" / "zones.tif"), expected)
    assert len(lines_of(tmp_path / "out" / "torn" / "tiles.jsonl")) == 19


def test_the_next_slide_is_decoded_while_this_one_runs(tmp_path, slide):
    decoded = threading.Event()

    class Waits(PixelModel):
        def forward(self, batch):
            if batch.ids[0].startswith("first"):
                assert decoded.wait(60), "the second slide is not being read"
            return super().forward(batch)

    def read(folder):
        loader = read_tiles(folder)
        if folder.tiles[0].id.startswith("second"):
            read_next = loader._pipeline.next
            loader._pipeline.next = lambda: (read_next(), decoded.set())[0]
        return loader

    assert predict({"first": slide, "second": slide}, tmp_path / "out", Waits(), read=read).new == 2


def test_probabilities_and_overlays(tmp_path, slide):
    options = MapOptions(min_area=40.0, probabilities=True)
    assert predict({"slide": slide}, tmp_path / "out", overlap=9, options=options).new == 1
    folder = tmp_path / "out" / "slide"
    (line,) = lines_of(tmp_path / "out" / "predictions.jsonl")
    assert line["zones"]["probabilities"] == "slide/zones.ome.tif"
    with tifffile.TiffFile(folder / "zones.ome.tif") as file:
        assert file.is_ome
        assert file.is_bigtiff
        (series,) = file.series
        assert (series.axes, series.shape) == ("CYX", (3, 211, 301))
        assert [level.shape for level in series.levels] == [(3, 211, 301), (3, 106, 151)]
        shares, half = series.asarray().astype(int), series.levels[1].asarray()
        for name in ("dark", "middle", "red", 'PhysicalSizeX="0.5"'):
            assert name in file.ome_metadata
    np.testing.assert_array_equal(half, shares[:, ::2, ::2])
    assert abs(shares.sum(0) - 255).max() <= 2, "a softmax, in 255ths"
    zones = map_of(folder / "zones.tif")
    ordered = np.sort(shares, 0)
    sure = ordered[-1] > ordered[-2]
    np.testing.assert_array_equal(shares.argmax(0)[sure], zones[sure])
    assert tifffile.imread(folder / "gland.ome.tif").shape == (211, 301)
    with Image.open(folder / "gland.png") as overlay:
        pixels = np.asarray(overlay).astype(int)
    with data.open_slide(slide) as source:
        plain = source.read_region(0, 0, 301, 211).astype(int)
    inside = map_of(folder / "gland.tif") > 0
    np.testing.assert_array_equal(pixels[~inside], plain[~inside])
    expected = (0.6 * plain + 0.4 * np.array([230, 159, 0])).astype(int)
    np.testing.assert_array_equal(pixels[inside], expected[inside])
    assert (folder / "layers" / "dark.png").is_file()
    areas = [_area(one) for one in json.loads((folder / "gland.geojson").read_text())["features"]]
    assert min(areas) >= 40 / 0.25, "square micrometres at 0.5"


def _area(feature):
    x, y = np.array(feature["geometry"]["coordinates"][0]).T
    return abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


def test_a_slide_that_is_interrupted_leaves_nothing(tmp_path, slide):
    class Stops(PixelModel):
        def forward(self, batch):
            if "second@0_0" not in batch.ids and batch.ids[0].startswith("second"):
                raise KeyboardInterrupt
            return super().forward(batch)

    slides, out = {"first": slide, "second": slide}, tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict(slides, out, Stops())
    assert {path.name for path in out.iterdir()} == {"first", "predictions.jsonl"}
    (out / ".second.part").mkdir()  # as a machine that lost its power leaves it
    (out / ".second.part" / "summary.json").write_text("{")
    assert predict(slides, out) == ("slides", 1, 1, 0)
    assert {path.name for path in out.iterdir()} == {"first", "second", "predictions.jsonl"}
    assert (out / "second" / "gland.tif").read_bytes() == (out / "first" / "gland.tif").read_bytes()


def test_a_blank_slide_has_blank_maps(tmp_path):
    glass = write_tiff(tmp_path / "glass.tif", np.full((211, 301, 3), 240, np.uint8), compression="deflate")
    assert predict({"glass": glass}, tmp_path / "out", min_tissue=0.5).new == 1
    (line,) = lines_of(tmp_path / "out" / "predictions.jsonl")
    assert (line["tiles"], line["gland"]["foreground"]) == (0, 0)
    assert "grade" not in line
    whole = map_of(tmp_path / "out" / "glass" / "gland.tif")
    assert whole.shape == (211, 301)
    assert not whole.any()
