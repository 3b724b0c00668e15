"""`fastmtl data check`: what a careful colleague would say of some data before anything is trained on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.data_check import SIDE, mask_of, masked_folder, page_of, reasons_of, write_rows
from helpers.tiles import random_pixels, write_folder, write_image

from fastmtl import data
from fastmtl.cli import main
from fastmtl.data import ManifestOptions, examine, read_dataset, read_manifest


def _indices() -> np.ndarray:
    mask = mask_of(1, 16)
    mask[16:32] = 2
    mask[32:40] = 255
    return mask


GREY = np.arange(SIDE * SIDE, dtype=np.int64).reshape(SIDE, SIDE) * 256 // SIDE**2
KINDS = {
    "0 and 255": (mask_of(255, 16), "above 127", 0.25, "0, 255"),
    "0 and 1": (mask_of(1, 16), "not 0", 0.25, "0, 1"),
    "class indices": (
        np.repeat(np.arange(4, dtype=np.uint8), 16)[:, None].repeat(SIDE, 1),
        "not 0",
        0.75,
        "0, 1, 2, 3",
    ),
    "class indices and 255 to leave out": (_indices(), "not 0", 32 / 56, "0, 1, 2, 255"),
    "resampled grey": (GREY.astype(np.uint8), "above 127", 0.5, "more than 8 values, up to 255"),
    "all foreground": (mask_of(255, SIDE), "above 127", 1.0, "255"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_values_of_masks_and_their_foreground(tmp_path: Path, name: str):
    mask, foreground, share, kind = KINDS[name]
    found = examine(masked_folder(tmp_path, [mask] * 4))["masks"]["mask"]
    assert (found["masks"], found["foreground"], found["kinds"]) == (4, foreground, {kind: 4})
    assert found["share"] == pytest.approx(share)
    assert found["patients"] == {"P0": pytest.approx(share), "P1": pytest.approx(share)}
    assert {int(value) for value in found["values"]} == set(np.unique(mask).tolist())
    assert sum(value["share"] for value in found["values"].values()) == pytest.approx(1)
    assert found["full"] == 4 * (share == 1)


def test_masks_of_two_makers_are_told_apart(tmp_path: Path):
    found = examine(masked_folder(tmp_path, [mask_of(1, 9), mask_of(255, 9), mask_of(255, 9), mask_of(255, 9)]))
    assert "1 of 4 have pixels that are not 0 and none above 127 (first 0)" in reasons_of(found)
    assert found["masks"]["mask"]["kinds"] == {"0, 255": 3, "0, 1": 1}
    assert "values of a mask" in page_of(found)


def test_empty_and_nearly_empty_masks(tmp_path: Path):
    dot = mask_of(0, 0)
    dot[0, :3] = 255
    found = examine(
        masked_folder(
            tmp_path, [mask_of(255, 9), dot, mask_of(0, 0), mask_of(0, 0), mask_of(255, 1), mask_of(255, SIDE)]
        )
    )
    masks = found["masks"]["mask"]
    assert (masks["empty"], masks["full"]) == (2, 1)
    assert masks["near_empty"] == {"1": pytest.approx(3 / SIDE**2)}
    assert "1 are nearly empty (below 0.1% of the pixels), first 1 with 0.00073" in reasons_of(found)
    assert "1 of 3 patients have no foreground at all, P1 for example" in reasons_of(found)
    assert "2 empty, 1 nearly, 1 full" in page_of(found)


@pytest.mark.parametrize(("rows", "said"), [(0, "all are empty"), (SIDE, "all are full")])
def test_masks_that_say_nothing(tmp_path: Path, rows: int, said: str):
    assert said in reasons_of(examine(masked_folder(tmp_path, [mask_of(255, rows)] * 3)))


def test_masks_that_are_drawn_and_in_further_columns(tmp_path: Path):
    for number in range(2):
        write_image(tmp_path / f"{number}.png", random_pixels(number, 8))
    path = write_rows(
        tmp_path, "image,mask,other,patient", ["0.png,rle:8x8:1 16,rle:8x8:1 8,a", "1.png,rle:8x8:1 32,,b"]
    )
    found = examine(read_manifest(path))["masks"]
    assert found["mask"]["patients"] == {"a": 0.25, "b": 0.5}
    assert found["other"]["patients"] == {"a": 0.125}


def test_a_mask_of_several_channels(tmp_path: Path):
    from fastmtl.data import Dataset, RunLengths, Tile
    from fastmtl.data.formats.published.gi_tract import OrganMasks

    write_image(tmp_path / "a.png", random_pixels(0, 8))
    organs = OrganMasks((RunLengths("1 32", 8, 8), RunLengths("", 8, 8)))
    tile = Tile("a", tmp_path / "a.png", organs, None, "p")
    assert examine(Dataset(tmp_path, (), (tile,)))["masks"]["mask"]["share"] == 0.25


@pytest.mark.parametrize("column", ["patient", "group", "case"])
def test_patients_of_a_column(tmp_path: Path, column: str):
    for number in range(4):
        write_image(tmp_path / f"{number}-x.png", random_pixels(number, 8))
    dataset = read_manifest(write_rows(tmp_path, f"image,{column}", [f"{n}-x.png,p{n // 2}" for n in range(4)]))
    assert data.summary_lines(dataset)[0] == f"patients: 2, found by column {column}; 2 tiles each"
    assert data.patient_notices(dataset) == ()


def test_patients_of_file_names(tmp_path: Path):
    names = ["a-1.png", "a-2.png", "b-1.png", "lone.png"]
    for number, name in enumerate(names):
        write_image(tmp_path / name, random_pixels(number, 8))
    found = examine(read_manifest(write_rows(tmp_path, "image", names)))
    assert found["patients_found"] == {
        'file name (before the first "-")': {"patients": 2, "tiles": 3},
        "whole file name": {"patients": 1, "tiles": 1},
    }
    assert 'file name (before the first "-") (2), whole file name (1); 1 to 2 tiles each' in found["summary"][0]
    read = read_manifest(tmp_path / "manifest.csv", ManifestOptions(patient="(.)"))
    assert read.patients_from == "file name ((.))"


def test_patients_of_a_recipe_and_of_a_published_layout(tmp_path: Path):
    from helpers.published import write_pets  # needs h5py

    published = read_dataset(write_pets(tmp_path / "pets"))
    assert published.patients_from == "the layout of pets"
    assert data.patient_notices(published) == ()
    folder = write_folder(tmp_path / "tiles", {"A": 4})
    assert folder.patients_from == 'file name (before the first "-")'
    alone = data.with_groups(folder, "tile")
    assert alone.patients_from == "group_by tile"
    line = data.summary_lines(alone)[0]
    assert line == "patients: not kept together; each of the 4 tiles is a group of its own (group_by tile)"


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
    dataset = read_manifest(write_rows(tmp_path, "image,patient" if column else "image", rows))
    reasons = " ".join(notice.reason for notice in data.patient_notices(dataset))
    assert said in reasons
    assert bool(said) == bool(reasons)
    assert data.patient_notices(data.with_groups(dataset, "tile")) == ()


def test_classes_patients_and_columns_that_teach_nothing(tmp_path: Path):
    rows = [f"{n}.png,p{n // 2},{'rare' if n < 2 else 'ab'[n % 2]},only,{n / 2},7" for n in range(8)]
    for n in range(8):
        write_image(tmp_path / f"{n}.png", random_pixels(n, 8))
    found = examine(read_manifest(write_rows(tmp_path, "image,patient,label,organ,age,dose", rows)))
    assert found["columns"]["label"]["classes"] == {"a": 3, "b": 3, "rare": 2}
    assert found["columns"]["label"]["patients"] == {"a": 3, "b": 3, "rare": 1}
    assert found["columns"]["age"]["range"] == [0, 3.5]
    reasons = reasons_of(found)
    assert "column 'label': only one patient has 'rare' (2 tiles)" in reasons
    assert "column 'organ' has only one class, 'only'" in reasons
    assert "column 'dose' holds 7 in every tile" in reasons
    page = page_of(found)
    assert "a 3 (3 patients), b 3 (3 patients), rare 2 (1 patient)" in page
    assert "0 to 3.5" in page


def test_sizes_and_masks_of_another_size(tmp_path: Path, capsys):
    for number in range(7):
        write_image(tmp_path / f"{number}.png", random_pixels(number, 8 + number))
    write_image(tmp_path / "m.png", np.zeros((9, 9), np.uint8))
    write_rows(tmp_path, "image,mask", ["0.png,m.png", *(f"{n}.png," for n in range(1, 7))])
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
    reasons = reasons_of(examine(read_manifest(write_rows(tmp_path, "id,image,patient", rows))))
    assert said in reasons
    assert bool(said) == ("more than once" in reasons)


def test_a_patient_on_two_sides_of_a_split_is_told(tmp_path: Path, capsys):
    for number in range(4):
        write_image(tmp_path / f"{number}.png", random_pixels(number, 8))
    write_rows(tmp_path, "image,patient,split", ["0.png,a,train", "1.png,b,train", "2.png,b,val", "3.png,c,val"])
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "column 'split': 1 patient(s) are in training and in validation: b" in capsys.readouterr().out


def test_a_page_of_markup_and_odd_names(tmp_path: Path, capsys):
    write_folder(tmp_path / "[red]x", {"[bold]a": 2, "b": 1})
    assert main(["data", "check", str(tmp_path / "[red]x")]) == 0
    page = capsys.readouterr().out
    assert "[red]x: 3 tiles" in page.replace("\n", "")
    assert "[bold]a 2" in page


def test_training_says_it_in_two_lines(tmp_path: Path):
    from fastmtl.builders.datasets import read_splits
    from fastmtl.config import load_recipe

    write_folder(tmp_path, {"A": 8, "a ": 8}, size=16)
    splits = read_splits(load_recipe("demo"), tmp_path)
    assert splits.summary == [
        'patients: 8, found by file name (before the first "-"); 2 tiles each',
        "label: A 8, a  8",
    ]
    assert any("differ only by spaces" in problem.reason for problem in splits.problems)


def test_classes_that_are_numbers_are_told_from_their_counts(tmp_path: Path, capsys):
    from fastmtl.data.checks.patients import summary_lines

    write_folder(tmp_path, {"1": 3, "G2": 2, "high": 1}, size=16)
    assert summary_lines(data.read_tile_folder(tmp_path))[1] == "label: '1' 3, 'G2' 2, high 1"
    assert summary_lines(data.read_tile_folder(tmp_path), "sets")[1].startswith("sets: '1' 3")
    assert main(["data", "check", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert "'1' 3 (" in page
    assert ", 'G2' 2 (" in page
    assert page.endswith("no file is broken\n")
