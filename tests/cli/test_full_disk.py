"""A disk that is full, read-only or failing at any write of a run: it stops in one line or continues, by choice."""

import errno
import io
import json
import os
import resource
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers.broken_disk import BrokenDisk
from helpers.runs import killed_at
from helpers.small_runs import command_of

from fastmtl.cli import main
from fastmtl.training import checkpoint
from fastmtl.training.checkpoint_names import history
from fastmtl.training.trainer import Trainer


def _breaking(monkeypatch, disk, first, last=99):
    """The disk breaks before a step, and works again before another."""
    step = Trainer.step

    def stepping(trainer, batch):
        if trainer.world.rank == 0:
            disk.broken = first <= trainer.step_count + 1 < last
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "step", stepping)


def _lines(run, file):
    timed = ("seconds", "validation_seconds", "images_per_second", "waiting")
    timed += ("time", "memory_bytes", "update_gb_per_second")
    found = [json.loads(line) for line in (run / file).read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in timed} for record in found]


def _same(run, whole):
    """The same weights, epochs and steps."""
    found, wanted = (checkpoint.load(folder / "checkpoints" / "last") for folder in (run, whole))
    assert all(value.equal(found["model"][key]) for key, value in wanted["model"].items())
    for file in ("metrics.jsonl", "balance.jsonl"):
        assert _lines(run, file) == _lines(whole, file)


def _sound(run):
    """All checkpoints that bear the name of one are whole; returns the step of the newest."""
    saved = history(run / "checkpoints")
    for one in saved:
        checkpoint.verified(one.path)
    return saved[-1].step


def _no_half_lines(run):
    for path in run.glob("*.jsonl"):
        assert path.read_text().endswith("\n"), path.name
        for line in path.read_text().splitlines():
            json.loads(line)


IN_TRAINING = {
    "everything": ("", errno.ENOSPC),
    "everything is read-only": ("", errno.EROFS),
    "checkpoints": ("checkpoints/", errno.ENOSPC),
    "tensors": (r"checkpoints/.*tensors", errno.EDQUOT),
    "manifest": (r"checkpoints/.*manifest", errno.EIO),
    "epochs": ("metrics.jsonl", errno.ENOSPC),
    "steps": ("balance.jsonl", errno.EROFS),
    "curves": ("tensorboard", errno.ENOSPC),
}


