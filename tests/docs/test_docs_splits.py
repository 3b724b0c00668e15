"""The example on the page of splits runs as it stands, and its output is the page's."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.geojson import feature, ring
from helpers.paths import DOCS
from helpers.tiles import random_pixels, write_image

from fastmtl.cli import main

PAGE = (DOCS / "splits.md").read_text(encoding="utf-8")
RECIPE, COMMANDS, LINES, COUNTS = (block for _, block in re.findall(r"```(\w*)\n(.*?)```", PAGE, flags=re.S))


def _data(root: Path, mask: str) -> None:
    """Twelve tiles of four hospitals."""
    rows = ["image,mask,label,patient,hospital"]
    for number in range(12):
        hospital = ("North", "East", "South", "West")[number // 3]
        label = "Polyp" if number % 2 or number == 0 else "Normal"
        write_image(root / f"{number}.png", random_pixels(number, 64))
        write_image(root / f"m{number}.png", np.pad(np.full((32, 32), 255, np.uint8), 16))
        shape = feature([ring(8, 8, 40, 40)], classification={"name": "Tumor"})
        (root / f"{number}.geojson").write_text(json.dumps(shape))
        name = f"{number}.geojson" if mask == "polygons" else f"m{number}.png"
        rows.append(f"{number}.png,{name},{label},p{number},{hospital}")
    (root / "manifest.csv").write_text("\n".join(rows))


@pytest.mark.long
@pytest.mark.parametrize("mask", ["polygons", "files"])
def test_the_example_of_the_page(mask: str, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _data(tmp_path / "DIR", mask)
    Path("by_site.toml").write_text(RECIPE)
    told = {}
    for line in COMMANDS.splitlines():
        small = ["--size", "32", "--epochs", "1", "--set", "model.base_channels=2"] if " train " in line else []
        assert main([*shlex.split(line)[1:], *small]) == 0, line
        told[line.split()[1]] = capsys.readouterr()
    for line in LINES.splitlines():
        assert _plain(line) in map(_plain, told["train"].err.splitlines())
    for line in filter(None, COUNTS.splitlines()):
        if mask == "polygons" or not line.startswith(("polygons", "Tumor")):
            assert _plain(line) in map(_plain, told["data"].out.splitlines())


def _plain(line: str) -> str:
    """The line without its numbers and the site that is held out."""
    line = re.sub(r"held out \([A-Z]\w+\)", "held out", line).replace("sites", "site")
    return re.sub(r"\d+", "0", " ".join(line.split()))
