"""One command starts and continues a run, from whatever an interruption at any moment left."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from helpers.broken_disk import BrokenDisk
from helpers.runs import killed_at
from helpers.small_runs import command_of
from helpers.tiles import write_folder

from fastmtl import api, data
from fastmtl.cli import main
from fastmtl.training import checkpoint
from fastmtl.training.checkpoint_names import history, located
from fastmtl.training.fingerprint import untimed
from fastmtl.training.run_dir import RunFolder
from fastmtl.training.trainer import Trainer


def _same(run, whole):
    for name in ("last", "best"):
        found, wanted = (checkpoint.load(folder / "checkpoints" / name) for folder in (run, whole))
        assert found["progress"]["step"] == wanted["progress"]["step"]
        for part in ("model", "average"):
            assert all(value.equal(found[part][key]) for key, value in wanted[part].items())
        assert found["rng"].equal(wanted["rng"])
        assert found["loader"] == wanted["loader"]
    for file in ("metrics.jsonl", "balance.jsonl"):
        assert untimed(run / file) == untimed(whole / file)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, whole)]
    assert summaries[0] == summaries[1]


MOMENTS = {
    "before the folder is there": (RunFolder, "create", 1, False),
    "between the folder and the first checkpoint": (Trainer, "save", 1, False),
    "in the first step": (Trainer, "step", 1, False),
    "after a checkpoint within the first epoch": (Trainer, "step", 3, True),
    "after the first epoch, before it is saved": (Trainer, "save", 3, False),
    "in the first validation": (Trainer, "evaluate", 1, False),
    "after the record, before its checkpoint": (RunFolder, "on_epoch", 1, True),
    "in the second epoch": (Trainer, "step", 5, False),
    "in the last validation": (Trainer, "evaluate", 2, True),
    "before the summary": (RunFolder, "write_summary", 1, False),
    "before the report": (RunFolder, "write_report", 1, False),
}


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_the_same_command_ends_where_a_whole_run_ends(moment, tiles, whole, tmp_path, monkeypatch):
    command = command_of(tiles, tmp_path / "run")
    owner, name, at, after = MOMENTS[moment]
    killed_at(partial(main, command), monkeypatch, owner, name, at, after=after)
    again = ["train", "--resume", "--out", str(tmp_path / "run")]
    assert main(again if len(moment) % 2 and (tmp_path / "run" / "config.toml").exists() else command) == 0
    _same(tmp_path / "run", whole)


@pytest.mark.long
def test_a_validation_that_was_cut_is_not_trained_for_again(tiles, whole, tmp_path, monkeypatch):
    command = command_of(tiles, tmp_path / "run")
    killed_at(partial(main, command), monkeypatch, Trainer, "evaluate", 2)
    steps = []
    monkeypatch.setattr(Trainer, "step", lambda *_: steps.append(1))
    assert main(command) == 0
    assert not steps
    _same(tmp_path / "run", whole)


@pytest.mark.long
def test_a_line_that_cannot_be_written_costs_the_validation_alone(tiles, whole, tmp_path, monkeypatch, capsys):
    command = command_of(tiles, tmp_path / "run")
    with monkeypatch.context() as patched:
        BrokenDisk(patched, tmp_path / "run", "metrics.jsonl").broken = True
        assert main(command) == 1
    assert "metrics.jsonl cannot be written (No space left on device)" in capsys.readouterr().err
    assert main(command) == 0
    assert "resumed at the validation of epoch 1" in capsys.readouterr().err
    _same(tmp_path / "run", whole)


@pytest.mark.long
def test_damage_of_the_newest_checkpoint_is_told_and_costs_what_came_after_the_one_before(
    tiles, whole, tmp_path, monkeypatch, capsys
):
    command = command_of(tiles, tmp_path / "run")
    killed_at(partial(main, command), monkeypatch, Trainer, "step", 6)
    newest = history(tmp_path / "run" / "checkpoints")[-1].path
    (newest / "tensors.safetensors").write_bytes(b"x")
    capsys.readouterr()
    assert main(command) == 0
    stderr = capsys.readouterr().err
    assert f"note: checkpoint {newest} is damaged: tensors.safetensors does not match its checksum. Training" in stderr
    _same(tmp_path / "run", whole)


def test_a_finished_run_says_so_and_reads_no_data(whole, tiles, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "read_dataset", lambda *_: pytest.fail("data were read"))
    resume = ["train", "--resume", "--out", str(whole)]
    for command, more in (
        (command_of(tiles, whole), ""),
        (resume, ""),
        ([*resume, "--profile"], "; no profile: no step is left"),
    ):
        assert main(command) == 0
        assert f"already finished: {whole}{more}" in capsys.readouterr().err.splitlines()


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("given", [["--lr", "1e-5"], ["--epochs", "1"], ["--clip-norm", "3", "--patience", "0"]])
def test_a_finished_run_with_nothing_left_to_train_is_not_changed(given, whole, capsys):
    before = _contents(whole)
    assert main(["train", "--resume", "--out", str(whole), *given]) == 0
    assert f"already finished: {whole}; nothing is left to train, and " in capsys.readouterr().err
    assert _contents(whole) == before


@pytest.mark.long
@pytest.mark.parametrize("which", ["best", "last"])
def test_a_damaged_checkpoint_of_a_finished_run_is_replaced(which, whole, tiles, tmp_path, monkeypatch, capsys):
    """By the newest sound one; the run is scored again, and its checkpoints can be used."""
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    damaged = located(out / "checkpoints" / which)
    assert located(out / "checkpoints" / "best") != located(out / "checkpoints" / "last")
    (damaged / "tensors.safetensors").write_bytes(b"x")
    if which == "last":  # of a run that is scored by it
        config = (out / "config.toml").read_text()
        (out / "config.toml").write_text(config.replace('checkpoint = "best"', 'checkpoint = "last"'))
    steps, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *given: (steps.append(1), step(*given))[1])
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert f"note: checkpoint {damaged} is damaged: tensors.safetensors does not match" in capsys.readouterr().err
    assert len(steps) == (2 if which == "last" else 0), "what came after the sound one is repeated"
    assert damaged.with_name(f"{damaged.name}.damaged").is_dir()
    said = [one for one in json.loads((out / "summary.json").read_text())["notices"] if "replaces it" in one]
    assert len(said) == (which == "best"), "the summary says that its scores are not of the best epoch"
    for name in ("best", "last"):
        assert main(["eval", str(out), "--data", str(tiles), "--checkpoint", name, "--everything"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert f"already finished: {out}" in capsys.readouterr().err


@pytest.mark.long
def test_what_changes_is_recorded_and_stays(tiles, tmp_path, monkeypatch, capsys):
    """A lower rate given to --resume holds, also where a scheduler repeats the first command."""
    out = tmp_path / "run"
    command = command_of(tiles, out, "--set", "optimizer.schedule=constant", "optimizer.warmup=0")
    killed_at(partial(main, command), monkeypatch, Trainer, "step", 4)
    change = ["--lr", "1e-4", "--weight-decay", "0.5", "--epochs", "3"]
    killed_at(partial(main, ["train", "--resume", "--out", str(out), *change]), monkeypatch, Trainer, "step", 2)
    assert main(command) == 0
    assert "changed: " not in capsys.readouterr().err.rpartition("resumed at")[2]
    records = RunFolder(out).resumes()
    wanted = {"optimizer.lr": [0.003, 1e-4], "optimizer.weight_decay": [0.01, 0.5], "training.epochs": [2, 3]}
    assert [record["changes"] for record in records] == [wanted, {}]
    assert [record["step"] for record in records] == [3, 4]
    state = checkpoint.load(out / "checkpoints" / "last")
    assert state["progress"]["epoch"] == 3
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == pytest.approx([1e-4, 1e-4])
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    assert [record["lr"] for record in RunFolder(out).records()] == pytest.approx([0.003, 1e-4, 1e-4])
    assert RunFolder(out).recipe().training.epochs == 3
    page = (out / "report.html").read_text()
    assert "after step 3 (optimizer.lr 0.003 -&gt; 0.0001, optimizer.weight_decay 0.01 -&gt; 0.5" in page


@pytest.mark.long
def test_a_finished_run_may_be_trained_for_longer(whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    assert main(["train", "--resume", "--out", str(out), "--epochs", "3"]) == 0
    assert [record["epoch"] for record in RunFolder(out).records()] == [1, 2, 3]
    rates = [record["lr"] for record in RunFolder(out).records()]
    assert rates[1] == pytest.approx(0)
    assert checkpoint.load(out / "checkpoints" / "last")["progress"]["step"] == 9


@pytest.mark.long
def test_data_that_moved_are_the_same_tiles(tiles, whole, tmp_path, monkeypatch, capsys):
    here, out = Path(shutil.copytree(tiles, tmp_path / "here")), tmp_path / "run"
    killed_at(partial(main, command_of(here, out)), monkeypatch, Trainer, "step", 4)
    there = here.rename(tmp_path / "there")
    assert main(["train", "--resume", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"the data of {out} are not in {here}; give --data the folder that they were moved to" in said
    one = min((there / "a" / "image").iterdir())
    away = one.rename(tmp_path / one.name)
    assert main(["train", "--resume", "--out", str(out), "--data", str(there)]) == 1
    assert "exactly the 10 tiles of " in capsys.readouterr().err
    away.rename(one)
    write_folder(tmp_path / "other", {"c": 4}, size=32)
    assert main(["train", "--resume", "--out", str(out), "--data", str(tmp_path / "other")]) == 1
    said = capsys.readouterr().err
    assert "exactly the 10 tiles of " in said
    assert "10 missing" in said
    assert main(["train", "--resume", "--out", str(out), "--data", str(there)]) == 0
    assert json.loads((out / "run.json").read_text())["data"] == str(there)
    assert RunFolder(out).resumes()[-1]["changes"] == {"data": [str(here), str(there)]}
    _same(out, whole)
    assert api.evaluate(out, there, everything=True)["num_images"] == 10
