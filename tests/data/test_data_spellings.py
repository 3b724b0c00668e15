"""Classes with similar spellings are reported, whatever their source; different ones are not."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from helpers.tiles import random_pixels, write_folder, write_image

from fastmtl.data import read_dataset
from fastmtl.data.manifest.class_spellings import alike, quoted

ONE = "High-grade tumor é"
VARIANTS = {
    "a space at the end": "High-grade tumor é ",
    "a space in front": " High-grade tumor é",
    "two spaces": "High-grade  tumor é",
    "capitals": "HIGH-GRADE TUMOR É",
    "NFD": unicodedata.normalize("NFD", ONE),
    "a no-break space": "High-grade\u00a0tumor é",
    "an ideographic space": "High-grade\u3000tumor é",
    "a thin space": "High-grade\u2009tumor é",
    "a tab": "High-grade\ttumor é",
    "a zero-width space": "High-grade tumor é\u200b",
    "a byte-order mark": "\ufeffHigh-grade tumor é",
    "a soft hyphen": "High-grade tu\u00admor é",
    "full-width letters": "\uff28igh-grade tumor é",
    "an underscore": "High_grade_tumor é",
    "an en dash": "High\u2013grade tumor é",
    "no space": "Highgrade tumor é",
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_spellings_of_one_class_are_found(variant: str):
    assert alike([ONE, "Stroma", variant]) == [(ONE, variant)]
    shown = quoted([ONE, variant])
    assert shown[0] != shown[1]
    assert "\u200b" not in shown[1]


@pytest.mark.parametrize(
    "names",
    [
        ("HER2", "HER2-", "HER2+"),
        ("1 2", "12"),
        ("-1", "1"),
        ("G1", "G2"),
        ("tumor", "tumors"),
        ("N0", "NO"),
        ("T1", "T1a"),
        ("+", "-", "--"),
    ],
)
def test_different_classes_are_left_in_peace(names: tuple[str, ...]):
    assert alike(names) == []


def _manifest(folder: Path, column: str, labels: list[str]) -> Path:
    rows = []
    for number, label in enumerate(labels):
        write_image(folder / f"p{number}-1.png", random_pixels(number, 8))
        rows.append(f'p{number}-1.png,"{label}"')
    (folder / "manifest.csv").write_text("\n".join([f"image,{column}", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("column", ["label", "grade"])
def test_a_manifest_tells_them(tmp_path: Path, column: str, name: str):
    folder = _manifest(tmp_path, column, [ONE, ONE, ONE, VARIANTS[name], VARIANTS[name], "Stroma"])
    (notice,) = [one.reason for one in read_dataset(folder).problems]
    assert "differ only by" in notice or "are read as one class" in notice
    assert repr(column) in notice
    assert "(3)" in notice
    assert "(2)" in notice
    assert "Stroma" not in notice


def test_blanks_at_the_ends_of_cells_are_told_where_they_make_two_spellings(tmp_path: Path):
    folder = _manifest(tmp_path, "label", ["tumor", "tumor ", "tumor ", "stroma"])
    dataset = read_dataset(folder)
    assert dataset.class_names == ("stroma", "tumor")
    (notice,) = [one.reason for one in dataset.problems]
    assert notice == r"column 'label': 'tumor' (1), 'tumor ' (2) cells are read as one class, 'tumor'"
    spaced = _manifest(tmp_path, "label", [" tumor", " tumor", " stroma"])
    assert read_dataset(spaced).problems == ()  # a table with a blank after each comma
    numbers = _manifest(tmp_path, "label", ["1", "1.0", "2", "2"])
    (notice,) = [one.reason for one in read_dataset(numbers).problems]
    assert "'1' (1), '1.0' (1) cells are read as one class, '1'" in notice


def test_a_folder_tells_them(tmp_path: Path):
    write_folder(tmp_path, {"tumor": 2, "Tumor ": 1, "stroma": 1})
    (notice,) = read_dataset(tmp_path).problems
    assert "'Tumor ' (1), 'tumor' (2) tiles" in notice.reason
    json.dumps(notice.reason)


def test_classes_that_a_recipe_lists_are_told(tmp_path: Path):
    from fastmtl.builders.datasets import read_data
    from fastmtl.config import load_recipe

    folder = _manifest(tmp_path, "label", ["tumor", "stroma", "tumor", "stroma"])
    recipe = load_recipe("demo", {"data": {"classes": {"label": ["tumor", "Tumor", "stroma"]}}})
    assert any("'tumor' (2), 'Tumor' (0)" in one.reason for one in read_data(recipe, folder).problems)
