"""What ranks print of an error: a line of rank 0 for all that share it, and a line each of every other one."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fastmtl.cli import doctor, main, rank_lines
from fastmtl.training.errors import Interrupted


@pytest.fixture
def store(monkeypatch):
    """torchrun's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(rank_lines, "_SECONDS", 1.0)
    for name, value in (("ADDR", "127.0.0.1"), ("PORT", str(port))):
        monkeypatch.setenv(f"MASTER_{name}", value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)


def _printed(rank, error, monkeypatch, capsys):
    def failing(_arguments):
        raise error

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(doctor, "doctor", failing)
    assert main(["doctor"]) in (1, 75)
    return capsys.readouterr().err


def test_an_error_of_all_ranks_is_a_line_of_rank_0(store, monkeypatch, capsys):
    shared, own = ValueError("no recipe 'demmo'"), ValueError("tile 7 cannot be read")
    assert _printed(0, shared, monkeypatch, capsys) == "fastmtl: no recipe 'demmo'\n"
    assert _printed(1, shared, monkeypatch, capsys) == ""
    assert _printed(2, own, monkeypatch, capsys) == "fastmtl: rank 2: tile 7 cannot be read\n"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert _printed(1, shared, monkeypatch, capsys) == "fastmtl: rank 1: no recipe 'demmo'\n"


def test_a_rank_waits_for_rank_0_and_a_signal_does_not_end_it_silently(store, monkeypatch, capsys):
    """torchrun sends SIGTERM to the others once a rank has ended."""
    error, signals = ValueError("no recipe 'demmo'"), []
    monkeypatch.setattr(rank_lines, "_SECONDS", 60.0)
    before = signal.signal(signal.SIGTERM, lambda *_: signals.append(1))

    def later():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        rank_lines.say_printed("another error")

    thread = threading.Thread(target=later)
    try:
        thread.start()
        assert _printed(1, error, monkeypatch, capsys) == "fastmtl: rank 1: no recipe 'demmo'\n"
        thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == []


@pytest.mark.parametrize("gone", ["no torchrun", "no store"])
def test_without_a_word_of_rank_0_each_rank_prints(gone, store, monkeypatch, capsys):
    if gone == "no torchrun":
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    assert _printed(0, ValueError("x"), monkeypatch, capsys) == "fastmtl: x\n"
    assert _printed(1, ValueError("x"), monkeypatch, capsys) == "fastmtl: rank 1: x\n"


def test_a_stop_that_all_ranks_agreed_on_is_a_line_of_rank_0(monkeypatch, capsys):
    agreed, own = Interrupted("stopped at step 4", of_all_ranks=True), Interrupted("stopped by SIGTERM")
    assert _printed(0, agreed, monkeypatch, capsys) == "fastmtl: stopped at step 4\n"
    assert _printed(1, agreed, monkeypatch, capsys) == ""
    assert _printed(1, own, monkeypatch, capsys) == "fastmtl: rank 1: stopped by SIGTERM\n"


@pytest.mark.slow
def test_a_wrong_recipe_is_one_line_of_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastmtl"]
    command += ["train", "demmo", "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fastmtl:")]
    assert line.startswith("fastmtl: unknown recipe 'demmo'")
