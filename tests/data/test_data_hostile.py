"""What damaged, moving and odd files come to: a line that names the file, a note or a quarantine row; never zeros, and
never a wait without end."""

import os
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fastmtl import data
from fastmtl.cli import main
from fastmtl.data import GridOptions, ManifestOptions
from fastmtl.data.synthetic.tiles import write_pyramid
from fastmtl.training.run_dir import RunFolder, read_lines

GRID = ManifestOptions(grid=GridOptions(tile_size=64))


@pytest.fixture
def folder(tmp_path):
    """A slide of 256 x 256 pixels, all tissue; one of glass; an image."""
    noise = np.random.default_rng(0).integers(0, 60, (256, 256, 3))
    pixels = (noise + np.array([160, 70, 130])).astype(np.uint8)
    write_pyramid(tmp_path / "slide.tiff", pixels)
    write_pyramid(tmp_path / "glass.tiff", np.full((256, 256, 3), 240, np.uint8))
    Image.fromarray(pixels[:64, :64]).save(tmp_path / "tile.png")
    return tmp_path


def manifest(folder, text):
    (folder / "manifest.csv").write_text(text, newline="")
    return data.read_manifest(folder / "manifest.csv", GRID)


def loader(tiles, **options):
    return data.TileLoader(tiles, targets={"group": "none"}, size=32, batch_size=4, **options)


def test_a_mask_of_a_whole_slide_is_cut_as_the_slide_is(folder):
    mask = np.zeros((128, 128), np.uint8)  # at half the slide's resolution
    mask[:32, :32] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    tiles = manifest(folder, "slide,mask\nslide.tiff,mask.png\n").tiles
    shares = [data.open_picture(tile.mask).mean() / 255 for tile in tiles if tile.mask is not None]
    assert sorted(shares) == [0] * 15 + [1]
    for cell, words in (("rle:256x256:1 3", "cannot be cut"), ("none.png", "does not exist")):
        with pytest.raises(ValueError, match=words):
            manifest(folder, f"slide,mask\nslide.tiff,{cell}\n")


def test_a_broken_slide_is_one_of_the_damaged_and_a_blank_one_a_note(folder):
    (folder / "broken.svs").write_text("no slide")
    dataset = manifest(folder, "slide,label\nslide.tiff,a\nbroken.svs,b\nglass.tiff,b\n")
    assert [str(problem.path.name) for problem in dataset.problems] == ["glass.tiff"]
    assert [problem.path.name for problem in data.check_tiles(dataset.tiles)] == ["broken.svs"]
    kept, _ = data.usable_tiles(dataset, "skip", max_damaged=0.1)
    assert len(kept) == 16
    with pytest.raises(ValueError, match=r"glass\.tiff gives no tile"):
        manifest(folder, "slide\nglass.tiff\n")


