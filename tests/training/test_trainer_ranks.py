"""The trainer and the command line on two ranks: one process with both ranks' batches, agreed on every end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import two_trainers as _two_trainers
from torch.multiprocessing.spawn import spawn

from fastmtl import data
from fastmtl.builders import components
from fastmtl.cli import main
from fastmtl.config import ConfigError
from fastmtl.distributed import World

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder) -> list[dict]:
    """What both ranks found, all cases of this file in one pair of processes."""
    arguments = (str(folder / "rendezvous"), str(folder))
    spawn(_two_trainers.main, args=arguments, nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _near(found, wanted) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name in wanted:
            _near(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            _near(one, other)
    elif isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-6)
    else:
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in _two_trainers.RUNS if name != "norm"])
def test_two_ranks_are_one_process_with_both_batches(results, name):
    """Weights, losses and validation, over eight steps of SGD; missing labels, once all of a rank's."""
    balancer, options = _two_trainers.RUNS[name]
    alone = _two_trainers.trained(World(), balancer, **options)
    for rank in results:
        for kind in ("weights", "records"):
            # A validation loss is the mean over batches, whose missing labels fall otherwise here.
            found, wanted = (
                [_without_loss(r) for r in run[kind]] if kind == "records" else run[kind] for run in (rank[name], alone)
            )
            _near(found, wanted)


def _without_loss(record: dict) -> dict:
    if "validation" not in record:
        return record
    kept = {name: value for name, value in record["validation"].items() if name != "loss"}
    return record | {"validation": kept}


@pytest.mark.parametrize("name", _two_trainers.RUNS)
def test_ranks_hold_the_same_bits(results, name):
    """Running statistics of BatchNorm too, and every figure that decides something."""
    first, second = (rank[name] for rank in results)
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    assert first["records"] == second["records"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("how", ["nan", "inf"])
def test_a_bad_loss_on_one_rank_stops_both(results, how, fused):
    """A loss that is infinite with a finite gradient too; nobody takes the step."""
    for rank in results:
        case = rank[f"{how} {fused}"]
        assert "loss of task 'side' was NaN or infinite in 1 of the steps" in case["message"]
        assert all(value.isfinite().all() for value in case["weights"].values())
    first, second = (rank[f"{how} {fused}"]["weights"] for rank in results)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("policy", ["skip", "restore"])
def test_both_ranks_skip_the_step_or_go_back(results, policy):
    """Averaged weights and running statistics stay finite, and the same bits on both."""
    first, second = (rank[policy] for rank in results)
    assert first["step"] == second["step"] == 8
    assert first["record"]["skipped"] == second["record"]["skipped"] == 1
    assert first["restores"] == second["restores"] == (policy == "restore")
    assert first["record"]["loss"] == second["record"]["loss"]
    for name, value in first["weights"].items():
        assert value.isfinite().all()
        assert torch.equal(value, second["weights"][name])


@pytest.mark.parametrize("balancer", ["pcgrad", "db_mtl"])
def test_one_rank_asked_to_stop_stops_both_and_resume_is_bit_equal(results, balancer):
    """From rank 0's checkpoint alone; a step later, because nobody waits for the others' answer."""
    for rank in results:
        case = rank[f"stopped {balancer}"]
        assert case["message"] == "stopped at epoch 1, step 4"
        assert all(torch.equal(value, case["whole"][name]) for name, value in case["ours"].items())
        assert case["losses"][0] == case["losses"][1]


def test_stages_on_two_ranks_stop_and_go_on_bit_equal(results, folder):
    """With a frozen encoder, averaged weights, and a learning rate that both find."""
    for rank in results:
        whole, cut = rank["staged 0"], rank["staged 7"]
        assert cut["message"].startswith("stopped at epoch 2")
        assert whole["progress"] == cut["progress"]
        assert whole["progress"][:4] == ["frozen", 1, 3, 12]
        assert all(torch.equal(value, cut["weights"][name]) for name, value in whole["weights"].items())
        assert all(torch.equal(v, results[0]["staged 0"]["weights"][n]) for n, v in whole["weights"].items())


def test_one_process_continues_what_two_ranks_began(results, folder):
    found, whole = _two_trainers.alone_after(folder / "pcgrad"), results[0]["stopped pcgrad"]
    (note,) = found["notes"]
    assert note.startswith("continues on 1 rank what 2 ranks began: not bit-equal")
    _near(found["weights"], whole["whole"])
    _near(found["loss"], whole["losses"][1])


def test_a_rank_without_a_gpu_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="local rank 1 has no GPU: this machine has 1"):
        components.device_of("auto", 1)


def test_a_stop_in_the_validation_leaves_it_on_both_ranks(results):
    """With numbers of batches that differ, so that the ranks must agree on more than their own."""
    for rank in results:
        found = rank["cut in validation"]
        assert found["message"] == "stopped in the validation of epoch 1, step 4"
        assert found["pending"]
        whole, again = found["weights"]
        assert all(torch.equal(value, again[name]) for name, value in whole.items())
        assert found["epochs"][0] == found["epochs"][1]


