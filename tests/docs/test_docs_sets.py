"""The example on the page of several data sets runs as it stands."""

import json
import re
import shlex
from pathlib import Path

import pytest
from helpers.paths import DOCS

from fastmtl.cli import main
from fastmtl.config import SetConfig, load_recipe
from fastmtl.config.check_sets import _OPTIONS

PAGE = (DOCS / "sets.md").read_text(encoding="utf-8")
PYTHON, RECIPE, COMMANDS = (block for _, block in re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.S))


@pytest.mark.long
def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(PYTHON, {})
    Path("sets.toml").write_text(RECIPE)
    for line in COMMANDS.splitlines():
        small = ["--size", "32", "--epochs", "2", "--set", "model.base_channels=4"] if " train " in line else []
        assert main([*shlex.split(line)[1:], *small]) == 0, line
    summary = json.loads(Path("runs/sets/summary.json").read_text())
    assert list(summary["tasks"]) == ["gland", "colon/grade", "rectum/grade", "gland_share"]
    shares = [one["share"] for one in json.loads(Path("runs/sets/run.json").read_text())["sets"].values()]
    assert shares[0] / shares[1] == pytest.approx(2**0.5, rel=0.1)
    assert "data.sets" not in capsys.readouterr().err


def test_a_set_is_changed_from_the_command_line(tmp_path):
    path = tmp_path / "sets.toml"
    path.write_text(RECIPE)
    weights = {"colon": {"weight": 2.0}, "rectum": {"weight": 1.0}}
    recipe = load_recipe(path, {"data": {"sets_temperature": 1.0, "sets": weights}})
    assert [one.weight for one in recipe.data.sets] == [2.0, 1.0]


def test_the_page_names_every_key():
    table = PAGE[PAGE.index("| key |") :]
    assert all(f"`{name}`" in table for name in SetConfig.__dataclass_fields__)
    assert all(f"`{name}`" in table for name in _OPTIONS if not name.startswith(("polygon", "unannotated")))
