"""Where the time of a step goes: the clock, what the records say of it, and a profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.memory_loader import MemoryLoader
from helpers.paths import ROOT
from torch import nn

from fastmtl import balance
from fastmtl.training import step_clock
from fastmtl.training.profiling import ProfiledLoader
from fastmtl.training.step_clock import StepClock
from fastmtl.utils.phases import active_clock, not_timed, phase

CPU = torch.device("cpu")


def _batches(count, before=lambda: None):
    for _ in range(count):
        before()
        yield range(5)


def test_time_of_an_inner_phase_counts_once(monkeypatch):
    now = [100.0]

    def work(seconds):
        now[0] += seconds

    monkeypatch.setattr(step_clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = StepClock(CPU, num_ranks=2)
    for _ in clock.timed(_batches(2, before=lambda: work(1.0))):
        with phase("balance"):
            work(0.5)
            with phase("backward a"):
                work(2.0)
            work(0.5)
        work(1.0)
    found = clock.so_far()
    assert found["time"] == {"loader": 0.2, "balance": 0.2, "backward a": 0.4, "other": 0.2}
    assert found["waiting"] == 0.2
    assert found["images_per_second"] == 2.0  # 10 of each rank in 10 seconds
    assert found["memory_bytes"] > 1 << 20
    assert "update_gb_per_second" not in found


def test_the_share_of_reused_tiles_is_that_of_this_epoch():
    class Loader:
        tile_use = (10, 30)

        def __iter__(self):
            for _ in range(3):
                self.tile_use = self.tile_use[0] + 3, self.tile_use[1] + 1
                yield from _batches(1)

    clock = StepClock(CPU)
    assert len(list(clock.timed(Loader()))) == 3
    assert clock.so_far()["reused_tiles"] == 0.75
    clock = StepClock(CPU)
    list(clock.timed(_batches(2)))
    assert "reused_tiles" not in clock.so_far()


def test_a_pause_counts_nowhere(monkeypatch):
    now = [100.0]

    def work(seconds):
        now[0] += seconds

    def batch():
        work(1.0)
        with not_timed():
            work(50.0)

    monkeypatch.setattr(step_clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = StepClock(CPU)
    for _ in clock.timed(_batches(2, before=batch)):
        work(3.0)
    found = clock.so_far()
    assert found["time"] == {"loader": 0.25, "other": 0.75}
    assert found["waiting"] == 0.25
    assert found["images_per_second"] == 1.25
    assert clock.seconds == 8.0
    with not_timed():  # of no clock
        pass


def test_the_work_of_the_profiler_is_no_wait_for_data(tmp_path, monkeypatch):
    now = [100.0]

    def write(profiled, _found):
        profiled._done = True
        now[0] += 50.0

    monkeypatch.setattr(ProfiledLoader, "_write", write)
    monkeypatch.setattr(step_clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = StepClock(CPU)
    with ProfiledLoader(MemoryLoader(num_batches=10), tmp_path, print) as profiled:
        assert len(list(clock.timed(profiled))) == 10
    assert now == [150.0]
    assert clock.seconds == clock._waited == 0.0


def test_the_clock_is_active_only_in_its_loop_and_after_an_error_too():
    clock = StepClock(CPU)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for _ in clock.timed(_batches(2)):
            assert active_clock.get() is clock
            with phase("forward"):
                raise ZeroDivisionError
    assert clock._open == []
    del clock
    for _ in StepClock(CPU).timed(_batches(2)):
        break
    assert active_clock.get() is None


class _Event:
    """An event of a stream that runs behind the host: `now` is the host's count of launches, `done` the device's."""

    now = done = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        _Event.now += 1
        self.at = _Event.now

    def query(self):
        return self.at <= _Event.done

    def synchronize(self):
        _Event.done = max(_Event.done, self.at)

    def elapsed_time(self, end):
        assert self.query()
        assert end.query(), "the event has not happened"
        return 1000.0 * (end.at - self.at)


def test_on_a_gpu_events_are_read_at_looks_only(monkeypatch):
    ranges = []
    nvtx = SimpleNamespace(range_push=ranges.append, range_pop=lambda: ranges.append("pop"))
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "nvtx", nvtx)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 7)
    clock = StepClock(torch.device("cuda"), num_ranks=2)
    for number, _ in enumerate(clock.timed(_batches(3000))):
        with phase("forward"), phase("communication"):
            pass
        if number < 2000:
            assert _Event.done == 0, "the host waited"
        else:
            _Event.done = _Event.now - 10  # the device has caught up: old events are used again
    assert len(clock._events) <= 4096
    assert len(clock._unused) > 100
    found = clock.so_far()
    wanted = {"loader": 1 / 6, "forward": 2 / 6, "communication": 1 / 6, "other": 2 / 6}
    assert found["time"] == pytest.approx(wanted, abs=2e-4)
    assert found["memory_bytes"] == 7
    assert ranges[:7] == ["loader", "pop", "forward", "communication", "pop", "pop", "loader"]


@pytest.mark.parametrize("name", ["pcgrad", "linear", "gradnorm"])
def test_a_step_is_timed_by_task_and_the_fused_step_says_what_it_moved(name):
    torch.manual_seed(0)
    encoder, heads = nn.Linear(64, 64), nn.ModuleDict({"a": nn.Linear(64, 1), "b": nn.Linear(64, 2)})
    balancer = balance.create_balancer(name)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()])
    step, clock = balance.FusedStep(optimizer), StepClock(CPU)
    for _ in clock.timed(_batches(3)):
        z = encoder(torch.ones(4, 64))
        with phase("balance"):
            step(balancer, {task: head(z).square().mean() for task, head in heads.items()}, encoder.parameters())
    found = clock.so_far()
    backwards = {"backward a", "backward b"} if name == "pcgrad" else {"backward"}
    assert backwards < found["time"].keys()
    assert {"balance", "optimizer"} < found["time"].keys()
    shared, own = 64 * 65, 65 * 3
    # Parameter and moments both ways; the K = 2 rows once, or the gradient twice.
    expected = 4 * (shared * 8 + own * 8)
    assert clock._moved == 3 * expected
    assert found["update_gb_per_second"] == pytest.approx(clock._moved / 1e9 / clock._seconds["optimizer"])


def test_a_profile_of_a_few_steps_shows_the_phases(tmp_path):
    lines, loader = [], MemoryLoader(num_batches=6)
    with ProfiledLoader(loader, tmp_path / "profile", lines.append) as profiled:
        for _ in range(2):
            for batch in profiled:
                with phase("forward"):
                    batch.images.sum()
    assert len(lines) == 1
    assert str(tmp_path / "profile" / "trace.json") in lines[0]
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "forward" for event in events) == 4
    assert sum(event.get("name") == "aten::sum" for event in events) >= 4
    assert profiled.state_dict() == loader.state_dict()
    assert len(profiled) == 6


def test_a_training_too_short_for_a_profile_says_so(tmp_path):
    lines = []
    with ProfiledLoader(MemoryLoader(num_batches=4), tmp_path, lines.append) as profiled:
        for _ in profiled:
            pass
    assert lines == ["no profile: the training had fewer than 9 steps"]
    assert not any(tmp_path.iterdir())


PROFILE = """
import sys
from pathlib import Path
from helpers.memory_loader import MemoryLoader
from helpers.paths import ROOT
from fastmtl.training.profiling import ProfiledLoader

with ProfiledLoader(MemoryLoader(num_batches=10), Path(sys.argv[1]), print) as profiled:
    for _ in profiled:
        pass
"""


@pytest.mark.long
def test_the_profiler_prints_nothing_of_its_own(tmp_path):
    """In another process: Kineto reads its log level once."""
    command = [sys.executable, "-c", PROFILE, str(tmp_path)]
    path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("profile of 4 steps: ")
    assert done.stderr == ""


def test_a_profile_that_cannot_be_written_stops_no_training(tmp_path):
    lines = []
    (tmp_path / "profile").write_text("a file where the folder belongs")
    with ProfiledLoader(MemoryLoader(num_batches=10), tmp_path / "profile", lines.append) as profiled:
        assert len(list(profiled)) == 10
    assert len(lines) == 1
    assert lines[0].startswith(f"no profile: {tmp_path / 'profile' / 'trace.json'} cannot be written")