SMALL = ["--size", "32", "--batch-size", "2", "--precision", "float32", "--set", "model.base_channels=4"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "colon"
    return data.generate(root, num_patients=6, tiles_per_patient=4, tile_size=64, num_slides=0)


def _start(arguments: list[str], last: tuple[str, ...] = (), ranks: int = 2) -> list[subprocess.Popen]:
    """The command line on two ranks or more, as torchrun starts them; the last one with further arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "fastmtl", "train", *arguments]
    common = os.environ | {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    commands = [command] * (ranks - 1) + [[*command, *last]]
    return [subprocess.Popen(one, env=more, **pipes) for one, more in zip(commands, environments, strict=True)]


def _until(file: Path, processes: list[subprocess.Popen]) -> None:
    for _ in range(4800):  # a machine may be busy with other tests
        if file.exists() or any(process.poll() is not None for process in processes):
            return
        time.sleep(0.05)


@pytest.mark.slow
def test_the_command_line_on_two_ranks(tiles, tmp_path):
    """One run folder, rank 0's; the other rank prints nothing."""
    out = tmp_path / "run"
    ranks = _start(["demo", "--data", str(tiles), "--out", str(out), "--epochs", "1", *SMALL])
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    assert "ranks: 2 (ddp)" in outputs[0][1]
    assert "epoch 1/1" in outputs[0][1]
    assert "fastmtl" not in outputs[1][1] + outputs[1][0]
    assert "epoch" not in outputs[1][1] + outputs[1][0]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_images"] == len((out / "evaluation.jsonl").read_text().splitlines())
    assert main(["train", "--resume", "--out", str(out)]) == 0, "it is finished"
    assert json.loads((out / "run.json").read_text())["ranks"] == 2


@pytest.mark.slow
def test_stop_resume_and_a_killed_rank(tiles, tmp_path, capsys):
    options = ["demo", "--data", str(tiles), "--epochs", "3", "--log-every", "1", *SMALL]
    whole = _start([*options, "--out", str(tmp_path / "whole")])
    outputs = [process.communicate(timeout=120) for process in whole]
    assert [process.returncode for process in whole] == [0, 0], outputs
    cut = tmp_path / "cut"
    ranks = _start([*options, "--out", str(cut)])
    _until(cut / "metrics.jsonl", ranks)
    ranks[1].send_signal(signal.SIGTERM)  # one of them is enough
    outputs = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [75, 75], outputs
    assert f"continue with: torchrun ... -m fastmtl train --resume --out {cut}" in outputs[0][1]
    assert "stopped" not in outputs[1][1], "rank 0 says it for both"
    alone = shutil.copytree(cut, tmp_path / "alone")
    three = _start(["--resume", "--out", str(alone)], ranks=3)
    outputs = [process.communicate(timeout=120) for process in three]
    assert [process.returncode for process in three] == [1, 1, 1], outputs
    assert "takes 4 images in each step, 2 on each of 2 ranks, and 4 is not divisible by 3;" in outputs[0][1]
    assert main(["train", "--resume", "--out", str(alone)]) == 0
    assert "note: continues on 1 rank what 2 ranks began" in " ".join("".join(capsys.readouterr()).split())

    again = _start(["--resume", "--out", str(cut)])
    outputs = [process.communicate(timeout=120) for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    losses = [
        [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (tmp_path / "whole", cut)
    ]
    assert losses[0] == losses[1]

    killed = _start([*options, "--out", str(tmp_path / "killed"), "--epochs", "300"])
    _until(tmp_path / "killed" / "metrics.jsonl", killed)
    killed[1].kill()
    started = time.monotonic()
    stderr = killed[0].communicate(timeout=120)[1]
    killed[1].communicate()
    assert time.monotonic() - started < 60  # of which the most is the end of the process
    assert killed[0].returncode == 1
    assert stderr.strip().splitlines()[-1] == (
        "fastmtl: rank 1 has ended without a message (killed, or out of memory?); see the log of its machine."
    )


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank_and_the_run_continues(tiles, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "2", "-m", "fastmtl", "train", "demo", "--data", str(tiles), "--out", str(run)]
    command += [*SMALL, "--epochs", "4"]
    agent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _until(run / "metrics.jsonl", [agent])
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    stderr = agent.communicate(timeout=240)[1]
    assert agent.returncode == 0, stderr
    assert "resumed at " in stderr
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert [json.loads(line)["changes"] for line in (run / "resumes.jsonl").read_text().splitlines()] == [{}]


@pytest.mark.slow
def test_ranks_of_different_recipes_are_refused(tiles, tmp_path):
    out = tmp_path / "run"
    ranks = _start(["demo", "--data", str(tiles), "--out", str(out), *SMALL], ("--lr", "0.5"))
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1]
    assert "fastmtl: rank 1 differs from rank 0: recipe optimizer.lr = 0.5 (rank 0: " in outputs[0][1]
    assert not out.exists()
