"""`fastmtl data check`: what a careful colleague would say of some data before anything is trained on it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from _slides import tissue_like, write_tiff
from _tiles import random_pixels, write_folder, write_image

from fastmtl import data, data_page
from fastmtl.cli import main
from fastmtl.data import ManifestOptions, examine, read_dataset, read_manifest

SIDE = 64


def _write(folder: Path, head: str, rows: list[str], name: str = "manifest.csv") -> Path:
    (folder / name).write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return folder / name


def _masked(folder: Path, masks: list[np.ndarray], patients: list[str] | None = None) -> data.Dataset:
    """A manifest of images with these masks, by default two images a patient."""
    rows = []
    for number, mask in enumerate(masks):
        write_image(folder / f"{number}.png", random_pixels(number, SIDE))
        write_image(folder / f"{number}_m.png", mask)
        rows.append(f"{number}.png,{number}_m.png,{patients[number] if patients else f'P{number // 2}'}")
    return read_manifest(_write(folder, "image,mask,patient", rows))


def _mask(value: int, rows: int, rest: int = 0) -> np.ndarray:
    mask = np.full((SIDE, SIDE), rest, np.uint8)
    mask[:rows] = value
    return mask


def _reasons(found: dict) -> str:
    return "\n".join(notice["reason"] for notice in found["notices"])


def _page(found: dict) -> str:
    from rich.console import Console

    out = io.StringIO()
    data_page.show(found, Console(file=out, width=140, highlight=False, markup=False))
    return out.getvalue()


def _indices() -> np.ndarray:
    mask = _mask(1, 16)
    mask[16:32] = 2
    mask[32:40] = 255
    return mask


GREY = np.arange(SIDE * SIDE, dtype=np.int64).reshape(SIDE, SIDE) * 256 // SIDE**2
KINDS = {
    "0 and 255": (_mask(255, 16), "above 127", 0.25, "0, 255"),
    "0 and 1": (_mask(1, 16), "not 0", 0.25, "0, 1"),
    "class indices": (
        np.repeat(np.arange(4, dtype=np.uint8), 16)[:, None].repeat(SIDE, 1),
        "not 0",
        0.75,
        "0, 1, 2, 3",
    ),
    "class indices and 255 to leave out": (_indices(), "not 0", 32 / 56, "0, 1, 2, 255"),
    "resampled grey": (GREY.astype(np.uint8), "above 127", 0.5, "more than 8 values, up to 255"),
    "all foreground": (_mask(255, SIDE), "above 127", 1.0, "255"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_values_of_masks_and_their_foreground(tmp_path: Path, name: str):
    mask, foreground, share, kind = KINDS[name]
    found = examine(_masked(tmp_path, [mask] * 4))["masks"]["mask"]
    assert (found["masks"], found["foreground"], found["kinds"]) == (4, foreground, {kind: 4})
    assert found["share"] == pytest.approx(share)
    assert found["patients"] == {"P0": pytest.approx(share), "P1": pytest.approx(share)}
    assert {int(value) for value in found["values"]} == set(np.unique(mask).tolist())
    assert sum(value["share"] for value in found["values"].values()) == pytest.approx(1)
    assert found["full"] == 4 * (share == 1)


def test_masks_of_two_makers_are_told_apart(tmp_path: Path):
    found = examine(_masked(tmp_path, [_mask(1, 9), _mask(255, 9), _mask(255, 9), _mask(255, 9)]))
    assert "1 of 4 have pixels that are not 0 and none above 127 (first 0)" in _reasons(found)
    assert found["masks"]["mask"]["kinds"] == {"0, 255": 3, "0, 1": 1}
    assert "values of a mask" in _page(found)


def test_empty_and_nearly_empty_masks(tmp_path: Path):
    dot = _mask(0, 0)
    dot[0, :3] = 255
    found = examine(_masked(tmp_path, [_mask(255, 9), dot, _mask(0, 0), _mask(0, 0), _mask(255, 1), _mask(255, SIDE)]))
    masks = found["masks"]["mask"]
    assert (masks["empty"], masks["full"]) == (2, 1)
    assert masks["near_empty"] == {"1": pytest.approx(3 / SIDE**2)}
    assert "1 are nearly empty (below 0.1% of the pixels), first 1 with 0.00073" in _reasons(found)
    assert "1 of 3 patients have no foreground at all, P1 for example" in _reasons(found)
    assert "2 empty, 1 nearly, 1 full" in _page(found)


@pytest.mark.parametrize(("rows", "said"), [(0, "all are empty"), (SIDE, "all are full")])
def test_masks_that_say_nothing(tmp_path: Path, rows: int, said: str):
    assert said in _reasons(examine(_masked(tmp_path, [_mask(255, rows)] * 3)))


def test_masks_that_are_drawn_and_in_further_columns(tmp_path: Path):
    for number in range(2):
        write_image(tmp_path / f"{number}.png", random_pixels(number, 8))
    path = _write(tmp_path, "image,mask,other,patient", ["0.png,rle:8x8:1 16,rle:8x8:1 8,a", "1.png,rle:8x8:1 32,,b"])
    found = examine(read_manifest(path))["masks"]
    assert found["mask"]["patients"] == {"a": 0.25, "b": 0.5}
    assert found["other"]["patients"] == {"a": 0.125}


def test_a_mask_of_several_channels(tmp_path: Path):
    from fastmtl.data import Dataset, RunLengths, Tile
    from fastmtl.data.published.gi_tract import OrganMasks

    write_image(tmp_path / "a.png", random_pixels(0, 8))
    organs = OrganMasks((RunLengths("1 32", 8, 8), RunLengths("", 8, 8)))
    tile = Tile("a", tmp_path / "a.png", organs, None, "p")
    assert examine(Dataset(tmp_path, (), (tile,)))["masks"]["mask"]["share"] == 0.25


@pytest.mark.parametrize("column", ["patient", "group", "case"])
def test_patients_of_a_column(tmp_path: Path, column: str):
    for number in range(4):
        write_image(tmp_path / f"{number}-x.png", random_pixels(number, 8))
    dataset = read_manifest(_write(tmp_path, f"image,{column}", [f"{n}-x.png,p{n // 2}" for n in range(4)]))
    assert data.summary_lines(dataset)[0] == f"patients: 2, found by column {column}; 2 tiles each"
    assert data.patient_notices(dataset) == ()


def test_patients_of_file_names(tmp_path: Path):
    names = ["a-1.png", "a-2.png", "b-1.png", "lone.png"]
    for number, name in enumerate(names):
        write_image(tmp_path / name, random_pixels(number, 8))
    found = examine(read_manifest(_write(tmp_path, "image", names)))
    assert found["patients_found"] == {
        'file name (before the first "-")': {"patients": 2, "tiles": 3},
        "whole file name": {"patients": 1, "tiles": 1},
    }
    assert 'file name (before the first "-") (2), whole file name (1); 1 to 2 tiles each' in found["summary"][0]
    told = read_manifest(tmp_path / "manifest.csv", ManifestOptions(patient="(.)"))
    assert told.patients_from == "file name ((.))"


def test_patients_of_a_recipe_and_of_a_published_layout(tmp_path: Path):
    from test_data_published import WRITERS

    published = read_dataset(WRITERS["pets"](tmp_path / "pets"))
    assert published.patients_from == "the layout of pets"
    assert data.patient_notices(published) == ()
    folder = write_folder(tmp_path / "tiles", {"A": 4})
    assert folder.patients_from == 'file name (before the first "-")'
    assert data.with_groups(folder, "tile").patients_from == "group_by tile"


@pytest.mark.parametrize(
    ("names", "column", "said"),
    [
        ([f"{n}.png" for n in range(9)], "", "every tile is its own patient; if file names say more, set data.patient"),
        ([f"img-{n}.png" for n in range(9)], "", "patient 'IMG' has all 9 tiles"),
        ([f"img-{n}.png" for n in range(9)] + ["b-1.png"], "", "patient 'IMG' has 9 of the 10 tiles"),
        ([f"a-{n}.png" for n in range(9)], "x{n}", "every tile is its own patient; look at the column patient"),
        ([f"a-{n}.png" for n in range(9)], "x", "patient 'x' has all 9 tiles"),
        ([f"{n // 2}-{n}.png" for n in range(9)], "", ""),
        (["a-1.png", "a-2.png"], "", ""),
        (["a.png"], "", ""),
    ],
)
def test_a_rule_that_finds_the_wrong_patients_is_noticed(tmp_path: Path, names: list[str], column: str, said: str):
    rows = [f"{name},{column.format(n=n)}" if column else name for n, name in enumerate(names)]
    dataset = read_manifest(_write(tmp_path, "image,patient" if column else "image", rows))
    reasons = " ".join(notice.reason for notice in data.patient_notices(dataset))
    assert said in reasons
    assert bool(said) == bool(reasons)
    assert data.patient_notices(data.with_groups(dataset, "tile")) == ()


def test_classes_patients_and_columns_that_teach_nothing(tmp_path: Path):
    rows = [f"{n}.png,p{n // 2},{'rare' if n < 2 else 'ab'[n % 2]},only,{n / 2},7" for n in range(8)]
    for n in range(8):
        write_image(tmp_path / f"{n}.png", random_pixels(n, 8))
    found = examine(read_manifest(_write(tmp_path, "image,patient,label,organ,age,dose", rows)))
    assert found["columns"]["label"]["classes"] == {"a": 3, "b": 3, "rare": 2}
    assert found["columns"]["label"]["patients"] == {"a": 3, "b": 3, "rare": 1}
    assert found["columns"]["age"]["range"] == [0, 3.5]
    reasons = _reasons(found)
    assert "column 'label': only one patient has 'rare' (2 tiles)" in reasons
    assert "column 'organ' has only one class, 'only'" in reasons
    assert "column 'dose' holds 7 in every tile" in reasons
    page = _page(found)
    assert "a 3 (3 patients), b 3 (3 patients), rare 2 (1 patient)" in page
    assert "0 to 3.5" in page


def test_sizes_and_masks_of_another_size(tmp_path: Path, capsys):
    for number in range(7):
        write_image(tmp_path / f"{number}.png", random_pixels(number, 8 + number))
    write_image(tmp_path / "m.png", np.zeros((9, 9), np.uint8))
    _write(tmp_path, "image,mask", ["0.png,m.png", *(f"{n}.png," for n in range(1, 7))])
    assert main(["data", "check", str(tmp_path)]) == 1
    page = capsys.readouterr().out
    assert "sizes: 7 different, 8 to 14 wide, 8 to 14 high; most often 8x8 (1)" in page
    assert "the mask is 9x9 pixels, its image 8x8" in " ".join(page.split())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            ["a,0.png,p", "b,0.png,q", "c,1.png,r"],
            "1 picture appears more than once, in 2 tiles, 1 of them in two pat",
        ),
        (["a,0.png,p", "b,copy.png,q", "c,1.png,r"], "in two patients, so a split can leak: a of p and b of q"),
        (["a,0.png,p", "b,copy.png,p", "c,1.png,r"], "1 picture appears more than once, in 2 tiles: a and b"),
        (["a,0.png,p", "b,1.png,q", "c,2.png,r"], ""),
    ],
)
def test_pictures_that_are_there_twice(tmp_path: Path, rows: list[str], said: str):
    for number in range(3):
        write_image(tmp_path / f"{number}.png", random_pixels(number, 8))
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    reasons = _reasons(examine(read_manifest(_write(tmp_path, "id,image,patient", rows))))
    assert said in reasons
    assert bool(said) == ("more than once" in reasons)


def test_a_patient_on_two_sides_of_a_split_is_told(tmp_path: Path, capsys):
    for number in range(4):
        write_image(tmp_path / f"{number}.png", random_pixels(number, 8))
    _write(tmp_path, "image,patient,split", ["0.png,a,train", "1.png,b,train", "2.png,b,val", "3.png,c,val"])
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "column 'split': 1 patient(s) are in training and in validation: b" in capsys.readouterr().out


def _square(left: int, side: int, name: str) -> dict:
    right, low = left + side, side
    ring = [[left, 0], [right, 0], [right, low], [left, low], [left, 0]]
    return {
        "type": "Feature",
        "properties": {"classification": {"name": name}},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


@pytest.fixture(scope="module")
def made_slides(tmp_path_factory) -> Path:
    """Four slides of 128x128 with 0.5 micrometres per pixel, one with 0.25, one that does not say; two patients."""
    folder = tmp_path_factory.mktemp("slides")
    rows = []
    for number in range(6):
        options = {4: {"resolution": (40000, 40000)}, 5: {"resolution": (1, 1), "resolutionunit": "NONE"}}
        write_tiff(folder / f"s{number}.tiff", tissue_like(128, 128, number), levels=2, **options.get(number, {}))
        polygons = [_square(0, 32 + 32 * (number > 2), "Tumor"), _square(64, 32, ("tumor ", "Stroma")[number % 2])]
        content = {"type": "FeatureCollection", "features": polygons}
        (folder / f"s{number}.geojson").write_text(json.dumps(content))
        rows.append(f"s{number}.tiff,{f's{number}.geojson' if number else ''},P{number // 3}")
    _write(folder, "slide,mask,patient", rows)
    return folder


TILING = ["--set", "data.tile_size=64", "--set", "data.min_tissue=0"]


def _checked(folder: Path, capsys, *options: str) -> tuple[dict, int]:
    code = main(["data", "check", str(folder), "--json", *TILING, *options])
    return json.loads(capsys.readouterr().out), code


def test_slides_by_scale(made_slides: Path, capsys):
    found, code = _checked(made_slides, capsys)
    assert code == 0
    assert [slide["mpp"] for slide in found["slides"]] == [0.5, 0.5, 0.5, 0.5, 0.25, None]
    assert [slide["tile_width"] for slide in found["slides"]] == [32, 32, 32, 32, 16, None]
    assert {slide["vendor"] for slide in found["slides"]} == {"generic"}
    reasons = _reasons(found)
    assert "tiles of different width, in micrometres: 16 on 1, 32 on 4 slides" in reasons
    assert "micrometres per pixel are unknown, of 1 of the 6 slides" in reasons
    page = _page(found)
    assert "mpp: 0.5" in page
    assert (
        page.index("s5.tiff  128x128  unknown") < page.index("s4.tiff  128x128  0.25") < page.index("s1.tiff  128x128")
    )


def test_a_scale_that_the_manifest_tells(made_slides: Path, tmp_path: Path, capsys):
    folder = Path(shutil.copytree(made_slides, tmp_path / "slides"))
    _write(folder, "slide,mpp", [f"s{number}.tiff,{0.5 if number > 3 else ''}" for number in range(6)])
    found, _ = _checked(folder, capsys)
    assert [slide["mpp"] for slide in found["slides"]] == [0.5] * 6
    assert [slide["mpp_from"] for slide in found["slides"]] == ["resolution tags"] * 4 + ["manifest"] * 2
    assert found["slides"][5]["problems"] == []
    assert "of different width" not in _reasons(found)
    assert "unknown" not in _reasons(found)


def test_slides_brought_to_one_scale_are_in_peace(made_slides: Path, tmp_path: Path, capsys):
    folder = Path(shutil.copytree(made_slides, tmp_path / "slides"))
    lines = (folder / "manifest.csv").read_text().splitlines()
    (folder / "manifest.csv").write_text("\n".join(lines[:-1]) + "\n")
    found, _ = _checked(folder, capsys, "--set", "data.mpp=1.0", "--set", "data.tile_size=16")
    assert {slide["tile_width"] for slide in found["slides"]} == {16}
    assert "of different width" not in _reasons(found)


def test_foreground_by_slide_and_patient(made_slides: Path, capsys):
    masks = _checked(made_slides, capsys)[0]["masks"]["mask"]
    small, large = 2 * 32**2 / 128**2, (64**2 + 32**2) / 128**2
    by_slide = {Path(name).name: share for name, share in masks["slides"].items()}
    assert by_slide == pytest.approx(
        {"s1.tiff": small, "s2.tiff": small, **dict.fromkeys(("s3.tiff", "s4.tiff", "s5.tiff"), large)}
    )
    assert masks["patients"] == {"P0": pytest.approx(small), "P1": pytest.approx(large)}


def test_polygons_by_class(made_slides: Path, capsys):
    found, _ = _checked(made_slides, capsys)
    polygons = found["polygons"]
    assert polygons["classes"] == {
        "Tumor": {"polygons": 5, "files": 5},
        "Stroma": {"polygons": 3, "files": 3},
        "tumor": {"polygons": 2, "files": 2},
    }
    assert [Path(name).name for name in polygons["without"]] == ["s0.tiff"]
    assert "polygons: classes that differ only by spaces, case, dashes or Unicode form: 'Tumor' (5), 'tumor' (2)" in (
        _reasons(found)
    )
    assert "'tumor'" in _page(found)


def test_polygons_beside_the_classes_of_a_recipe(made_slides: Path, capsys):
    classes = 'data.polygon_classes=["none", "Tumor", "Stroma", "Necrosis"]'
    found, code = _checked(made_slides, capsys, "--set", classes)
    assert code == 1
    assert {Path(each["path"]).name for each in found["broken"]} == {"s2.geojson", "s4.geojson"}
    assert "data.polygon_classes lists 'Necrosis', but no polygon has that class" in _reasons(found)
    page = _page(found)
    assert "not in data.polygon_classes" in page
    assert "masks: 12 of 24, values 0, 1, 2" in page  # 1, 3 and 5; the masks of 2 and 4 cannot be drawn


def test_the_page_stays_short_for_thousands(made_slides: Path, capsys):
    found, _ = _checked(made_slides, capsys)
    slide, shares = found["slides"][0], {f"s{number}": number / 4000 for number in range(4000)}
    found["slides"] = [slide | {"path": f"/far/s{number}.svs", "problems": ["odd"]} for number in range(4000)]
    found["masks"]["mask"] |= {"slides": shares, "patients": shares, "near_empty": shares}
    found["polygons"]["without"] = list(shares)
    found["sizes"] = {f"{number}x{number}": 1 for number in range(1, 4000)}
    found["patients"] = dict.fromkeys(shares, 3)
    found["columns"]["label"] = {
        "kind": "label",
        "present": 9,
        "classes": dict.fromkeys(shares, 1),
        "patients": dict.fromkeys(shares, 1),
    }
    found["notices"] = [{"path": name, "reason": "is odd"} for name in shares]
    found["broken"] = [{"path": name, "reason": "is broken"} for name in shares]
    page = _page(found)
    assert len(page.splitlines()) < 160
    assert "s0 and 3999 others: is odd" in page
    assert "and 3980 more; --json lists all" in page
    assert "3999 different, 1 to 3999 wide" in page


def test_a_page_of_markup_and_odd_names(tmp_path: Path, capsys):
    write_folder(tmp_path / "[red]x", {"[bold]a": 2, "b": 1})
    assert main(["data", "check", str(tmp_path / "[red]x")]) == 0
    page = capsys.readouterr().out
    assert "[red]x: 3 tiles" in page.replace("\n", "")
    assert "[bold]a 2" in page


RECIPE = """
extends = "demo"
[data]
generator = ""
[tasks.other]
kind = "classification"
column = "organ"
"""


def test_a_recipe_learns_all_that_it_refuses_at_once(tmp_path: Path, capsys):
    folder = tmp_path / "data"
    dataset = _masked_and_labelled(folder)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE)
    assert main(["data", "check", str(folder), "--recipe", str(recipe), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["broken"] == []
    masks, column = found["refused"]
    assert "task 'segmentation'" in masks
    assert "127" in masks
    assert "task 'other'" in column
    assert main(["data", "check", str(folder), "--recipe", str(recipe)]) == 1
    assert capsys.readouterr().out.count("refused: ") == 2
    assert main(["train", str(recipe), "--data", str(folder), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert any(line in said for line in found["refused"]), "training says one of them, and stops"
    assert len(dataset) == 12


def _masked_and_labelled(folder: Path) -> data.Dataset:
    """Masks of 0 and 1, two classes, no column organ."""
    rows = []
    for n in range(12):
        write_image(folder / f"p{n // 2}-{n}.png", random_pixels(n, 32))
        write_image(folder / f"m{n}.png", np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 2)
        rows.append(f"p{n // 2}-{n}.png,m{n}.png,{'ab'[n % 2]}")
    return read_manifest(_write(folder, "image,mask,label", rows))


def test_a_recipe_that_fits_refuses_nothing(tmp_path: Path, capsys):
    pytest.importorskip("nvidia.dali", reason="the loader needs DALI")
    write_folder(tmp_path, {"A": 8, "B": 8}, size=32)
    assert main(["data", "check", str(tmp_path), "--recipe", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["data.folds=40"], "folds"),
        (["data.stratify=organ"], "stratify"),
        (["tasks.classification.column=organ"], "at least two classes, and the data have no classes in column 'organ'"),
        (["data.sampler=pairs"], "case"),
        (['data.metadata={film = ["age"]}'], "age"),
    ],
)
def test_what_training_refuses_is_refused(tmp_path: Path, capsys, options: list[str], said: str):
    pytest.importorskip("nvidia.dali", reason="the loader needs DALI")
    write_folder(tmp_path / "data", {"A": 8, "B": 8}, size=32)
    sets = [word for option in options for word in ("--set", option)]
    assert main(["data", "check", str(tmp_path / "data"), "--recipe", "demo", *sets]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("refused: ")]
    assert said in line
    train = ["train", "demo", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *sets]
    assert main(train) == 1
    assert line.removeprefix("refused: ").rstrip(".") in " ".join(capsys.readouterr().err.split())


def test_damaged_tiles_are_refused_as_the_recipe_says(tmp_path: Path, capsys):
    pytest.importorskip("nvidia.dali", reason="the loader needs DALI")
    folder = write_folder(tmp_path, {"A": 16, "B": 16}, size=32)
    Path(str(folder.tiles[3].image)).write_bytes(b"no image")
    for policy, refused in (("raise", ["1 of 32 tiles are damaged"]), ("skip", [])):
        options = ["--recipe", "demo", "--set", f"data.on_damaged={policy}", "--json"]
        assert main(["data", "check", str(tmp_path), *options]) == 1  # something is broken
        found = json.loads(capsys.readouterr().out)
        assert found["damaged_tiles"] == [folder.tiles[3].id]
        assert [line.split(";")[0] for line in found["refused"]] == refused


def test_training_says_it_in_two_lines(tmp_path: Path):
    from fastmtl.config import load_recipe
    from fastmtl.datasets import read_splits

    write_folder(tmp_path, {"A": 8, "a ": 8}, size=16)
    splits = read_splits(load_recipe("demo"), tmp_path)
    assert splits.summary == [
        'patients: 8, found by file name (before the first "-"); 2 tiles each',
        "label: A 8, a  8",
    ]
    assert any("differ only by spaces" in problem.reason for problem in splits.problems)


def test_classes_that_are_numbers_are_told_from_their_counts(tmp_path: Path, capsys):
    from fastmtl.data.patients import summary_lines

    write_folder(tmp_path, {"1": 3, "G2": 2, "high": 1}, size=16)
    assert summary_lines(data.read_tile_folder(tmp_path))[1] == "label: '1' 3, 'G2' 2, high 1"
    assert main(["data", "check", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert "'1' 3 (" in page
    assert ", 'G2' 2 (" in page
    assert page.endswith("no file is broken\n")
