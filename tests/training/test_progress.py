"""What a run leaves and shows while it trains: the lines of its folder, and the progress line."""

import io
import json
import re

import pytest
from rich.console import Console

from fastmtl.training.progress import ProgressLine
from fastmtl.training.run_dir import RunFolder

RECORD = {"epoch": 2, "loss": {"outline": 0.45, "kind": 0.6}, "images_per_second": 40.0, "waiting": 0.25}


def test_the_run_folder_keeps_what_the_balancer_did_and_forgets_what_a_resumed_run_repeats(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (2, 4, 6):
        balance = {"weights": [1.0, 2.0], "cosines": [[1.0, -0.2], [-0.2, 1.0]]}
        folder.on_step(step, 0, step, 6, {"loss": {"outline": 1.0, "kind": 1.0}, "balance": balance})
    folder.trim(epochs=0, steps=4)
    looks = [json.loads(line) for line in (tmp_path / "balance.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [2, 4]
    assert looks[0]["epoch"] == 1
    assert looks[0]["cosines"] == [[1.0, -0.2], [-0.2, 1.0]]


def test_tensorboard_reads_the_curves_of_a_run_and_of_its_continuation(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (2, 4):
        folder = RunFolder(tmp_path)
        folder.on_step(
            step, 0, step, 6, {"loss": {"outline": step / 8, "kind": 1.0}, "balance": {"weights": [1.0, 2.0]}}
        )
        folder.on_epoch(RECORD | {"epoch": step, "validation": {"tasks": {"outline": {"dice": 0.5, "classes": []}}}})
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2, "one for each process"
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    assert [(one.step, one.value) for one in seen.Scalars("loss/outline")] == [(2, 0.25), (4, 0.5)]
    assert [(one.step, one.value) for one in seen.Scalars("validation/outline/dice")] == [(2, 0.5), (4, 0.5)]
    assert {"weight/kind", "loss/kind"} <= set(seen.Tags()["scalars"])


def test_progress_tells_equal_metrics_of_two_tasks_apart():
    written = io.StringIO()
    scores = {"outline": {"dice": 0.5}, "kind": {"accuracy": 0.25}, "grade": {"accuracy": 1.0}}
    line = ProgressLine(2, Console(file=written, width=140, soft_wrap=True, highlight=False))
    line.on_epoch(RECORD | {"validation": {"tasks": scores}})
    assert "held out: dice 0.500  kind accuracy 0.250  grade accuracy 1.000  |" in written.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_says_speed_waiting_losses_and_time_left(terminal):
    written = io.StringIO()
    line = ProgressLine(2, Console(file=written, force_terminal=terminal, width=140, soft_wrap=True, highlight=False))
    seen = {"loss": {"outline": 0.5, "kind": 0.25}, "balance": {}, "images_per_second": 41.6, "waiting": 0.125}
    line.on_step(1, 0, 1, 4, seen)
    if terminal:
        line._bar.refresh()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())
        for said in ("epoch 1/2", "left", "42 images/s", "12% waiting for data", "outline 0.500", "kind 0.250"):
            assert said in shown
    line.on_epoch(RECORD)
    line.close()
    assert "40 images/s, 25% waiting for data" in written.getvalue()
    assert terminal or "\x1b" not in written.getvalue()


def test_progress_says_where_the_time_went_and_what_was_skipped():
    written = io.StringIO()
    line = ProgressLine(2, Console(file=written, width=140, soft_wrap=True, highlight=False))
    time = {"loader": 0.25, "forward": 0.4, "backward outline": 0.3, "optimizer": 0.046, "average": 0.004}
    seen = {"skipped": 2, "time": time, "memory_bytes": 3 << 29, "update_gb_per_second": 12.34, "reused_tiles": 0.9375}
    line.on_epoch(RECORD | seen)
    line.on_restore(120, 1, "the gradient was NaN.")
    line.close()
    shown = written.getvalue()
    assert "25% waiting for data, 94% of large tiles reused, 2 steps skipped\n" in shown
    assert (
        "time of epoch 2: loader 25%, forward 40%, backward outline 30%, optimizer 5%, update 12.3 GB/s, 1.5 GiB\n"
        in shown
    )
    assert "average" not in shown
    assert "the gradient was NaN. Back to epoch 2, step 120.\n" in shown
