"""`fastmtl doctor --resume`: its certificate is green only if a killed and resumed training ends bit-equal."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.pages import blocks
from helpers.tiles import write_folder

from fastmtl.api import killed_runs, resume_certificate
from fastmtl.api.killed_runs import MOMENTS, Kill, Length, Seen, plan
from fastmtl.api.resume_certificate import Certificate
from fastmtl.cli import main
from fastmtl.cli.resume_certificate import show
from fastmtl.training.checkpoint_store import CheckpointStore
from fastmtl.training.fingerprint import fingerprint
from fastmtl.training.run_dir import RunError

STATE = {
    "model": {"a.weight": torch.ones(2, 3), "a.num": torch.tensor(4)},
    "average": {"n_averaged": torch.tensor(3), "a.weight": torch.ones(2, 3, dtype=torch.bfloat16)},
    "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1}]},
    "scaler": None,
    "scheduler": {"step": 4},
    "balancer": {"weights": torch.ones(2)},
    "rng": torch.zeros(1, 8, dtype=torch.uint8),
    "rng_device": None,
    "loader": {"epoch": 1, "batch": 0},
    "progress": {"step": 4, "best_score": float("-inf")},
}
CHANGES = {
    "weights": ("model", {"a.weight": torch.ones(3, 2), "a.num": torch.tensor(4)}),
    "averaged weights": ("average", {**STATE["average"], "n_averaged": torch.tensor(4)}),
    "optimizer": ("optimizer", {**STATE["optimizer"], "param_groups": [{"lr": 0.2}]}),
    "learning-rate schedule": ("scheduler", {"step": 5}),
    "balancer": ("balancer", {"weights": torch.tensor([1.0, 1.0 + 2**-23])}),
    "random numbers": ("rng", torch.ones(1, 8, dtype=torch.uint8)),
    "loader position": ("loader", {"epoch": 1, "batch": 1}),
    "progress": ("progress", {"step": 5, "best_score": float("-inf")}),
}


FACTS = {"data": "d", "split_file": None, "split": "", "class_names": [], "device": "cpu"}
FACTS |= {"training_patients": [], "validation_patients": []}


def _run(folder, **changes):
    """The folder of a finished run of two epochs, with `changes` in the last state."""
    store = CheckpointStore(folder / "checkpoints")
    store.save(STATE, 2, best=True)
    store.save(STATE | changes, 4)
    store.wait()
    records = [{"epoch": epoch, "step": 2 * epoch, "seconds": len(str(folder))} for epoch in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (folder / "balance.jsonl").write_text('{"step": 4, "weights": [1, 1]}\n')
    (folder / "summary.json").write_text('{"tasks": {}}')
    (folder / "run.json").write_text(json.dumps(FACTS))
    return folder


@pytest.mark.parametrize("part", CHANGES)
def test_a_change_of_any_part_changes_its_checksum_alone(part, tmp_path):
    key, value = CHANGES[part]
    one, other = fingerprint(_run(tmp_path / "one")), fingerprint(_run(tmp_path / "other", **{key: value}))
    assert {name for name in one if one[name] != other[name]} == {part}


def test_records_count_without_their_times(tmp_path):
    one, other = _run(tmp_path / "one"), _run(tmp_path / "longer name")
    assert fingerprint(one) == fingerprint(other)
    (other / "metrics.jsonl").write_text((other / "metrics.jsonl").read_text().replace('"step": 4', '"step": 5'))
    assert fingerprint(one)["metrics.jsonl"] != fingerprint(other)["metrics.jsonl"]


LENGTH = Length((3, 6, 9, 12), ("a", "a", "b", "b"))


@pytest.mark.parametrize(
    ("seen", "moments"),
    [
        (Seen(), []),
        (Seen(True), ["before the first checkpoint"]),
        (Seen(True, 2, 0, 0), ["in training"]),
        (Seen(True, 2, 0, 2, True), ["in training", "in a save"]),
        (Seen(True, 3, 0, 2), []),
        (Seen(True, 3, 0, 3), ["in a validation"]),
        (Seen(True, 3, 1, 3), []),
        (Seen(True, 6, 2, 6), ["at a stage change"]),
        (Seen(True, 12, 4, 12), []),
    ],
)
def test_moments_are_told_from_the_files_of_a_run(seen, moments):
    assert [name for name, holds in MOMENTS.items() if holds(seen, LENGTH)] == moments


@pytest.mark.parametrize(
    ("seen", "asked", "moment"),
    [
        (Seen(), "in training", "before the run folder"),
        (Seen(True, saving=True), "before the first checkpoint", "before the first checkpoint"),
        (Seen(True, saving=True), "in a save", "in a save"),
        (Seen(True, 2, 0, 2, True), "in training", "in a save"),
        (Seen(True, 3, 0, 3), "in a save", "in a validation"),
        (Seen(True, 7, 2, 6), "in a validation", "in training"),
        (Seen(True, 12, 4, 12), "in a validation", "after the last epoch"),
    ],
)
def test_where_a_kill_struck_is_told_from_the_files(seen, asked, moment):
    assert killed_runs._where(seen, LENGTH, asked) == moment


def test_kills_are_of_all_kinds_and_spread_over_the_steps():
    planned = plan(LENGTH, 9)
    assert {kill.moment for kill in planned} == MOMENTS.keys()
    assert planned[0] == Kill("before the first checkpoint", 0)
    assert {kill.asked_step for kill in planned if kill.moment == "at a stage change"} == {6}
    assert planned[-1].asked_step >= 9
    assert len(planned) == 9
    assert plan(LENGTH, 1) == planned[:1]
    assert {kill.moment for kill in plan(Length((3, 6), ("", "")), 9)} == MOMENTS.keys() - {"at a stage change"}


DEMO = ["doctor", "--resume", "demo", "--kills", "1"]


def _certified(monkeypatch, tmp_path, capsys, command=DEMO, *, again=None, **changes):
    """What the command says of a training whose resumed run ends with `changes`, and whose third run with `again`."""
    ends = {"killed": changes, "again": again or {}}

    def finished(command, log):
        out = Path(command[command.index("--out") + 1])
        _run(out, **ends.get(out.name, {}))

    monkeypatch.setattr(resume_certificate, "run_to_end", finished)
    monkeypatch.setattr(resume_certificate, "carry_out", lambda *_, **__: iter([Kill("in a save", 1, "in a save", 1)]))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = main([*command, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_equal_runs_give_a_green_certificate_and_leave_nothing(monkeypatch, tmp_path, capsys):
    code, found = _certified(monkeypatch, tmp_path, capsys)
    assert (code, found["equal"], found["repeatable"], found["kept"]) == (0, True, None, None)
    assert all(part["equal"] and part["resumed"] == part["uninterrupted"] for part in found["parts"].values())
    assert found["kills"] == [{"asked": "in a save", "struck": "in a save", "step": 1}]
    assert "at a stage change: the recipe has one stage" in found["not_killed"]
    assert not list(tmp_path.iterdir())


def test_the_command_of_the_page(monkeypatch, tmp_path, capsys):
    (block,) = [block for block in blocks() if block.page == "reliability.md"]
    ((_, *words),) = block.commands
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    code, found = _certified(monkeypatch, tmp_path, capsys, words)
    assert (code, found["recipe"]) == (0, "ebhi_joint_unet")


def test_the_certificate_in_words(capsys):
    kills = [Kill("in a save", 3, "in a save", 4), Kill("in a validation", 6)]
    found = Certificate("demo", 7, "cpu", 9, 3, kills, ["in a validation: too short"], {"a": "1" * 64}, {"a": "1" * 64})
    show(found)
    said = capsys.readouterr().out
    assert "shortened to 9 steps in 3 epochs" in said
    assert "killed: in a save (step 4)" in said
    assert "not killed: in a validation: too short" in said
    assert "Exact: after 1 kill, every part is bit-equal" in said
    show(replace(found, resumed={"a": "2" * 64}, repeatable=False, kept=Path("kept")))
    said = capsys.readouterr().out
    assert "different: 2222" in said
    assert "Not exact: different are a. Two uninterrupted trainings differ here, too" in said
    assert "The runs: kept" in said


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_difference_is_named_with_its_cause_and_kept_for_a_look(monkeypatch, tmp_path, capsys, repeatable):
    other = {"balancer": {"weights": torch.zeros(2)}}
    code, found = _certified(monkeypatch, tmp_path, capsys, again=None if repeatable else other, **other)
    assert (code, found["equal"], found["repeatable"]) == (1, False, repeatable)
    assert [name for name, part in found["parts"].items() if not part["equal"]] == ["balancer"]
    assert (Path(found["kept"]) / "killed" / "checkpoints").is_dir()


@pytest.mark.parametrize(
    ("given", "message", "code"),
    [
        (["--resume", "ebhi_joint_unet"], "recipe ebhi_joint_unet needs data: add --data DIR", 2),
        (["--resume", "demo", "--kills", "0"], "--kills must be at least 1; got 0", 2),
        (["--resume", "demo", "--data", "nowhere"], "nowhere does not exist", 1),
        (["--resume", "dem"], "dem", 1),
    ],
)
def test_what_cannot_be_certified_is_one_line(given, message, code, capsys):
    assert main(["doctor", *given]) == code
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.count("\n") == 1


def test_options_of_the_certificate_need_a_recipe(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "--kills", "3", "--set", "a=1"])
    assert "--kills --set belongs to --resume RECIPE" in capsys.readouterr().err


def test_a_training_that_fails_gives_its_own_message(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(RunError, match="the training failed with exit code 1: unknown recipe 'nothing'"):
        killed_runs.run_to_end([sys.executable, "-m", "fastmtl", "train", "nothing"], log)


@pytest.mark.slow
def test_a_staged_training_is_exact_after_kills_at_every_moment(tmp_path, capsys):
    """With averaged weights, two stages and PCGrad, by the commands that a user runs."""
    write_folder(tmp_path / "tiles", {"a": 6, "b": 4}, size=32)
    (tmp_path / "staged.toml").write_text(STAGED)
    assert main(["doctor", "--resume", str(tmp_path / "staged.toml"), "--data", str(tmp_path / "tiles"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal"]
    assert len(found["kills"]) == 6
    assert len([kill for kill in found["kills"] if kill["struck"]]) >= 5  # one may be over before the signal comes
    assert "at a stage change" in {kill["struck"] for kill in found["kills"]}
    assert {"weights", "averaged weights", "optimizer", "balancer", "metrics.jsonl"} <= found["parts"].keys()


STAGED = """
extends = "demo"
[data]
size = 32
batch_size = 2
[model]
base_channels = 2
[training]
precision = "float32"
average = "ema"
[[stages]]
name = "both"
epochs = 2
[[stages]]
name = "frozen"
epochs = 2
tasks = ["classification"]
freeze = ["encoder"]
start = "best"
"""
