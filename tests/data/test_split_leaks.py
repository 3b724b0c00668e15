"""The same image, or nearly the same, on two sides of a split; and what each side holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.geojson import feature, ring
from helpers.slides import tissue_like
from helpers.tiles import shared_data, write_image
from PIL import Image

from fastmtl import data
from fastmtl.builders.datasets import read_splits
from fastmtl.cli import main
from fastmtl.config import load_recipe
from fastmtl.data.checks import near_duplicates
from fastmtl.data.checks.duplicates import find_duplicates
from fastmtl.data.checks.near_duplicates import near_duplicate_notices


def _recipe(**options):
    return load_recipe("demo", {"data": options})


def _manifest(root: Path, rows: list[tuple[str, str, str]]) -> Path:
    """Of (image, patient, side); images that do not exist yet are written, all different."""
    for number, (name, _, _) in enumerate(rows):
        if not (root / name).exists():
            write_image(root / name, tissue_like(64, 64, seed=number))
    lines = [f"{name},{patient},{side},{'ab'[number % 2]}" for number, (name, patient, side) in enumerate(rows)]
    (root / "manifest.csv").write_text("\n".join(["image,patient,split,label", *lines]))
    return root / "manifest.csv"


ROWS = [("0.png", "p0", "train"), ("1.png", "p1", "train"), ("2.png", "p2", "val"), ("3.png", "p3", "val")]


def test_a_copy_on_the_other_side_is_refused_with_both_names(tmp_path: Path):
    path = _manifest(tmp_path, [*ROWS, ("4.png", "p4", "val")])
    shutil.copy(tmp_path / "0.png", tmp_path / "4.png")
    with pytest.raises(ValueError, match=r"an image or slide is the same on two sides of the split") as caught:
        read_splits(_recipe(), path)
    assert str(caught.value) == (
        f"{path}: an image or slide is the same on two sides of the split: 0 (p0, training) and 4 (p4, validation). "
        "Scores would be too high: remove the copies, give them the same patient, or accept them with "
        'data.on_duplicates = "keep".'
    )
    reasons = [problem.reason for problem in read_splits(_recipe(on_duplicates="keep"), path).problems]
    assert any(
        reason.startswith("an image or slide is the same on two sides of the split: 0 (p0") for reason in reasons
    )


def test_copies_on_one_side_are_a_notice(tmp_path: Path):
    path = _manifest(tmp_path, [*ROWS, ("4.png", "p4", "train")])
    shutil.copy(tmp_path / "0.png", tmp_path / "4.png")
    (notice,) = [p.reason for p in read_splits(_recipe(), path).problems if "appear" in p.reason]
    assert notice.startswith("1 picture appears more than once, in 2 tiles, 1 of them in two patients")


def test_copies_are_found_on_every_pair_of_sides_and_counted(tmp_path: Path):
    more = [(f"{n}.png", f"p{n}", "test" if n % 2 else "val") for n in range(4, 10)]
    path = _manifest(tmp_path, [*ROWS, *more])
    for number in range(4, 10, 2):
        shutil.copy(tmp_path / f"{number}.png", tmp_path / f"{number + 1}.png")
    shutil.copy(tmp_path / "0.png", tmp_path / "3.png")
    with pytest.raises(
        ValueError, match=r"4 images or slides are .*: 0 \(p0, training\) and 3 .*; and 1 more"
    ) as caught:
        read_splits(_recipe(), path)
    assert "4 (p4, validation) and 5 (p5, the test)" in str(caught.value)


def test_equal_images_that_show_nothing_are_no_copies(tmp_path: Path):
    """As the empty slices of scans."""
    path = _manifest(tmp_path, ROWS)
    for name in ("0.png", "3.png"):
        write_image(tmp_path / name, np.zeros((64, 64, 3), np.uint8))
    assert len(read_splits(_recipe(), path).validation) == 2


def test_stretched_grey_files_are_compared_by_their_file(tmp_path: Path):
    rows = [(name, f"p{n}", side) for n, (name, _, side) in enumerate(ROWS)]
    for number in range(3):
        Image.fromarray((np.random.default_rng(number).uniform(size=(32, 32)) * 60000).astype(np.uint16)).save(
            tmp_path / f"{number}.png"
        )
    shutil.copy(tmp_path / "0.png", tmp_path / "3.png")
    with pytest.raises(ValueError, match=r"0 \(p0, training\) and 3 \(p3, validation\)"):
        read_splits(_recipe(preprocessing="min_max"), _manifest(tmp_path, rows))


def test_a_slide_under_two_names_on_two_sides(tmp_path: Path):
    folder = data.generate_slides(tmp_path / "slides", num_patients=3)
    first, second = sorted(folder.rglob("*.tiff"))[:2]
    shutil.copy(first, copy := first.with_name("copy.tiff"))
    rows = [
        f"{path.relative_to(folder)},{name},{side}"
        for path, name, side in ((first, "p0", "train"), (second, "p1", "train"), (copy, "p2", "val"))
    ]
    (folder / "manifest.csv").write_text("\n".join(["slide,patient,split", *rows]))
    recipe = _recipe(tile_size=64, min_tissue=0.1)
    with pytest.raises(ValueError, match="an image or slide is the same") as caught:
        read_splits(recipe, folder / "manifest.csv")
    assert f"slide {first} (p0, training) and slide {copy} (p2, validation)" in str(caught.value)
    content = bytearray(copy.read_bytes())
    content[len(content) * 48 // 64 - 100] ^= 1  # between two of the places that are compared first
    copy.write_bytes(content)
    found = find_duplicates(data.read_dataset(folder / "manifest.csv"))
    assert (found.slides, found.edited) == ([], [[first, copy]])
    (notice,) = data.duplicate_notices(data.read_dataset(folder / "manifest.csv"), leaks_alone=True)
    assert "1 slide with a slightly different copy (equal at 64 places of the file, not everywhere)" in notice.reason


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_copied_store_is_found_as_a_copied_file_is(tmp_path: Path, version: str):
    zarr_slides = pytest.importorskip("helpers.zarr_slides")
    pixels = tissue_like(800, 600)
    for name, content in (("a", pixels), ("b", pixels), ("c", pixels), ("d", tissue_like(800, 600, seed=1))):
        path = zarr_slides.write_zarr(tmp_path / f"{name}.zarr", content, version=version)
        if name == "c":  # one pixel, between the places
            zarr_slides.zarr.open_array(str(path / "0"), mode="r+")[0, 0, 0, 0, 0] ^= 1
    sides = {"a": "train", "b": "val", "c": "train", "d": "train"}
    rows = [f"{name}.zarr,0,0,64,64,{name},{side}" for name, side in sides.items()]
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(["slide,x,y,width,height,patient,split", *rows]))
    found = find_duplicates(data.read_dataset(path))
    assert [[slide.name for slide in same] for same in found.slides] == [["a.zarr", "b.zarr"]]
    assert [[slide.name for slide in same] for same in found.edited] == [["a.zarr", "c.zarr"]]
    with pytest.raises(ValueError, match=r"slide .*/a.zarr \(a, training\) and slide .*/b.zarr \(b, validation\)"):
        read_splits(_recipe(), path)


def test_one_slide_of_two_patients_is_no_copy(tmp_path: Path):
    """As a tissue microarray: its regions are of several patients."""
    folder = data.generate_slides(tmp_path / "slides", num_patients=3)
    slide = min(folder.rglob("*.tiff"))
    name = slide.relative_to(folder)
    (folder / "manifest.csv").write_text(
        "\n".join(
            [
                "slide,x,y,width,height,patient,split",
                *(f"{name},{n * 64},0,64,64,p{n},{s}" for n, s in enumerate(("train", "val"))),
            ]
        )
    )
    assert read_splits(_recipe(), folder / "manifest.csv").validation.tiles


def test_images_that_look_alike_on_two_sides_are_told(tmp_path: Path):
    path = _manifest(tmp_path, [*ROWS, ("4.png", "p4", "val")])
    with Image.open(tmp_path / "0.png") as image:
        image.resize((48, 48)).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "4.png")
    (notice,) = [p.reason for p in read_splits(_recipe(), path).problems if "look like" in p.reason]
    assert notice == (
        "2 tiles look like one of another side of the split (saved again, resized or turned?): if they are the same, "
        "scores are too high; first 0 of p0 (training) and 4 of p4 (validation)"
    )


def test_tiles_of_one_side_are_not_compared(tmp_path: Path):
    path = _manifest(tmp_path, [*ROWS, ("4.png", "p4", "train")])
    with Image.open(tmp_path / "0.png") as image:
        image.resize((48, 48)).save(tmp_path / "4.png")
    assert not [p for p in read_splits(_recipe(), path).problems if "look like" in p.reason]


def test_of_many_tiles_some_are_compared_and_that_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST_COMPARED", 6)
    path = _manifest(tmp_path, [*((f"{n}.png", f"p{n}", "train") for n in range(10)), ("v.png", "v", "val")])
    folder = data.read_dataset(path)
    tiles = near_duplicates._drawn(folder.tiles, {tile.id: str(tile.values["split"]) for tile in folder.tiles}, 6)
    assert len(tiles) == 6
    assert tiles[-1].id == "v"  # the small side is compared in full
    with Image.open(tmp_path / f"{tiles[0].id}.png") as image:
        image.resize((48, 48)).save(tmp_path / "v.png")
    sides = {tile.id: str(tile.values["split"]) for tile in folder.tiles}
    (notice,) = near_duplicate_notices(folder, sides=sides)
    assert notice.reason.startswith("2 tiles (of 6 that were compared; the data have 11) look like one of another side")


def _colon_like(seed: int, size: int = 96) -> np.ndarray:
    """Glands on stroma in one stain, as EBHI-Seg has them: the same colours and textures in every tile."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size, 3), (225, 190, 215), float)
    for _ in range(rng.integers(4, 9)):
        cy, cx, ry, rx = *rng.uniform(0, size, 2), *rng.uniform(8, 24, 2)
        distance = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
        image[distance < 1] = (150, 90, 160)
        image[distance < 0.4] = (240, 235, 240)
    return (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)


