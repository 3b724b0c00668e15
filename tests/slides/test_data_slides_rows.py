"""From slides to a data set: generated slides, rows of a manifest, `fastmtl prepare` and `fastmtl data check`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.tiles import random_pixels, shared_data, write_folder, write_image

from fastmtl import data
from fastmtl.cli import main
from fastmtl.data import GridOptions, ManifestOptions, Region, read_manifest

GRID = ManifestOptions(grid=GridOptions(tile_size=128, mpp=2.0, min_tissue=0.5))


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Three patients with a slide each."""
    return data.generate_slides(tmp_path_factory.mktemp("made") / "slides", num_patients=3, slide_size=512)


@pytest.fixture
def copied(slides: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(slides, tmp_path / "slides"))


def _rows(folder: Path, *rows: str) -> Path:
    (folder / "rows.csv").write_text("\n".join(rows) + "\n")
    return folder / "rows.csv"


@pytest.mark.long
def test_generated_slides_are_the_same_again(slides: Path, tmp_path: Path):
    again = data.generate_slides(tmp_path / "again", num_patients=3, slide_size=512)
    for path in sorted(path for path in slides.rglob("*") if path.is_file() and ".fastmtl" not in path.parts):
        assert path.read_bytes() == (again / path.relative_to(slides)).read_bytes(), path
    stamp = (again / "slides" / "P001-1.tiff").stat().st_mtime_ns
    data.generate_slides(again, num_patients=3, slide_size=512)
    assert (again / "slides" / "P001-1.tiff").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="slide_size"):
        data.generate_slides(again, slide_size=100)


def test_whole_slides_become_tiles_with_polygons(slides: Path):
    dataset = data.read_dataset(slides, options=GRID)
    assert dataset.class_names == ("Adenocarcinoma", "Normal", "Polyp")
    assert dataset.groups == ("P001", "P002", "P003")
    assert dataset.problems == ()
    one = dataset.tiles[5]
    assert isinstance(one.image, Region)
    assert one.values["case"] == "P001-1"
    assert 0 < one.values["cellularity"] < 1
    # Haematoxylin takes red away, and glands have more of it: image and mask show the same place.
    whole = data.open_slide(one.image.slide).read_region(0, 0, 512, 512, 0)
    image = data.open_picture(one.image)
    at = one.image
    np.testing.assert_array_equal(image, whole[at.y : at.y + 128, at.x : at.x + 128])
    full = data.Polygons(one.mask.file, 0, 0, 512, 512).draw()
    np.testing.assert_array_equal(one.mask.draw(), full[at.y : at.y + 128, at.x : at.x + 128])
    gland = full[at.y : at.y + 128, at.x : at.x + 128] > 0
    assert image[gland, 0].mean() < image[~gland, 0].mean() - 5
    assert data.check_tiles(dataset.tiles) == []


def test_tiles_of_slides_round_trip(copied: Path):
    dataset = data.read_dataset(copied, options=GRID)
    data.write_manifest(dataset, copied / "tiles.parquet")
    assert read_manifest(copied / "tiles.parquet").tiles == dataset.tiles


def test_regions_by_level_and_by_mpp(copied: Path):
    head = "slide,x,y,width,height,level,mpp"
    dataset = read_manifest(
        _rows(copied, head, *(f"slides/P001-1.tiff,{x},64,100,50,{how}" for x, how in ((0, ","), (1, "1,"), (2, ",4"))))
    )
    assert [tile.image for tile in dataset.tiles] == [
        Region(copied / "slides" / "P001-1.tiff", x, 64, 100, 50, level) for x, level in ((0, 0), (1, 1), (2, 1))
    ]
    finer = read_manifest(_rows(copied, head, "slides/P001-1.tiff,0,0,100,50,,3"))
    assert finer.tiles[0].image == Region(copied / "slides" / "P001-1.tiff", 0, 0, 150, 75, 0)
    for cells, says in (
        ("slides/P001-1.tiff,0,0,100,,,", "height is empty"),
        ("slides/P001-1.tiff,0,0,1e2x,50,,", "width must be a whole number"),
        ("slides/P001-1.tiff,0,0,0,50,,", "above 0"),
        ("slides/P001-1.tiff,0,0,100,50,7,", "levels 0 to 2; got level 7"),
        ("slides/P001-1.tiff,0,0,100,50,1,2", "not both"),
        ("slides/P001-1.tiff,0,0,100,50,,-2", "mpp must be a number above 0"),
        ("slides/P001-1.tiff,0,0,100,50,,0.1", "finer than"),
        ("slides/none.tiff,0,0,100,50,1,", "none.tiff does not exist"),
    ):
        with pytest.raises(ValueError, match=f"line 2: .*{says}"):
            read_manifest(_rows(copied, head, cells))
    outside = read_manifest(_rows(copied, head, "slides/P001-1.tiff,600,0,100,50,,"))
    assert "is outside it" in data.check_tiles(outside.tiles)[0].reason


