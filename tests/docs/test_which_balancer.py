"""docs/which_balancer.md: every balancer has its cost, and every figure is that of a stored run."""

from __future__ import annotations

import csv
import json
import re
from statistics import mean

import pytest
from helpers.paths import DOCS, ROOT

from fastmtl import balance

PAGE = (DOCS / "which_balancer.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"
CHOICE, COST, RUNS = (PAGE.partition(title)[2] for title in ("## When", "## What each costs", "## What our own runs"))
COSTS = re.findall(r"^\| (`[^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]*) ?\|$", COST.partition("## ")[0], flags=re.M)
ROWS = re.findall(r"^\| `(\w+)`([^|]*) \| (\S+) \| (\d) of 5 \| (\S+) \| (\d) of 5 \|$", RUNS, flags=re.M)


def _times() -> dict[str, str]:
    with (RESULTS / "amd-epyc-1-threads-avx512.csv").open(newline="") as file:
        return {row["contender"]: row["times_fastmtl"] for row in csv.DictReader(file) if row["op"] == "balancer_cost"}


def test_every_balancer_has_one_cost():
    named = [name for names, *_ in COSTS for name in names.strip("`").split()]
    assert sorted(named) == balance.list_balancers()


def test_every_balancer_has_a_use():
    named = set(re.findall(r"`(\w+)`", CHOICE.partition("## ")[0]))
    assert set(balance.list_balancers()) <= named | {"linear"}


def test_times_are_those_of_the_rows():
    shown = [(name, time) for names, *_, times in COSTS for name, time in re.findall(r"`(\w+)` ([\d.]+)", times)]
    stored = _times()
    assert {name for name, _ in shown} == stored.keys() - {"fastmtl", "pcgrad, last_layer"}
    for name, time in shown:
        assert f"{float(stored[name]):.2f}" == time
        assert any(name in names.strip("`").split() and time in times for names, *_, times in COSTS)
    assert f"takes {float(stored['pcgrad, last_layer']):.2f}, more" in COST


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_differences_are_those_of_the_runs(row):
    name, note, *shown = row
    runs = json.loads((RESULTS / "mask2tasks-small.json").read_text())
    recipe = {"linear": "linear_scalarization"}.get(name, name)
    assert bool(note) == (name == "linear")
    found = []
    for task, metric in (("classification", "accuracy"), ("segmentation", "jaccard")):
        ours, equal = (
            [fold["summary"]["tasks"][task][metric] for fold in runs[one].values()] for one in (recipe, "uniform")
        )
        differences = [one - other for one, other in zip(ours, equal, strict=True)]
        found += [f"{mean(differences):+.3f}", str(sum(one > 0 for one in differences))]
    assert found == shown


def test_five_methods_were_run():
    assert len(ROWS) == 5


def test_scores_of_the_eight_epochs():
    runs = json.loads((RESULTS / "ebhi_best-ablations.json").read_text())
    words = " ".join(RUNS.split())
    for run, form in (("8 epochs", "Dice {} and accuracy {},"), ("8 epochs, PCGrad", "PCGrad {} and {}.")):
        tasks = runs[run]["summary"]["tasks"]
        scores = (f"{tasks['segmentation']['dice']:.3f}", f"{tasks['classification']['accuracy']:.3f}")
        assert form.format(*scores) in words
