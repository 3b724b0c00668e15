"""A long training: memory, open files and threads do not grow with its steps."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from helpers.memory import needs_statm, num_open_files, resident_bytes
from helpers.tiles import write_folder

from fastmtl import api
from fastmtl.config import load_recipe
from fastmtl.training.trainer import Trainer

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")

MEBIBYTE, STEPS, EVERY = 2**20, 2000, 50
SMALL = {
    "data": {"size": 16, "batch_size": 2},
    "model": {"base_channels": 2},
    "training": {"precision": "float32", "average": "ema", "checkpoint_steps": 20, "log_every": 5, "epochs": 20},
}


@pytest.mark.slow
@needs_statm
def test_two_thousand_steps_stay_flat(tmp_path: Path, monkeypatch):
    """With checkpoints, averaged weights, validation and records: all that `fastmtl train` does."""
    write_folder(tmp_path / "tiles", {"a": 125, "b": 125}, size=16)
    resident, files, threads, step = [], [], [], Trainer.step

    def measured(trainer, batch):
        if trainer.step_count % EVERY == 0:
            trainer.wait()  # otherwise a checkpoint may be being written
            resident.append(resident_bytes())
            files.append(num_open_files())
            threads.append(threading.active_count())
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "step", measured)
    api.train(load_recipe("demo", SMALL), tmp_path / "tiles", tmp_path / "run")
    assert len(resident) >= STEPS // EVERY
    quarter = len(resident) // 4
    first, last = min(resident[quarter : 2 * quarter]), min(resident[-quarter:])
    print(f"lowest resident memory, MiB: second quarter {first / MEBIBYTE:.1f}, last quarter {last / MEBIBYTE:.1f}")
    print(f"open files: {files}\nthreads: {threads}")
    assert last - first < 8 * MEBIBYTE
    assert max(files[quarter:]) <= max(files[:quarter])
    assert max(threads[quarter:]) <= max(threads[:quarter])
