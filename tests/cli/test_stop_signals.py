"""Signals that ask a training to stop: it saves and leaves with exit code 75, wherever it is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.tiles import write_folder
from rich.console import Console

from fastmtl import api
from fastmtl.api import scoring, training
from fastmtl.api.stop_signals import SIGNALS, StopSignals
from fastmtl.cli import main
from fastmtl.config import load_recipe
from fastmtl.training import checkpoint
from fastmtl.training.checkpoint_names import history
from fastmtl.training.errors import Interrupted
from fastmtl.training.run_dir import RunFolder
from fastmtl.training.trainer import Trainer

SMALL = ["--epochs", "2", "--size", "32", "--batch-size", "2", "--precision", "float32"]
SMALL += ["--set", "model.base_channels=2"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "tiles"
    write_folder(root, {"a": 6, "b": 4}, size=32)
    return root


def _signalled(monkeypatch, owner, name, number, at=1):
    """Send this process a signal at the `at`-th call of a function, before it runs."""
    function, calls = getattr(owner, name), []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)


@pytest.fixture(autouse=True)
def received():
    """Signals that the tests' own process was started to ignore (under nohup, or in the background)."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_in_training_it_stops_after_the_step_and_saves(number, tiles, tmp_path, monkeypatch, capsys):
    before = [signal.getsignal(one) for one in SIGNALS]
    _signalled(monkeypatch, Trainer, "step", number, at=2)
    run = tmp_path / "run"
    assert main(["train", "demo", "--data", str(tiles), "--out", str(run), *SMALL]) == 75
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line == f"fastmtl: stopped at epoch 1, step 2; continue with: fastmtl train --resume --out {run}"
    assert checkpoint.load(run / "checkpoints" / "last")["progress"]["step"] == 2
    assert [signal.getsignal(one) for one in SIGNALS] == before


@pytest.mark.parametrize(
    ("owner", "name", "message", "steps"),
    [
        (training, "assemble", "run the same command again", []),
        (RunFolder, "create", "stopped by SIGTERM; run the same command again", []),
        (Trainer, "evaluate", "stopped in the validation of epoch 1, step 3; continue with", [0, 3]),
        (RunFolder, "on_epoch", "stopped at epoch 2, step 4; continue with", [3, 4]),
        (scoring, "evaluate_model", "stopped by SIGTERM; continue with", [3, 6]),
    ],
)
def test_elsewhere_it_leaves_at_once(owner, name, message, steps, tiles, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        _signalled(patched, owner, name, signal.SIGTERM)
        assert main(["train", "demo", "--data", str(tiles), "--out", str(run), *SMALL]) == 75
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [one.step for one in history(run / "checkpoints")] == steps
    assert main(["train", "demo", "--data", str(tiles), "--out", str(run), *SMALL]) == 0
    assert [record["epoch"] for record in RunFolder(run).records()] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_schedulers_repeat_their_signals(number):
    asked = []

    def three_times():
        with StopSignals(Path("run")) as signals, signals.asking(lambda: asked.append(1)):
            for _ in range(3):
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=f"stopped by {number.name}"):
        three_times()
    assert asked == [1]


def _second_interrupt(seconds):
    with StopSignals(Path("run")) as signals, signals.asking(lambda: None):
        signal.raise_signal(signal.SIGINT)
        time.sleep(seconds)
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_leaves_at_once(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)  # tests may run in the background
    with pytest.raises(KeyboardInterrupt):
        _second_interrupt(0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # whose first Ctrl-C arrives twice
    with pytest.raises(Interrupted):
        _second_interrupt(0)
    monkeypatch.setattr("fastmtl.api.stop_signals._REPEATED", 0.01)
    with pytest.raises(KeyboardInterrupt):
        _second_interrupt(0.02)


def test_ignored_signals_stay_ignored():
    """Of nohup, for example: closing the terminal does not stop the training."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(Path("run")):
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_waits_for_a_save_that_has_begun(tiles, tmp_path, monkeypatch):
    write = checkpoint.write

    def slow(path, *arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        write(path, *arguments, **options)

    monkeypatch.setattr(checkpoint, "write", slow)
    recipe = load_recipe("demo", {"data": {"size": 32, "batch_size": 2}, "model": {"base_channels": 2}})
    with pytest.raises(Interrupted, match="stopped at epoch 1, step 1"):
        api.train(recipe, tiles, tmp_path / "run", console=Console(quiet=True))
    assert [one.step for one in history(tmp_path / "run" / "checkpoints")] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_from_the_signal_to_the_exit(number, tiles, tmp_path):
    """Of a process in training: 10 seconds, more on a machine that is busy with other tests."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "fastmtl", "train", "demo", "--data", str(tiles), "--out", str(run), *SMALL]

    def heeded():  # a shell starts background jobs with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen([*command, "--epochs", "5000"], stderr=subprocess.PIPE, text=True, preexec_fn=heeded)
    for _ in range(4800):
        if len(RunFolder(run).records()) > 1 or process.poll() is not None:
            break
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(number)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 75, stderr
    assert time.monotonic() - started < 10 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
