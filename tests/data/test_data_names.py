"""Spellings of one patient are one patient, in every source; two patients stay two; merged spellings are named."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path

import pytest
from helpers.spellings import PATIENTS, named_tiles, spellings
from helpers.tiles import random_pixels, write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtl import data
from fastmtl.cli import main
from fastmtl.data import Dataset, Tile, identifier_key
from fastmtl.data.identifiers import clean_name, says_missing
from fastmtl.data.patient_names import one_spelling

NFD = "Pa\u0308"  # "Pä" as a Mac writes it in a file's name
some = settings(max_examples=25, derandomize=True, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("names")


def _manifest(folder: Path, head: str, rows: list[tuple[str, ...]], name: str = "m.csv") -> Path:
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head.split(","), *rows])
    return folder / name


def _reasons(dataset: Dataset) -> str:
    return "\n".join(problem.reason for problem in dataset.problems)


@some
@given(st.sampled_from(PATIENTS).flatmap(lambda name: st.tuples(st.just(name), spellings(name))))
def test_a_spelling_has_the_key_of_its_name(pair: tuple[str, str]):
    assert identifier_key(pair[1]) == identifier_key(pair[0])


def test_different_patients_have_different_keys():
    assert len(set(map(identifier_key, PATIENTS))) == len(PATIENTS)
    for one, other in (("1,000", "1"), ("1.10", "1.1"), ("P²", "P2"), ("1 1", "11"), ("A 1 1", "A11")):
        assert identifier_key(one) != identifier_key(other), (one, other)


def _sides(split: data.Split) -> dict[str, str]:
    sides = (("train", split.train), ("val", split.val), ("test", split.test))
    return {name: side for side, names in sides for name in names}


def _check(split: data.Split, owner: dict[str, int]) -> None:
    """No patient is on two sides, and every tile is on one."""
    sides = _sides(split)
    assert sides.keys() == owner.keys()
    assert len({(owner[name], side) for name, side in sides.items()}) == len(set(owner.values()))


def _as_told(folder: Path, how: str, named: list[tuple[int, str]]) -> tuple[Dataset, dict[str, int]]:
    """The data set whose tiles tell their patients in this way, and the patient of each tile."""
    if how == "tiles":
        tiles = [Tile(f"t{n}", Path("x.png"), None, n % 2, text) for n, (_, text) in enumerate(named)]
        return Dataset(folder, ("a", "b"), tuple(tiles)), {f"t{n}": index for n, (index, _) in enumerate(named)}
    if how == "file name":
        rows = [(f"t{n}", f"{'ab'[n % 2]}\\{text}_{n}.png", "ab"[n % 2]) for n, (_, text) in enumerate(named)]
        path, options = _manifest(folder, "id,image,label", rows), data.ManifestOptions(patient="(.*)_")
    else:
        column = "site" if how == "group_by" else how
        rows = [(f"t{n}", f"{n}.png", "ab"[n % 2], text) for n, (_, text) in enumerate(named)]
        path = _manifest(folder, f"id,image,label,{column}", rows)
        options = data.ManifestOptions(columns={"site": "text"} if how == "group_by" else None)
    dataset = data.read_manifest(path, options)
    if how == "group_by":
        dataset = data.with_groups(dataset, "{site}")
    return dataset, {f"t{n}": index for n, (index, _) in enumerate(named)}


@pytest.mark.parametrize("how", ["tiles", "patient", "group", "case", "group_by", "file name"])
@settings(max_examples=6, derandomize=True, deadline=None)
@given(named=named_tiles(), seed=st.integers(0, 99))
def test_no_patient_is_on_two_sides(folder: Path, how: str, named: list[tuple[int, str]], seed: int):
    dataset, owner = _as_told(folder, how, named)
    assert len(dataset.groups) == len(PATIENTS)
    split = data.grouped_split(dataset, 0.3, seed, test_fraction=0.2)
    _check(split, owner)
    folds = data.kfold(dataset, 3, seed)
    for fold in folds:
        _check(fold, owner)
    assert sorted(name for fold in folds for name in fold.val) == sorted(owner)
    # By name, each in another spelling than in the data.
    held_out = [f"\u00a0{name.upper()}\u200b" for name in PATIENTS[:4]]
    by_name = data.split_by_groups(dataset, held_out, [PATIENTS[5] + " "])
    _check(by_name, owner)
    assert {owner[name] for name in by_name.val} == {0, 1, 2, 3}
    data.save_split(split, folder / "split.json")
    again = data.split_by_groups(
        dataset, data.load_groups(folder / "split.json"), data.load_test_groups(folder / "split.json")
    )
    assert _sides(again) == _sides(split)


@settings(max_examples=6, derandomize=True, deadline=None)
@given(named=named_tiles())
def test_a_told_split_that_parts_a_patient_is_refused(folder: Path, named: list[tuple[int, str]]):
    first = named[0][0]
    rows = [
        (f"t{n}", f"{n}.png", text, "val" if n == 0 or index > max(7, first) else "train")
        for n, (index, text) in enumerate(named)
    ]
    dataset = data.read_manifest(_manifest(folder, "id,image,patient,split", rows))
    with pytest.raises(ValueError, match="in training and in validation"):
        data.split_by_column(dataset)


def test_a_leak_is_seen_in_any_spelling():
    one, other = (Tile(name, Path("x"), None, None, name) for name in ("p1.", "P1"))
    with pytest.raises(ValueError, match=r"1 patient\(s\) are in training and in validation: p1"):
        data.check_no_leak([one], [other])


def test_a_notice_says_what_was_merged_and_what_only_looks_alike(folder: Path):
    names = ["1.0"] * 3 + ["1", "01", "P2", "p2", "\u03a12", "2.01E+11", "P-2"]  # the third P is Greek
    rows = [(f"{n}.png", text) for n, text in enumerate(names)]
    dataset = data.read_manifest(_manifest(folder, "image,patient", rows))
    said = _reasons(dataset)
    assert "patient '1.0' (3 rows) is taken for '1' (1 row)" in said
    assert "patient 'p2' (1 row) is taken for 'P2' (1 row)" in said
    assert "patient '01' looks like '1' and is kept apart" in said
    assert r"patient '\u03a12' looks like 'P2'" in said
    assert "patient 'P-2' looks like 'P2'" in said
    assert "'2.01E+11' is a number that a spreadsheet shortened" in said
    assert [tile.group for tile in dataset.tiles[:5]] == ["1", "1", "1", "1", "01"]
    clean = data.read_manifest(_manifest(folder, "image,patient", [("a.png", "p1"), ("b.png", "P11")]))
    assert not clean.problems
    assert clean.groups == ("P11", "p1")  # as written


def test_names_without_oddities_stay_as_they_are():
    names = ["GT2012149", "p1", "case 7", "1.5", "TCGA-AA-3502"]
    assert one_spelling(names) == dict(zip(names, names, strict=True))
    assert list(map(clean_name, names)) == names


@pytest.mark.parametrize("column", ["patient", "group", "case", "id", "mask"])
@pytest.mark.parametrize(
    "cell", ["nan", "NaN", "NA", "n/a", "#N/A", "null", "None", "<NA>", "NaT", "-", "?", "#REF!", "nan\u200b"]
)
def test_cells_that_say_there_is_none_are_no_names(folder: Path, column: str, cell: str):
    path = _manifest(folder, f"image,{column}", [("a.png", "x"), ("b.png", cell)])
    with pytest.raises(ValueError, match=rf"line 3: {column} is '.*', which is not a name"):
        data.read_manifest(path)
    assert not says_missing("Nan Madol")


def test_a_patient_in_file_names_that_names_nobody_is_a_notice(folder: Path):
    dataset = data.read_manifest(_manifest(folder, "image", [("nan-1.png",), ("nan-2.png",), ("p-1.png",)]))
    assert "patient 'NAN' (2 tiles) is not a name" in _reasons(dataset)


def test_parquet_and_csv_name_the_same_patients(folder: Path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [f"{n}.png" for n in range(4)]
    columns = {"image": images, "patient": [1.0, 2.0, 10.0, 2.5], "id": [7.0, 8.0, 9.0, 10.0]}
    parquet.write_table(arrow.table({**columns, "site\u200b": [b"x", b"y", b"x", None]}), folder / "m.parquet")
    found = data.read_manifest(folder / "m.parquet")
    rows = [("0.png", "1", "7", "x"), ("1.png", "2", "8", "y"), ("2.png", "10", "9", "x"), ("3.png", "2.5", "10", "")]
    same = data.read_manifest(_manifest(folder, "image,patient,id,site", rows))
    assert found.tiles == same.tiles
    assert not found.problems


def test_a_float_column_that_lost_digits_is_a_notice(folder: Path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"image": ["a.png", "b.png"], "patient": [1.00000000000000001e17, 2e17]})
    parquet.write_table(table, folder / "long.parquet")
    assert "a spreadsheet shortened" in _reasons(data.read_manifest(folder / "long.parquet"))


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        ("image,id", [("a.png", "1"), ("b.png", "1.0")]),
        ("image,id", [("a.png", "Pä"), ("b.png", NFD)]),
        ("image,id", [("a.png", "x 1"), ("b.png", "x\u00a01")]),
        ("image,label", [("t\\a.png", "x"), ("t/a.png", "x")]),
        ("image,label", [("./t/a.png", "x"), ("t//a.png", "x")]),
    ],
)
def test_ids_are_distinct_in_any_spelling(folder: Path, head: str, rows: list[tuple[str, ...]]):
    with pytest.raises(ValueError, match=r"line 3: the id .* is that of line 2 already"):
        data.read_manifest(_manifest(folder, head, rows))


def test_ids_that_differ_in_capitals_or_are_files_of_two_numbers_are_two(folder: Path):
    dataset = data.read_manifest(_manifest(folder, "image", [("a.png",), ("A.png",), ("1.png",), ("1.0.png",)]))
    assert len(dataset) == 4


def test_one_image_of_two_patients_is_a_notice(folder: Path):
    rows = [("1", "a.png", "p"), ("2", "t/../a.png", "q"), ("3", "b.png", "q")]
    (notice,) = data.duplicate_notices(
        data.read_manifest(_manifest(folder, "id,image,patient", rows)), leaks_alone=True
    )
    assert "1 of them in two patients, so a split can leak: 1 of p and 2 of q" in notice.reason


def test_paths_of_windows(tmp_path: Path):
    for name in ("tumor/P1-1.png", "tumor/P1-2.png", "benign/P1-1.png", "benign/deep/P2-1.png"):
        write_image(tmp_path / name, random_pixels(0))
    write_image(tmp_path / "odd\\P3-1.png", random_pixels(0))  # a zip of Windows unpacked on Linux
    rows = [("tumor\\P1-1.png",), (".\\tumor\\P1-2.png",), ("benign/P1-1.png",), ("benign\\deep/P2-1.png",)]
    dataset = data.read_manifest(_manifest(tmp_path, "image", [*rows, ("odd\\P3-1.png",)]))
    assert data.check_tiles(dataset.tiles) == []
    assert dataset.groups == ("P1", "P2", "P3")
    assert dataset.tiles[0].id == "tumor/P1-1"
    for cell, says in (
        ("C:\\data\\P1.png", "line 2: .* is on a Windows drive; write it relative to"),
        ("d:/data/P1.png", "is on a Windows drive"),
        ("\\\\server\\share\\P1.png", "is outside the data root"),
        ("..\\..\\P1.png", "is outside the data root"),
    ):
        with pytest.raises(ValueError, match=says):
            data.read_manifest(_manifest(tmp_path, "image", [(cell,)]))


def test_a_file_is_found_in_another_unicode_form_and_not_in_other_capitals(tmp_path: Path):
    write_image(tmp_path / NFD / f"{NFD}-1.png", random_pixels(0))
    write_image(tmp_path / "t" / "Scan.png", random_pixels(0))
    dataset = data.read_manifest(_manifest(tmp_path, "image", [("Pä/Pä-1.png",), (f"{NFD}/Pä-2.png",)]))
    assert dataset.tiles[0].image == tmp_path / NFD / f"{NFD}-1.png"
    assert dataset.groups == ("PÄ",)
    dataset = data.read_manifest(_manifest(tmp_path, "image", [("t/scan.PNG",), ("T/Scan.png",), ("t/none.png",)]))
    found = [problem.reason for problem in data.check_tiles(dataset.tiles)]
    assert "'Scan.png' exists, and names must match exactly" in found[0]
    assert "'t' exists" in found[1]
    assert "is there" not in found[2]
    write_image(tmp_path / "a" / f"{NFD}\u0323.png", random_pixels(0))
    write_image(tmp_path / "a" / f"{unicodedata.normalize('NFC', NFD)}\u0323.png", random_pixels(0))
    with pytest.raises(ValueError, match=r"a: 'P.*' and 'P.*' are one name in two Unicode forms"):
        data.read_manifest(_manifest(tmp_path, "image", [(f"a/{unicodedata.normalize('NFC', NFD + chr(0x323))}.png",)]))


def test_images_and_masks_pair_in_any_unicode_form(tmp_path: Path):
    write_image(tmp_path / "A" / "image" / "Pä-1.png", random_pixels(0))
    write_image(tmp_path / "A" / "image" / "P\u00a02.png", random_pixels(0))
    write_image(tmp_path / "A" / "image" / "P3.png", random_pixels(0))
    for name in (f"{NFD}-1", "P 2", "p3"):
        write_image(tmp_path / "A" / "label" / f"{name}.png", random_pixels(0)[..., 0])
    first, second, third = sorted(data.read_tile_folder(tmp_path).tiles, key=lambda tile: ascii(tile.id))
    assert [tile.mask is None for tile in (first, second, third)] == [True, False, False]  # P3, P 2, Pä
    assert "if it is that of P3.png, rename it" in _reasons(data.read_tile_folder(tmp_path))
    prepared = data.prepare(tmp_path / "A", tmp_path / "m.csv")
    assert sum(one.mask is not None for one in prepared.found) == 2
    write_image(tmp_path / "A" / "image" / f"{NFD}-1.png", random_pixels(1))
    with pytest.raises(ValueError, match=r"one name in two Unicode forms; they would have the same id"):
        data.read_tile_folder(tmp_path)
    with pytest.raises(ValueError, match=r"one name in two Unicode forms; they both exist"):
        data.prepare(tmp_path / "A", tmp_path / "m2.csv")


def test_classes_are_found_in_any_unicode_form(tmp_path: Path):
    write_image(tmp_path / NFD / "image" / "1.png", random_pixels(0))
    assert data.read_tile_folder(tmp_path, ["Pä", "B"]).class_names == ("Pä", "B")
    rows = [("a.png", "Pä"), ("b.png", NFD)]
    dataset = data.read_manifest(
        _manifest(tmp_path, "image,label", rows), data.ManifestOptions(classes={"label": [NFD]})
    )
    assert [tile.label for tile in dataset.tiles] == [0, 0]
    write_image(tmp_path / "Pä" / "image" / "2.png", random_pixels(0))
    with pytest.raises(ValueError, match="one name in two Unicode forms; they would be one class"):
        data.read_tile_folder(tmp_path)


def test_file_names_tell_one_patient_in_any_spelling():
    for name in (
        "Pä-1.png",
        f"{NFD}-1.png",
        "pä\u20132.png",
        "\uff30ä\uff0d3.png",
        "deep\\Pä-4.png",
        "P\u200bä -5.png",
        "x/PÄ.-1.png",
    ):
        assert identifier_key(data.group_of(name)) == "pä", name
    assert data.group_of("\uff30\uff10\uff13_1.png", r"(P[0-9]+)_") == "P03"
    assert data.group_of("x-1.png", r"\d*") == "X-1"  # a match of nothing is none


def test_groups_of_columns_count_in_any_spelling():
    values = [("c1", 1.0), ("C1 ", 1.0), ("2.0", 1.0), ("2", 1.0)]
    tiles = [Tile(f"{n}", Path("x"), None, None, "p", {"case": c, "day": d}) for n, (c, d) in enumerate(values)]
    dataset = data.with_groups(Dataset(Path("d"), (), tuple(tiles)), "{case}-{day}")
    assert len(set(map(identifier_key, dataset.groups))) == len(dataset.groups) == 2
    empty = Dataset(Path("d"), (), (Tile("t", Path("x"), None, None, "p", {"case": "nan"}),))
    with pytest.raises(ValueError, match="tile t has no case"):
        data.with_groups(empty, "case")


def test_split_files_name_patients_and_tiles_in_any_spelling(tmp_path: Path):
    tiles = [Tile(f"{NFD}/{n}.0", Path("x"), None, 0, f"{n}.0") for n in range(4)]
    dataset = Dataset(tmp_path, ("a",), tuple(tiles))
    content = {"validation_patients": ["1", "2 "], "train": ["Pä/0.0", "Pä/3.0"], "validation": ["Pä/1.0", "Pä/2.0"]}
    (tmp_path / "s.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    train, val = data.load_split(tmp_path / "s.json").apply(dataset)
    assert [tile.group for tile in (*train.tiles, *val.tiles)] == ["0.0", "3.0", "1.0", "2.0"]
    split = data.split_by_groups(dataset, data.load_groups(tmp_path / "s.json"))
    assert split.held_out_groups == ("1.0", "2.0")
    with pytest.raises(ValueError, match="both name"):
        data.split_by_groups(dataset, ["1"], ["1.0"])


def test_eval_leaves_out_patients_whom_the_run_names_in_another_spelling(tmp_path: Path, capsys):
    for n in range(8):
        write_image(tmp_path / "t" / f"{n}.png", random_pixels(n))
    rows = [(f"t/{n}.png", "rle:24x24:1 50", "ab"[n % 2], f"P{n // 2 + 1}") for n in range(8)]
    manifest, out = _manifest(tmp_path, "image,mask,label,patient", rows), tmp_path / "run"
    small = ["--epochs", "1", "--size", "32", "--batch-size", "2", "--set", "model.base_channels=4"]
    assert main(["train", "demo", "--data", str(manifest), "--out", str(out), *small]) == 0
    facts = json.loads((out / "run.json").read_text())
    facts["training_patients"] = [f"{name.lower()}\u00a0" for name in facts["training_patients"]]
    (out / "run.json").write_text(json.dumps(facts))
    capsys.readouterr()
    assert main(["eval", str(out), "--data", str(manifest)]) == 0
    assert json.loads(capsys.readouterr().out)["num_images_of_training_patients_left_out"] == 6
    # A split that turns up beside the data moves nobody: a run is resumed with its own.
    held_out = json.loads((out / "split.json").read_text())["validation_patients"]
    others = [name for name in ("P1", "P2") if name not in held_out][:1]
    (tmp_path / "split.json").write_text(json.dumps({"validation_patients": others}))
    (out / "summary.json").unlink()  # as if it had been stopped before its end
    assert main(["train", "--resume", "--out", str(out)]) == 0
    lines = (out / "evaluation.jsonl").read_text().splitlines()
    assert {json.loads(line)["patient"] for line in lines} == set(held_out)
