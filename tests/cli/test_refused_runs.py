"""A run folder that is not the command's: another recipe, split or writer, edited files, links; one line each."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.checkpoints import save_checkpoint
from helpers.small_runs import command_of

from fastmtl.cli import main
from fastmtl.training import checkpoint
from fastmtl.training.file_lock import locked


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batch-size", "4"], "data.batch_size = 2, and now it is 4"),
        (["--seed", "1"], "training.seed = 0, and now it is 1"),
        (["--set", "balancer.name=linear"], "balancer.name = 'pcgrad', and now it is 'linear'"),
        (["--set", "model.base_channels=4"], "model.base_channels = 2, and now it is 4"),
        (["--optimizer", "sgd"], "optimizer.optimizer = 'adamw', and now it is 'sgd'"),
    ],
)
def test_another_recipe_is_named_by_its_key_and_both_values(given, message, whole, tiles, capsys):
    assert main(command_of(tiles, whole, *given)) == 1
    assert f"contains a run with {message}" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(whole), *given]) == 1
    assert f"contains a run with {message}" in capsys.readouterr().err


EDITS = {
    "step": ({"step": 1.5}, "step is 1.5, and not a count"),
    "epoch": ({"epoch": -1}, "epoch is -1, and not a count"),
    "size": ({"step": 10**30}, "and not a count"),
    "pending": ({"pending": 5}, "pending is not an epoch that awaits its validation"),
}


@pytest.mark.parametrize("edit", [*EDITS, "loader", "quarantines"])
def test_an_edited_state_gets_one_line(edit, whole, tmp_path, capsys):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    state = checkpoint.load(out / "checkpoints" / "last")
    values, message = EDITS.get(edit, ({}, "its loader is of another training, or damaged"))
    state = {**state, edit: 5} if edit in state else {**state, "progress": state["progress"] | values}
    save_checkpoint(out / "checkpoints" / "step-00000099", state)
    before = (out / "metrics.jsonl").read_bytes()
    assert main(["train", "--resume", "--out", str(out), "--epochs", "3"]) == 1
    assert message in capsys.readouterr().err
    assert (out / "metrics.jsonl").read_bytes() == before


def test_edited_records_of_continuations_are_named(whole, tiles, tmp_path, capsys):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    record = {"step": 1, "changes": {"training.epochs": ["x", 2]}}
    (out / "resumes.jsonl").write_text(json.dumps(record) + "\n")
    assert main(command_of(tiles, out)) == 1
    assert "resumes.jsonl is damaged: training.epochs must be an integer" in capsys.readouterr().err


def test_a_recipe_of_another_name_is_told_the_runs(whole, tiles, capsys):
    assert main(["train", "ebhi_joint_unet", "--data", str(tiles), "--out", str(whole)]) == 1
    assert "contains a run of recipe 'demo' with " in capsys.readouterr().err


def test_another_split_is_named(whole, tiles, tmp_path, capsys):
    split = tmp_path / "split.json"
    held_out = json.loads((whole / "split.json").read_text())["validation_patients"]
    split.write_text(json.dumps({"validation_patients": ["nobody"]}))
    assert main(command_of(tiles, whole, "--split", str(split))) == 1
    stderr = capsys.readouterr().err
    assert f"validation_patients = {held_out}, and in {split} they are ['nobody']" in stderr


@pytest.mark.parametrize("command", ["again", "resume"])
def test_a_second_writer_gets_one_line(command, whole, tiles, tmp_path, capsys):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    (out / "summary.json").unlink()
    with locked(out, "busy"):
        assert main(command_of(tiles, out) if command == "again" else ["train", "--resume", "--out", str(out)]) == 1
    assert f"another process trains in {out}; wait for its end" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "metrics.jsonl", "nonfinite"])
def test_links_in_a_run_folder_are_not_written_through(name, whole, tiles, tmp_path, capsys):
    out, elsewhere = Path(shutil.copytree(whole, tmp_path / "run")), tmp_path / "elsewhere"
    (out / "summary.json").unlink()
    if (out / name).exists():
        (out / name).rename(elsewhere)
    (out / name).symlink_to(elsewhere)
    assert main(command_of(tiles, out)) == 1
    assert f"{out / name} is a link to {elsewhere}" in capsys.readouterr().err
    linked = tmp_path / "linked"
    (out / name).unlink()
    if elsewhere.exists():
        elsewhere.rename(out / name)
    linked.symlink_to(out)
    assert main(["train", "--resume", "--out", str(linked)]) == 0, "the run folder itself may be a link"


def test_an_index_folder_that_is_a_file_is_named(tiles, tmp_path, capsys):
    (tmp_path / "file").touch()
    command = command_of(tiles, tmp_path / "run", "--set", f"data.index_folder={tmp_path / 'file'}")
    assert main(command) == 1
    assert f"the index folder {tmp_path / 'file'} is a file" in capsys.readouterr().err


def test_two_that_begin_at_once_do_not_share_a_folder(tiles, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run", "busy"):
        assert main(command_of(tiles, tmp_path / "run")) == 1
    assert "another process trains in" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