def test_a_truncated_slide_is_one_of_the_damaged(folder):
    whole = (folder / "slide.tiff").read_bytes()
    (folder / "slide.tiff").write_bytes(whole[: len(whole) // 3])
    region = data.Region(folder / "slide.tiff", 0, 0, 256, 256)
    (problem,) = data.check_tiles([data.Tile("a", region, None, None, "p")])
    assert "truncated" in problem.reason
    (problem,) = data.check_tiles(manifest(folder, "slide\nslide.tiff\n").tiles)
    assert problem.path == folder / "slide.tiff"
    assert "truncated" in problem.reason


def test_a_slide_that_changes_while_it_is_open_is_not_read_on(folder):
    with data.open_slide(folder / "slide.tiff") as slide:
        slide.read_region(0, 0, 8, 8)
        os.utime(folder / "slide.tiff", ns=(0, 0))
        with pytest.raises(data.SlideError, match="changed since it was opened"):
            slide.read_region(0, 0, 8, 8)


def test_training_sets_partly_zeroed_files_aside(folder):
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    whole, zeroed = [], []
    for ending, options in (("jpeg", {"quality": 95}), ("tiff", {"compression": "tiff_lzw"})):
        encoded = BytesIO()
        Image.fromarray(pixels).save(encoded, ending, **options)
        damaged = bytearray(encoded.getvalue())
        damaged[len(damaged) // 2 : len(damaged) // 2 + 1000] = bytes(1000)
        whole.append(folder / f"whole.{ending}")
        zeroed.append(folder / f"zeroed.{ending}")
        whole[-1].write_bytes(encoded.getvalue())
        zeroed[-1].write_bytes(damaged)
    reading = loader([data.Tile(path.name, path, None, None, "p") for path in whole + zeroed], max_damaged=0.5)
    (batch,) = list(reading)
    reading.close()
    assert batch.ids == [path.name for path in whole]
    assert [entry["file"] for entry in reading.quarantine] == list(map(str, zeroed))


def test_pipes_and_deep_or_long_text_do_not_hang_or_crash(folder):
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.geojson")
    (problem,) = data.check_tiles([data.Tile("a", folder / "pipe.png", None, None, "p")])
    assert problem.reason == "is not a file"
    with pytest.raises(data.SlideError, match="not a file"):
        data.open_slide(folder / "pipe.png")
    with pytest.raises(ValueError, match="is not a file"):
        data.polygon_classes(folder / "pipe.geojson")
    (folder / "deep.geojson").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not GeoJSON"):
        data.polygon_classes(folder / "deep.geojson")
    code = "rle:64x64:" + "1 1 " * 40_000  # longer than Python's own limit for a cell
    assert manifest(folder, f"image,mask\ntile.png,{code}\n").tiles[0].mask is not None


def test_a_slide_is_no_tile(folder):
    (problem,) = data.check_tiles([data.Tile("a", folder / "slide.tiff", None, None, "p")])
    assert problem.reason.startswith("holds 3 pictures")


def test_words_for_missing_cells_are_noticed(folder):
    Image.open(folder / "tile.png").save(folder / "other.png")
    Image.open(folder / "tile.png").save(folder / "third.png")
    rows = "image,label,age\ntile.png,NaN,nan\nother.png,a,3\nthird.png,a,4\n"
    reasons = " ".join(problem.reason for problem in manifest(folder, rows).problems)
    assert "'nan' (line 2) is no number" in reasons
    assert "has a class 'NaN'" in reasons


def test_masks_may_take_the_nearest_pixel(folder):
    mask = np.zeros((8, 8), np.uint8)
    mask[:, ::2] = 200
    Image.fromarray(mask).save(folder / "mask.png")
    tile = data.Tile("a", folder / "tile.png", folder / "mask.png", None, "p")
    found = {}
    for way in ("nearest", "bilinear"):
        reading = data.TileLoader(
            [tile], targets={"mask": "mask"}, size=32, batch_size=1, mask_sampling=way, mask_threshold=190
        )
        found[way] = next(iter(reading)).targets["mask"][0, 0]
        reading.close()
    expected = np.repeat(np.repeat(mask > 190, 4, 0), 4, 1)
    assert (found["nearest"].numpy() == expected).all()
    assert found["bilinear"].sum() < found["nearest"].sum()
    with pytest.raises(ValueError, match="mask_sampling"):
        loader([tile], mask_sampling="cubic")


def test_indexes_in_another_folder_are_found_again(folder, tmp_path, capsys, monkeypatch):
    (folder / "slides").mkdir()
    (folder / "slide.tiff").rename(folder / "slides" / "slide.tiff")
    out = folder / "made" / "manifest.csv"
    assert main(["prepare", str(folder / "slides"), "--out", str(out), "--index-folder", str(folder / "index")]) == 0
    said = "".join(capsys.readouterr().out.split())
    assert f"data.root={folder}" in said
    assert f"data.index_folder={folder / 'index'}" in said
    monkeypatch.setattr("fastmtl.data.slides.index._folder", None)
    monkeypatch.setattr("fastmtl.data.slides.slide.scan", lambda *_: pytest.fail("the index was not used"))
    monkeypatch.setattr("fastmtl.data.slides.slide.find_tissue", lambda *_: pytest.fail("the index was not used"))
    sets = [f"data.root={folder}", f"data.index_folder={folder / 'index'}", "data.tile_size=64"]
    assert main(["data", "check", str(out), *[word for one in sets for word in ("--set", one)]]) == 0
    assert not (folder / "slides" / ".fastmtl").exists()


def test_a_run_folder_lists_what_was_damaged(folder):
    run = RunFolder(folder)
    assert run.write_quarantine([]) is None
    assert run.write_quarantine([{"tile": "a"}, {"tile": "b"}], rank=1) == folder / "quarantine-1.jsonl"
    assert read_lines(folder / "quarantine-1.jsonl") == ([{"tile": "a"}, {"tile": "b"}], [])
