"""The commands and the SLURM script of docs/cluster.md, the script with signals sent to a stand-in for srun."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.pages import blocks
from helpers.paths import ROOT
from helpers.tiles import write_folder

from fastmtl.cli import main
from fastmtl.config.resuming import MAY_CHANGE

BLOCKS = [block for block in blocks() if block.page == "cluster.md"]
ONE, MACHINE, MACHINES, SLURM = BLOCKS
SMALL = ["--epochs", "1", "--size", "32", "--batch-size", "2", "--set", "model.base_channels=4"]

SRUN = """#!/bin/bash
echo "$@" > arguments
trap 'exit 137' TERM  # srun kills its tasks
touch begun
for _ in $(seq $TENTHS); do
    if [ -f received ]; then exit $CODE_IF_STOPPED; fi
    sleep 0.1
done
exit $CODE
"""
SCANCEL = """#!/bin/bash
echo "$@" > received
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" >> requeued; else echo first; echo second; fi
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A folder with the script and what it calls."""
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL), ("job.sh", SLURM.text)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def _start(job: Path, *, code: int, tenths: int = 0, code_if_stopped: int = 1) -> subprocess.Popen:
    variables = {"SLURM_JOB_ID": "42", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "CODE": str(code)}
    variables |= {
        "SLURM_CPUS_PER_TASK": "32",
        "TENTHS": str(tenths),
        "CODE_IF_STOPPED": str(code_if_stopped),
        "PATH": f"{job}:{os.environ['PATH']}",
    }
    return subprocess.Popen(["bash", "job.sh"], cwd=job, env=os.environ | variables)


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137])
def test_a_job_that_got_no_signal_is_not_queued_again(code, job):
    assert _start(job, code=code).wait(timeout=30) == code
    assert not (job / "requeued").exists()
    arguments = (job / "arguments").read_text().split()
    assert arguments[:5] == ["--cpus-per-task", "32", "torchrun", "--nnodes", "2"]
    assert {"first:20042", "42"} < set(arguments)


@pytest.mark.parametrize(
    ("number", "code", "requeued"),
    [
        (signal.SIGUSR1, 1, True),
        (signal.SIGUSR1, 75, True),
        (signal.SIGUSR1, 0, False),  # the training had just ended by itself
        (signal.SIGTERM, 1, False),
        (signal.SIGTERM, 75, False),
    ],
)
def test_a_signal_reaches_the_training_and_the_one_before_the_time_limit_queues_it_again(number, code, requeued, job):
    """SIGTERM is what `scancel JOB` sends: the user wants it to end."""
    process = _start(job, code=99, tenths=300, code_if_stopped=code)
    while not (job / "begun").exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert (job / "received").read_text() == "--signal=TERM 42\n"
    assert (job / "requeued").exists() == requeued
    if requeued:
        assert (job / "requeued").read_text() == "42\n"


@pytest.mark.long
def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "DIR", {"Normal": 6, "Polyp": 6}, size=32)
    for words in ONE.commands:
        assert main([*words[1:], *(() if "--resume" in words else SMALL)]) == 0
    assert capsys.readouterr().err.count("already finished") == 2
    for block in (MACHINE, MACHINES):
        words = shlex.split(block.text.replace("\\\n", ""))
        assert words[0] == "torchrun"
        assert main([*words[words.index("fastmtl") + 1 :], *SMALL]) == 0
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_the_page_lists_what_may_change():
    text = (ROOT / "docs" / "cluster.md").read_text()
    section = text.partition("### What may change\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`([a-z_.*]+)`", " ".join(rows))) == sorted(MAY_CHANGE)
