"""A recipe and an interrupted run that commit 2a154ea wrote: this version reads them and computes the same."""

import json
import shutil

import pytest
from helpers.paths import GOLDEN
from helpers.tiles import write_folder

from fastmtl import api
from fastmtl.config import load_recipe

EARLIER = GOLDEN / "run_2a154ea"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())  # that version's own scores and last epoch


@pytest.fixture
def run(tmp_path):
    """A copy of the run, with its data made again."""
    write_folder(tmp_path / "data", {"a": 4, "b": 4}, size=32)
    shutil.copytree(EARLIER / "run", tmp_path / "run")
    facts = tmp_path / "run" / "run.json"
    facts.write_text(facts.read_text().replace("DATA", str(tmp_path / "data")))
    return tmp_path / "run"


def test_its_recipe_loads_and_names_the_new_keys():
    with pytest.warns(DeprecationWarning, match="the key training") as warned:
        recipe = load_recipe(EARLIER / "recipe.toml")
    assert (recipe.training.epochs, recipe.training.gradient_stats_every) == (2, 1)
    texts = [str(one.message) for one in warned]
    assert any("training.shorten is now called training.epoch_scale" in text for text in texts)
    assert any("training.watch_gradients is now called training.gradient_stats_every" in text for text in texts)


def test_its_checkpoint_scores_as_it_did_and_predicts(run, tmp_path):
    found = api.evaluate(run, tmp_path / "data", which="last", everything=True)
    assert found["loss"] == pytest.approx(EXPECTED["eval"]["loss"], rel=1e-4)
    for task, scores in EXPECTED["eval"]["tasks"].items():
        assert {name: found["tasks"][task][name] for name in scores} == scores
    assert api.predict(run, tmp_path / "data", tmp_path / "predicted", which="last").new == 8


def test_its_training_continues_as_it_did_and_is_reported(run):
    shutil.copytree(run / "checkpoints" / "last", run / "checkpoints" / "best")  # the epoch that follows is no better
    api.resume(run)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for key in ("loss", "epoch", "step"):
        assert last[key] == pytest.approx(EXPECTED["last_epoch"][key], rel=1e-4)
    assert last["validation"]["loss"] == pytest.approx(EXPECTED["last_epoch"]["validation"]["loss"], rel=1e-4)
    assert api.report([run]) == []
    assert "A recipe of commit 2a154ea" in (run / "report.html").read_text()