def test_false_alarms_are_rare_on_tiles_of_glands(tmp_path: Path):
    rows = []
    for number in range(300):
        write_image(tmp_path / f"{number}.png", _colon_like(number))
        rows.append((f"{number}.png", f"p{number}", "val" if number % 4 == 0 else "train"))
    folder = data.read_dataset(_manifest(tmp_path, rows))
    assert near_duplicate_notices(folder) == []


def test_no_false_alarm_on_ebhi_seg():
    folder = data.read_dataset(shared_data("ebhi_seg"))
    split = data.split_by_groups(folder, data.load_groups(shared_data("ebhi_seg_reference_fold.json")))
    sides = {name: side for side, ids in split.sides.items() for name in ids}
    found = near_duplicate_notices(folder, sides=sides)
    assert found == []


def test_a_patient_in_two_columns_is_told(tmp_path: Path):
    rows = ["image,patient,subject_id,case,label"]
    for number in range(8):
        write_image(tmp_path / f"{number}.png", tissue_like(32, 32, seed=number))
        rows.append(f"{number}.png,p{number},S{number // 2},c{number % 2},{'ab'[number % 2]}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    (notice,) = [p.reason for p in data.patient_notices(data.read_dataset(tmp_path)) if "not read as" in p.reason]
    assert notice == (
        "column 'subject_id' is not read as patients, and tiles of 4 of its 4 values may be on two sides of a split; "
        "look at column patient"
    )


def _annotated(root: Path) -> Path:
    rows = ["image,mask,label,patient,split"]
    for number in range(6):
        write_image(root / f"{number}.png", tissue_like(64, 64, seed=number))
        classes = ["Tumor", "Stroma"] if number % 2 else ["Tumor"]
        shapes = [
            feature([ring(4, 4, 20 + 5 * n, 20)], classification={"name": name}) for n, name in enumerate(classes)
        ]
        drawn = {"type": "FeatureCollection", "features": shapes}
        (root / f"{number}.geojson").write_text(json.dumps(drawn))
        side = ("train", "train", "train", "train", "val", "val")[number]
        rows.append(f"{number}.png,{number}.geojson,{'ab'[number % 2]},p{number},{side}")
    (root / "manifest.csv").write_text("\n".join(rows))
    return root / "manifest.csv"


def test_check_counts_classes_and_polygons_of_each_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = _annotated(tmp_path)
    found = data.examine(data.read_dataset(path))["splits"]
    assert found["train"] == {
        "tiles": 4,
        "patients": 4,
        "sites": 0,
        "classes": {"label": {"a": 2, "b": 2}},
        "polygons": {"Tumor": 4, "Stroma": 2},
    }
    assert found["val"]["polygons"] == {"Tumor": 2, "Stroma": 1}
    main(["data", "check", str(path)])
    page = capsys.readouterr().out
    assert "polygons of class  train  val" in page


def test_check_with_a_recipe_counts_its_split_and_refuses_its_leaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [(f"{n}.png", f"p{n}", "") for n in range(8)]
    path = _manifest(tmp_path, rows)
    path.write_text(path.read_text().replace("split", "note"))
    for name in ("1.png", "2.png"):  # at least two folds of two images hold one of the three out
        shutil.copy(tmp_path / "0.png", tmp_path / name)
    recipe = tmp_path / "own.toml"
    recipe.write_text('extends = "demo"\n[data]\nfolds = 4\ngenerator = ""\n')
    found = {}
    for fold in range(4):
        main(["data", "check", str(path), "--recipe", str(recipe), "--set", f"data.fold={fold}", "--json"])
        found = json.loads(capsys.readouterr().out)
        if any("same on two sides" in line for line in found["refused"]):
            break
    else:
        pytest.fail(f"no fold is refused: {found['refused']}")
    assert {side: each["tiles"] for side, each in found["splits"].items()} == {"train": 6, "val": 2}
    assert sum(found["splits"]["train"]["classes"]["label"].values()) == 6
