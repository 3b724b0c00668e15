"""Splits that do not divide a patient."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from helpers.tiles import shared_data

from fastmtl.data import (
    Dataset,
    Split,
    Tile,
    check_no_leak,
    grouped_split,
    kfold,
    load_groups,
    load_split,
    read_tile_folder,
    save_split,
    split_by_groups,
)


def _folder(num_patients: int = 40, tiles_per_patient: int = 6) -> Dataset:
    """Patients with two classes each, one class rare."""
    tiles = []
    for patient in range(num_patients):
        for number in range(tiles_per_patient):
            label = 2 if patient % 5 == 0 and number == 0 else (patient + number % 2) % 2
            tiles.append(Tile(f"p{patient}-{number}", Path("i"), None, label, f"P{patient}"))
    return Dataset(Path("folder"), ("a", "b", "c"), tuple(tiles))


def _groups(folder: Dataset, ids: tuple[str, ...]) -> set[str]:
    return {tile.group for tile in folder.subset(ids).tiles}


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3, 0.5])
def test_split_keeps_patients_whole_and_shares_similar(fraction: float):
    folder = _folder()
    split = grouped_split(folder, fraction, seed=1)
    assert not _groups(folder, split.train) & _groups(folder, split.val)
    assert set(split.train) | set(split.val) == {tile.id for tile in folder.tiles}
    assert len(split.val) / len(folder) == pytest.approx(fraction, abs=0.05)
    labels = Counter(tile.label for tile in folder.subset(split.val).tiles)
    everyone = Counter(tile.label for tile in folder.tiles)
    for label, count in everyone.items():
        assert labels[label] == pytest.approx(fraction * count, abs=0.06 * count + 2)


def test_split_depends_on_the_seed_alone():
    folder = _folder()
    assert grouped_split(folder, seed=3) == grouped_split(folder, seed=3)
    assert grouped_split(folder, seed=3) != grouped_split(folder, seed=4)


def test_folds_hold_out_every_patient_once():
    folder = _folder()
    folds = kfold(folder, 4, seed=0)
    held_out = [group for fold in folds for group in fold.held_out_groups]
    assert sorted(held_out) == sorted(folder.groups)
    for fold in folds:
        fold.apply(folder)


def test_a_leak_is_refused_by_name():
    folder = _folder(4)
    with pytest.raises(ValueError, match=r"1 patient\(s\) .*P2"):
        check_no_leak(folder.tiles[:15], folder.tiles[15:])
    check_no_leak(folder.tiles[:12], folder.tiles[12:])
    leaky = Split(tuple(t.id for t in folder.tiles[1:]), (folder.tiles[0].id,), ("P0",))
    with pytest.raises(ValueError, match="P0"):
        leaky.apply(folder)


def test_impossible_splits_say_why():
    folder = _folder(4)
    with pytest.raises(ValueError, match="first 'P9'"):
        split_by_groups(folder, ["P1", "P9"])
    with pytest.raises(ValueError, match="0 training"):
        split_by_groups(folder, folder.groups)
    with pytest.raises(ValueError, match="4 patient"):
        kfold(folder, 5)
    for fraction in (0.0, 1.0):
        with pytest.raises(ValueError, match="val_fraction"):
            grouped_split(folder, fraction)
    for fraction in (-0.1, 0.8):  # with 0.2 for validation nothing would be left to train on
        with pytest.raises(ValueError, match="test_fraction"):
            grouped_split(folder, 0.2, test_fraction=fraction)


def test_the_extreme_fractions_leave_one_patient_on_the_small_side():
    folder = _folder(10)
    assert len(grouped_split(folder, 0.001).held_out_groups) == 1
    assert len(grouped_split(folder, 0.999).held_out_groups) == 9


def test_the_default_seed_is_zero():
    folder = _folder()
    assert grouped_split(folder) == grouped_split(folder, seed=0) != grouped_split(folder, seed=1)
    assert kfold(folder) == kfold(folder, seed=0) != kfold(folder, seed=1)


def test_files_round_trip(tmp_path: Path):
    split = grouped_split(_folder(), seed=2)
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split
    assert load_groups(tmp_path / "split.json") == split.held_out_groups
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]
    (tmp_path / "bad.json").write_text('{"train": []}')
    with pytest.raises(ValueError, match="no list named 'validation'"):
        load_split(tmp_path / "bad.json")


def test_the_reference_fold_of_ebhi_seg():
    folder = read_tile_folder(shared_data("ebhi_seg"))
    split = split_by_groups(folder, load_groups(shared_data("ebhi_seg_reference_fold.json")))
    train, val = split.apply(folder)
    assert (len(train), len(val), len(val.groups)) == (1248, 257, 50)
    ours = grouped_split(folder, 0.2)
    ours.apply(folder)
    labels = Counter(tile.label for tile in folder.subset(ours.val).tiles)
    assert set(labels) == set(range(6))