def test_a_mask_slide_covers_the_same_place(copied: Path):
    import tifffile

    full = data.Polygons(copied / "polygons" / "P001-1.geojson", 0, 0, 512, 512).draw()
    tifffile.imwrite(copied / "mask.tif", full[::2, ::2], tile=(64, 64), compression="deflate")
    path = _rows(copied, "slide,x,y,width,height,mask", "slides/P001-1.tiff,128,64,200,100,mask.tif")
    (tile,) = read_manifest(path).tiles
    assert tile.mask == Region(copied / "mask.tif", 64, 32, 100, 50, 0)
    np.testing.assert_array_equal(data.open_picture(tile.mask)[..., 0], full[64:164:2, 128:328:2])
    tifffile.imwrite(copied / "mask.tif", full[:128], tile=(64, 64))
    with pytest.raises(ValueError, match="do not cover the same extent"):
        read_manifest(path)


def test_polygons_off_their_slide_are_told(copied: Path):
    path = copied / "polygons" / "P001-1.geojson"
    square = {"type": "Polygon", "coordinates": [[[500, 9], [600, 9], [600, 50], [500, 50], [500, 9]]]}
    path.write_text(json.dumps(square))
    notices = [notice for notice in read_manifest(copied / "manifest.csv", GRID).problems if notice.path == path]
    assert "1 of 1 polygons reach beyond P001-1.tiff (512x512)" in notices[0].reason
    square["coordinates"][0] = [[x + 400, y] for x, y in square["coordinates"][0]]
    path.write_text(json.dumps(square))
    with pytest.raises(ValueError, match="all 1 polygons are outside"):
        read_manifest(copied / "manifest.csv", GRID)


