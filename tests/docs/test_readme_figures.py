"""Every figure in the README's table is the stored row that it links to, rounded."""

from __future__ import annotations

import csv
import json
import re

import pytest
from helpers.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = dict(re.findall(r"^\[(\d+)\]: (\S+)#L\1$", README, flags=re.M))
FIGURES = re.findall(r"^\| (.+?) \| ([\d.]+) ms \| (.+) \|$", README, flags=re.M)
PEERS = re.compile(r"([\w. ]+) \[([\d.]+)x\]\[(\d+)\]")
SAME = ("op", "shape", "mode", "kept_memory", "cold", "commit", "instructions", "threads")


def _rows(line: str) -> list[dict[str, str]]:
    """The rows of a link's file up to its line, as GitHub counts them: the header is line 1."""
    text = (ROOT / LINKS[line]).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(text[: int(line)]))


def _rounded(value: str, shown: str) -> bool:
    return round(float(value), len(shown.partition(".")[2])) == float(shown)


def test_ten_figures_and_no_link_without_one():
    assert len(FIGURES) == 10
    assert sorted(line for *_, peers in FIGURES for *_, line in PEERS.findall(peers)) == sorted(LINKS)


@pytest.mark.parametrize(("milliseconds", "peers"), [row[1:] for row in FIGURES], ids=[row[0] for row in FIGURES])
def test_a_figure_is_its_row(milliseconds, peers):
    for name, ratio, line in PEERS.findall(peers):
        *others, peer = _rows(line)
        ours = next(row for row in reversed(others) if row["contender"] == "fastmtl")
        assert [ours[key] for key in SAME] == [peer[key] for key in SAME]
        assert peer["contender"].split()[0] == name.strip(" ,").split()[0]
        assert _rounded(ours["p50_ms"], milliseconds)
        assert _rounded(peer["times_fastmtl"], ratio)


def test_the_prediction_of_a_slide_is_its_row():
    page = (ROOT / "docs" / "prediction.md").read_text(encoding="utf-8")
    row = json.loads((ROOT / "benchmarks/results/predict-slide.json").read_text(encoding="utf-8"))
    one, two = row["ranks: 1"], row["ranks: 2"]
    shown = re.search(r"takes as long as .*?: ([\d.]+) ms .*?beside ([\d.]+) .*? are ([\d.]+) times", page, re.DOTALL)
    took, alone, times = shown.groups()
    assert _rounded(one["processor_ms_a_tile"], took)
    assert _rounded(row["forward_ms"], alone)
    assert _rounded(one["wall_ms_a_tile"] / two["wall_ms_a_tile"], times)
