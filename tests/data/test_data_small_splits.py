"""Splits of few patients: about the share that was asked for, each class on both sides where it can be; and splits of
more, which stay what they were."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from helpers.tiles import random_pixels, shared_data, write_image

from fastmtl import data
from fastmtl.builders import datasets
from fastmtl.config import load_recipe
from fastmtl.data import Dataset, Split, Tile, grouped_split


def _dataset(patients: dict[str, list[int]]) -> Dataset:
    """Tiles by patient: the class of each, below 0 for none."""
    tiles = [
        Tile(f"{name}-{number}", Path("x"), None, None if label < 0 else label, name)
        for name, labels in patients.items()
        for number, label in enumerate(labels)
    ]
    return Dataset(Path("few"), tuple("abcdef"), tuple(tiles))


def _unbalanced(first: int, second: int) -> Dataset:
    """So many patients of either class, with one to three images each."""
    counts = {"A": first, "B": second}
    return _dataset(
        {
            f"{name}{n}": [label] * (1 + (n + first) % 3)
            for label, (name, count) in enumerate(counts.items())
            for n in range(count)
        }
    )


def _classes(folder: Dataset, ids: tuple[str, ...]) -> set[int | None]:
    return {tile.label for tile in folder.subset(ids).tiles}


@pytest.mark.parametrize("test_fraction", [0.0, 0.2])
@pytest.mark.parametrize("first", [1, 2, 3, 4, 7, 12])
def test_each_class_is_on_every_side_that_it_has_patients_for(first: int, test_fraction: float):
    for second in (1, 2, 3, 5, 12):
        folder = _unbalanced(first, second)
        number = 3 if test_fraction else 2
        if first + second < number:
            with pytest.raises(ValueError, match=r"2 patient\(s\), and val_fraction 0.2 and test_fraction 0.2 needs 3"):
                grouped_split(folder, 0.2, test_fraction=test_fraction)
            continue
        split = grouped_split(folder, 0.2, test_fraction=test_fraction)
        split.apply(folder)
        assert split == grouped_split(folder, 0.2, test_fraction=test_fraction)
        sides = [_classes(folder, side) for side in (split.train, split.val, split.test)[:number]]
        for label, count in enumerate((first, second)):
            found = [label in side for side in sides]
            if count >= number:
                assert all(found), (first, second, found)
            elif count == 2 and first + second > 4:
                assert found[:2] == [True, True], (first, second, found)
            elif count == 1 and first + second > number:
                assert found[0], (first, second, found)
        if first + second >= 8:
            assert len(split.val) / len(folder) == pytest.approx(0.2, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_patients_with_several_classes_and_without_any(seed: int):
    draw = random.Random(seed)
    patients = {f"P{n}": [draw.randrange(-1, 3) for _ in range(draw.randint(1, 8))] for n in range(8)}
    folder = _dataset({**patients, "rare": [3, 0], "large": [0] * 30})
    split = grouped_split(folder, 0.25, seed)
    train, _ = split.apply(folder)
    assert 3 in {tile.label for tile in train.tiles}  # its only patient is trained on
    assert "large" in train.groups  # or far more than a quarter would be held out
    assert len(split.val) / len(folder) == pytest.approx(0.25, abs=0.1)


def test_the_seed_draws_among_good_shares():
    folder = _unbalanced(4, 4)
    assert len({grouped_split(folder, 0.2, seed).val for seed in range(8)}) > 2


def test_messages_speak_of_what_was_asked_for():
    with pytest.raises(ValueError, match=r"has 1 patient\(s\), and val_fraction 0.3 needs 2 or more"):
        grouped_split(_dataset({"P": [0, 1]}), 0.3)
    with pytest.raises(ValueError, match=r"into 5 folds: .* Take fewer folds, or val_fraction"):
        data.kfold(_dataset({f"P{number}": [number % 2] for number in range(8)}), 5)


def test_a_class_on_one_side_is_a_notice(tmp_path: Path):
    rows = ["image,label,patient"]
    for number in range(7):
        write_image(tmp_path / f"{number}.png", random_pixels(number))
        rows.append(f"{number}.png,{'rare' if number == 6 else 'ab'[number % 2]},P{number}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    splits = datasets.read_splits(load_recipe("demo", {}), tmp_path / "m.csv")
    assert splits.origin == "stratified by class, 20% of the patients held out"
    (notice,) = [problem.reason for problem in splits.problems if "no image in" in problem.reason]
    assert notice == "class 'rare', of 1 patient, has no image in validation: no score measures it"
    (tmp_path / "split.json").write_text('{"validation_patients": ["P6"]}')
    found = [problem.reason for problem in datasets.read_splits(load_recipe("demo", {}), tmp_path / "m.csv").problems]
    assert "class 'rare', of 1 patient, has no image in training: it cannot be learned" in found
    (tmp_path / "split.json").unlink()
    (tmp_path / "m.csv").write_text("\n".join(rows[:5]) + "\n")
    splits = datasets.read_splits(load_recipe("demo", {}), tmp_path / "m.csv")
    assert splits.origin.endswith("held out (50% of the images: with few patients no closer split is possible)")


def _digest(split: Split) -> str:
    sides = [split.train, split.val, split.held_out_groups, split.test, split.test_groups]
    return hashlib.sha256(json.dumps(sides).encode()).hexdigest()[:12]


def _drawn(num_patients: int, seed: int, classes: int) -> Dataset:
    """Patients of one to nine tiles, of any class or none, with names that sort in three ways."""
    draw = random.Random(seed)
    tiles = []
    for patient in range(num_patients):
        for number in range(draw.randint(1, 9)):
            label = draw.randrange(classes) if draw.random() > 0.1 else None
            tiles.append(Tile(f"{patient}-{number}", Path("x"), None, label, f"{'pP_'[patient % 3]}{patient}"))
    return Dataset(Path("r"), tuple("abcdefgh"[:classes]), tuple(tiles))


@pytest.mark.parametrize(
    ("num_patients", "seed", "classes", "expected"),
    [
        (60, 1, 4, ["4a76e4ecc9b1", "cb682721f7cd", "af4c90ded87a"]),
        (100, 2, 6, ["a573ca7e2abb", "38f18df72784", "7bdd0091a184"]),
        (45, 3, 2, ["41711e828433", "58b9a332a7df", "eaa96d220645"]),
    ],
)
def test_splits_of_many_patients_stay_what_they_were(num_patients: int, seed: int, classes: int, expected: list[str]):
    folder = _drawn(num_patients, seed, classes)
    found = [grouped_split(folder, 0.2), grouped_split(folder, 0.1, 7, test_fraction=0.15), data.kfold(folder, 5, 2)[3]]
    assert [_digest(split) for split in found] == expected


def test_splits_of_ebhi_seg_stay_what_they_were():
    folder = data.read_tile_folder(shared_data("ebhi_seg"))
    assert not folder.problems
    found = [grouped_split(folder, 0.2), grouped_split(folder, 0.1, 7, test_fraction=0.15), data.kfold(folder, 5, 2)[3]]
    assert [_digest(split) for split in found] == ["36dd889f20bc", "3aa0d29738b9", "22797ffc4ab1"]