def test_prepare_pairs_masks_and_reports_damage(tmp_path: Path, slides: Path, capsys):
    folder = tmp_path / "own"
    for number in range(3):
        write_image(folder / "images" / f"p{number}-a.png", random_pixels(number))
    write_image(folder / "masks" / "p0-a.png", random_pixels(9)[..., 0])
    write_image(folder / "masks" / "p1-a_mask.png", random_pixels(9)[:10, :, 0])
    shutil.copy(slides / "slides" / "P001-1.tiff", folder)
    shutil.copy(slides / "polygons" / "P001-1.geojson", folder)
    (folder / "broken.svs").write_bytes(b"not a slide")
    (folder / "notes.txt").write_text("hello")
    assert main(["prepare", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    kinds = {Path(file["path"]).name: file["kind"] for file in found["files"]}
    wanted = {"p0-a.png": "tile", "p1-a.png": None, "p2-a.png": "tile", "P001-1.tiff": "slide", "broken.svs": None}
    assert kinds == wanted
    assert found["passed_over"] == {".txt": 1}
    dataset = read_manifest(folder / "manifest.csv", GRID)
    assert dataset.groups == ("P0", "P001", "P2")
    assert isinstance(next(tile for tile in dataset.tiles if tile.group == "P001").mask, data.Polygons)
    assert next(tile for tile in dataset.tiles if tile.group == "P0").mask == folder / "masks" / "p0-a.png"
    assert (folder / ".fastmtl").is_dir(), "the slide has an index"
    assert main(["prepare", str(folder)]) == 1
    assert "manifest.csv was there and is unchanged; the folder has 2 tiles, 1 slide" in capsys.readouterr().out


def test_prepare_and_check_a_tile_folder(tmp_path: Path, capsys):
    write_folder(tmp_path / "data", {"A": 3, "B": 2})
    assert main(["prepare", str(tmp_path / "data")]) == 0
    assert "5 tiles, 0 slides" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "data" / "manifest.csv"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["columns"]["label"]["classes"] == {"A": 3, "B": 2}
    assert (found["num_tiles"], found["num_patients"], found["sizes"]) == (5, 3, {"24x24": 5})
    damaged = tmp_path / "data" / "A" / "image" / "GT0000-1-400-000.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert main(["data", "check", str(tmp_path / "data")]) == 1
    assert "GT0000-1-400-000.png" in capsys.readouterr().out.replace("\n", "")
    assert main(["data", "chekc"]) == 2


def test_check_counts_slides_and_finds_broken_regions(copied: Path, capsys):
    sets = ["--set", "data.tile_size=128", "--set", "data.mpp=2.0"]
    assert main(["data", "check", str(copied), "--json", *sets]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_slides"], found["num_patients"]) == (3, 3)
    data.write_manifest(data.read_dataset(copied, options=GRID), copied / "tiles.csv")
    slide = copied / "slides" / "P002-1.tiff"
    content = bytearray(slide.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 4000] = bytes(4000)
    slide.write_bytes(content)
    assert main(["data", "check", str(copied / "tiles.csv"), "--json"]) == 1
    (broken,) = json.loads(capsys.readouterr().out)["broken"]
    assert broken["path"].endswith("P002-1.tiff")
    assert "cannot be decoded" in broken["reason"]


@pytest.mark.long
def test_the_real_slides_are_indexed_with_what_is_odd(tmp_path: Path):
    folder = Path(shutil.copytree(shared_data("wsi"), tmp_path / "wsi"))
    prepared = data.prepare(folder)
    found = {one.path.name: one for one in prepared.found}
    for name in ("svs", "jpeg.tiff", "jp2.tiff", "webp.tiff"):
        one = found[f"CMU-1-Small-Region.{name}"]
        assert (one.kind, one.size) == ("slide", (2220, 2967))
        assert not any("not indexed" in problem for problem in one.problems)
    assert found["CMU-1-Small-Region.svs"].mpp == pytest.approx(0.499)
    false = found["CMU-1-Small-Region.jpeg.tiff"]
    assert false.mpp is None
    assert "0.00499" in " ".join(false.problems)
    assert found["XYC.png"].kind == "tile"
    assert len(list((folder / ".fastmtl").iterdir())) >= 4
    assert len(read_manifest(prepared.manifest, ManifestOptions(grid=GridOptions(min_tissue=0.0))).tiles) > 100


def test_a_slide_of_two_patients_is_told(copied: Path):
    slides = copied / "slides"
    shutil.copy(slides / "P001-1.tiff", slides / "P004-1.tiff")
    path = _rows(copied, "slide,patient", *(f"slides/P00{number}-1.tiff,p{number}" for number in (1, 2, 3, 4)))
    dataset = read_manifest(path, GRID)
    (notice,) = data.duplicate_notices(dataset, leaks_alone=True)
    assert "1 slide under several names, 1 of them in two patients, so a split can leak: " in notice.reason
    assert notice.reason.endswith(f"P001-1.tiff of p1 and {slides}/P004-1.tiff of p4")
    one = read_manifest(_rows(copied, "slide,patient", *(f"slides/P00{number}-1.tiff,p" for number in (1, 4))), GRID)
    assert data.duplicate_notices(one, leaks_alone=True) == []
    assert "1 slide under several names: " in data.duplicate_notices(one)[0].reason


def test_slides_that_differ_in_one_place_are_two(copied: Path):
    slides = copied / "slides"
    same, other = slides / "P001-1.tiff", slides / "P004-1.tiff"
    same.write_bytes(same.read_bytes() + bytes(2**21))
    content = bytearray(same.read_bytes())
    content[len(content) * 48 // 64] = 1
    other.write_bytes(content)
    rows = _rows(copied, "slide,patient", "slides/P001-1.tiff,p1", "slides/P004-1.tiff,p4")
    assert data.duplicate_notices(read_manifest(rows, GRID)) == []
