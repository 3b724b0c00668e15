"""What ranks compare before they train: each difference shows, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.tiles import write_folder

from fastmtl.api import rank_facts
from fastmtl.builders.datasets import read_splits
from fastmtl.config import load_recipe


def test_code_and_recipe():
    recipe = load_recipe("demo")
    facts = rank_facts.of_code(recipe)
    assert facts == rank_facts.of_code(recipe)
    other = rank_facts.of_code(replace(recipe, optimizer=replace(recipe.optimizer, lr=0.5)))
    assert [(name, other[name]) for name in facts if facts[name] != other[name]] == [("recipe optimizer.lr =", "0.5")]


def test_a_changed_source_shows(monkeypatch, tmp_path):
    (tmp_path / "api").mkdir()
    monkeypatch.setattr(rank_facts, "__file__", str(tmp_path / "api" / "rank_facts.py"))
    recipe, found = load_recipe("demo"), []
    for text in ("1", "2", "1"):
        (tmp_path / "module.py").write_text(text)
        found.append(rank_facts.of_code(recipe)["fastmtl"])
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("change", ["label", "size", "missing"])
def test_data(tmp_path, change):
    recipe = load_recipe("demo")
    first = write_folder(tmp_path / "a", {"A": 6, "B": 6})
    second = write_folder(tmp_path / "b", {"A": 6, "B": 6})
    assert rank_facts.of_data(_splits(recipe, first)) == rank_facts.of_data(_splits(recipe, second))
    here = second.tiles[3].image
    if change == "label":
        folder = {"A": "B", "B": "A"}[here.parent.parent.name]
        for part in ("image", "label"):
            (here.parents[1] / part / here.name).rename(
                tmp_path / "b" / folder / part / f"GT0009-1-400-{here.stem[-3:]}.png"
            )
    elif change == "size":
        here.write_bytes(here.read_bytes() + b"\0")
    else:
        here.unlink()
        (here.parents[1] / "label" / here.name).unlink()
    assert rank_facts.of_data(_splits(recipe, first)) != rank_facts.of_data(_splits(recipe, second))


def _splits(recipe, folder):
    return read_splits(recipe, folder.root, None)