@pytest.mark.long
@pytest.mark.parametrize("what", IN_TRAINING)
def test_in_training_it_stops_in_one_line_and_the_same_command_ends_where_a_whole_run_ends(
    what, tiles, whole, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    pattern, number = IN_TRAINING[what]
    with monkeypatch.context() as patched:
        disk = BrokenDisk(patched, out, pattern, number)
        _breaking(patched, disk, 3)
        assert main(command_of(tiles, out)) == 1
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert disk.refused
    assert last_line.startswith(f"fastmtl: {'checkpoint ' * ('checkpoints' in last_line)}{out}/{pattern.split('/')[0]}")
    assert f"cannot be written ({os.strerror(number)}" in last_line
    assert "continue with fastmtl train --resume" in last_line
    assert _sound(out) <= 3
    _no_half_lines(out)
    assert main(command_of(tiles, out)) == 0
    _same(out, whole)


@pytest.mark.long
@pytest.mark.parametrize("what", IN_TRAINING)
def test_by_choice_it_continues_and_nothing_is_missing_once_the_disk_works_again(
    what, tiles, whole, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    pattern, number = IN_TRAINING[what]
    with monkeypatch.context() as patched:
        disk = BrokenDisk(patched, out, pattern, number)
        _breaking(patched, disk, 2, 6)
        assert main(command_of(tiles, out, "--on-disk-error", "continue")) == 0
    stderr = capsys.readouterr().err
    assert disk.refused
    assert stderr.count("The training continues and tries again (training.on_disk_error)") == 1
    assert stderr.count("the disk can be written again") == 1
    _same(out, whole)
    (notice,) = [one for one in json.loads((out / "summary.json").read_text())["notices"] if "written" in one]
    assert os.strerror(number) in notice
    assert _sound(out) == 6


@pytest.mark.long
def test_a_training_that_ends_unsaved_says_so_and_continues_from_the_last_sound_checkpoint(
    tiles, whole, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    command = command_of(tiles, out, "--on-disk-error", "continue")
    with monkeypatch.context() as patched:
        _breaking(patched, BrokenDisk(patched, out, "checkpoints"), 4)
        assert main(command) == 1
    stderr = capsys.readouterr().err
    assert "step 6" not in stderr
    assert "it needs 0." in stderr.splitlines()[-1]
    assert "are free). Free space" in stderr.splitlines()[-1]
    assert _sound(out) == 3
    assert not (out / "summary.json").exists()
    assert main(command) == 0
    _same(out, whole)


@pytest.mark.long
def test_a_signal_on_a_full_disk_says_that_nothing_was_saved(tiles, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        _breaking(patched, BrokenDisk(patched, out, "checkpoints"), 2)
        asked = Trainer._asked
        patched.setattr(Trainer, "_asked", lambda trainer: 2 if trainer.step_count == 2 else asked(trainer))
        assert main(command_of(tiles, out, "--on-disk-error", "continue")) == 75
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert "stopped at epoch 1, step 2, but checkpoint " in last_line
    assert "cannot be written (No space left on device" in last_line
    assert _sound(out) == 0


@pytest.mark.long
def test_lines_that_could_not_be_written_are_not_lost_by_a_kill(tiles, whole, tmp_path, monkeypatch):
    """A checkpoint waits for the lines of its epochs."""
    out = tmp_path / "run"
    command = command_of(tiles, out, "--on-disk-error", "continue")
    with monkeypatch.context() as patched:
        disk = BrokenDisk(patched, out, r"(metrics|balance)\.jsonl")
        _breaking(patched, disk, 3)
        killed_at(partial(main, command), patched, Trainer, "evaluate", 2)
    assert not (out / "metrics.jsonl").exists()
    assert _sound(out) == 2
    assert main(command) == 0
    _same(out, whole)


@pytest.mark.long
@pytest.mark.parametrize("policy", ["stop", "continue"])
@pytest.mark.parametrize("file", ["summary.json", "evaluation.jsonl", "tiles", "analyses", "report.html"])
def test_at_the_end_the_run_says_that_it_is_trained_and_the_same_command_completes_it(
    file, policy, tiles, whole, tmp_path, monkeypatch, capsys
):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in ("summary.json", "report.html"):
        (out / name).unlink()
    command = command_of(tiles, out, "--on-disk-error", policy)
    with monkeypatch.context() as patched:
        disk = BrokenDisk(patched, out, file)
        disk.broken = True
        assert main(command) == 1
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert f"{file}" in last_line
    assert "cannot be read or written (No space left on device). The training is complete: free space" in last_line
    assert main(command) == 0
    assert json.loads((out / "summary.json").read_text()) == json.loads((whole / "summary.json").read_text())
    assert (out / "report.html").exists()


@pytest.mark.parametrize("policy", ["stop", "continue"])
@pytest.mark.parametrize("file", ["", ".lock", "split.json", "run.json", "environment.json", "config.toml"])
def test_at_the_start_nothing_begins_on_a_full_disk(file, policy, tiles, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    command = command_of(tiles, out, "--on-disk-error", policy)
    monkeypatch.setattr(Trainer, "fit", lambda *_: pytest.fail("it trains"))
    with monkeypatch.context() as patched:
        BrokenDisk(patched, out, file).broken = True
        assert main(command) == 1
    assert "No space left on device; free space, or choose another place" in capsys.readouterr().err
    assert not (out / "config.toml").exists()
    assert not list(out.glob(".*.part"))


class Full(io.StringIO):
    """Standard error, redirected to a full disk."""

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.long
def test_a_log_that_cannot_be_written_changes_neither_the_training_nor_the_exit_code(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    assert main(command_of(tiles, tmp_path / "run", "--epochs", "1")) == 0
    assert (tmp_path / "run" / "report.html").exists()
    _signal = Trainer._asked
    monkeypatch.setattr(Trainer, "_asked", lambda trainer: 2 if trainer.step_count == 5 else _signal(trainer))
    assert main(command_of(tiles, tmp_path / "run", "--epochs", "2")) == 75
    assert main(["train", "no such recipe"]) == 1


@pytest.mark.long
def test_a_real_limit_of_the_size_of_files(tiles, tmp_path, capsys):
    """Larger checkpoints than the limit; the lines fit."""
    out, (soft, hard) = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        assert main(command_of(tiles, out, "--on-disk-error", "continue")) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    stderr = capsys.readouterr().err
    assert "note: checkpoint " in stderr
    assert "cannot be written (File too large). Raise `ulimit -f`, and continue" in stderr.splitlines()[-1]
    assert not history(out / "checkpoints")
    assert [record["epoch"] for record in _lines(out, "metrics.jsonl")] == [1, 2]
