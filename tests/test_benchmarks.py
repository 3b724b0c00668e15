"""The benchmark harness: nothing wrong is timed, what fails is named, the rest goes on, rows are kept and compared."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich", reason="the tables need rich")

from fastmtl.benchmarks import codegen, registry, run, store
from fastmtl.benchmarks.measure import measure, recording_cost
from fastmtl.benchmarks.registry import Case

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def _right(inputs):
    return lambda: (inputs["x"] * 2,)


def _wrong(inputs):
    return lambda: (inputs["x"] * 3,)


def _nan(inputs):
    return lambda: (inputs["x"] * float("nan"),)


def _raise(error: Exception, inputs):
    raise error


def _fail_later(inputs):
    """Right at first, then the third run finds no memory: after parity and the look at its peak."""
    calls = iter([False, False, True])

    def work():
        if next(calls):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return (inputs["x"] * 2,)

    return work


def _case(contenders, **options) -> Case:
    return Case(
        op="double",
        shape="[1000] float32",
        mode="forward",
        make=lambda device: {"x": torch.linspace(1, 2, 1000, device=device)},
        contenders=contenders,
        truth=lambda inputs: (inputs["x"].double() * 2,),
        **({"min_bytes": 8000, "tolerance": 1e-6} | options),
    )


@pytest.fixture
def only(monkeypatch):
    """Have `fastmtl bench` know this case alone, and measure the copy bandwidth in no time."""

    def choose(case: Case) -> None:
        monkeypatch.setattr(run, "cases", lambda pattern: [case] if pattern in case.title else [])
        monkeypatch.setattr(run, "load_cases", dict)
        monkeypatch.setattr(run, "copy_bandwidth", lambda device: 1e10)

    return choose


def test_cases_have_titles_of_their_own_and_begin_with_ours():
    cases = registry.cases()
    titles = [case.title for case in cases]
    assert len(set(titles)) == len(titles) > 10
    assert all(next(iter(case.contenders)) == "fastmtl" for case in cases)
    assert all(name in case.contenders for case in cases for name in case.figures)


def test_what_fails_is_named_and_the_rest_is_timed():
    contenders = {
        "fastmtl": _right,
        "wrong": _wrong,
        "nan": _nan,
        "missing": partial(_raise, ModuleNotFoundError("No module named 'apex'", name="apex")),
        "broken import": partial(_raise, RuntimeError("operator torchvision::nms does not exist\nmore")),
        "no memory": partial(_raise, MemoryError()),
        "no memory later": _fail_later,
        "peer": _right,
    }
    rows = {row.contender: row for row in measure(_case(contenders), CPU, rounds=2)}
    assert list(rows) == list(contenders)
    assert rows["wrong"].note == "parity failed: relative error 5.0e-01 > 1e-06"
    assert rows["nan"].note.startswith("parity failed")
    assert rows["missing"].note == "not installed: apex"
    assert rows["broken import"].note == "failed: RuntimeError: operator torchvision::nms does not exist"
    assert rows["no memory"].note == rows["no memory later"].note == "out of memory"
    for name in ("fastmtl", "peer"):
        assert not rows[name].note
        assert 0 < rows[name].p20 <= rows[name].p50 <= rows[name].p80
    assert rows["fastmtl"].ratio == 1


def test_a_case_without_inputs_is_named():
    def make(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    case = Case("op", "shape", "mode", make, {"fastmtl": _right, "peer": _right}, 0, 0, _right)
    assert [row.note for row in measure(case, CPU, rounds=1)] == ["no inputs: out of memory"] * 2


def test_measuring_costs_far_less_than_a_percent_of_a_step():
    assert recording_cost(CPU) < 100e-6  # the demo's step takes over 50 ms even on fast processors


def test_rows_are_appended_and_compared(only, tmp_path, monkeypatch, capsys):
    only(_case({"fastmtl": _right, "peer": _right}, items=10))
    out = tmp_path / "new" / "rows.csv"
    facts = run.environment()
    monkeypatch.setattr(run, "environment", lambda: facts | {"commit": "a" * 40})
    assert run.main(["--rounds", "2", "--out", str(out)]) == 0
    monkeypatch.setattr(run, "environment", lambda: facts | {"commit": "b" * 40 + "+"})
    monkeypatch.setattr(store, "resolve", lambda revision: {"then": "a" * 40, "now": "b" * 40}[revision])
    assert run.main(["--rounds", "2", "--out", str(out), "--compare", "then"]) == 0
    assert "now / then" in capsys.readouterr().out
    rows = store.read(out)
    assert [row["contender"] for row in rows] == ["fastmtl", "peer"] * 2
    assert [row["commit"] for row in rows] == ["a" * 12] * 2 + ["b" * 12 + "+"] * 2
    first = rows[0]
    assert first["gb_per_s"] == pytest.approx(8000 / (first["p50_ms"] * 1e6), rel=1e-2)
    assert first["items_per_s"] == pytest.approx(10e3 / first["p50_ms"], rel=1e-2)
    (ours, _peer) = store.compare(rows[2:], rows, "a" * 40)
    assert (ours.before, ours.now) == (first["p50_ms"], rows[2]["p50_ms"])
    assert not store.compare([row | {"device": "another"} for row in rows[2:]], rows, "a" * 40)


def test_nothing_to_compare_with_is_said_after_measuring(only, tmp_path, monkeypatch, capsys):
    only(_case({"fastmtl": _right}))
    monkeypatch.setattr(store, "resolve", lambda revision: "c" * 40)
    assert run.main(["--rounds", "1", "--out", str(tmp_path / "rows.csv"), "--compare", "v9"]) == 1
    captured = capsys.readouterr()
    assert "fastmtl" in captured.out
    assert "has no rows of v9" in captured.err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "a,b\n1,2\n", "first line must name the columns"),
        (lambda text: text + "2026-01-01,abc\n", "line 3: 2 cells where"),
        (lambda text: text.replace("8000", "many"), "line 2: .*many.* is no value of its column"),
    ],
)
def test_a_broken_file_is_named_and_new_rows_go_beside_it(only, tmp_path, capsys, damage, message):
    only(_case({"fastmtl": _right}))
    out = tmp_path / "rows.csv"
    assert run.main(["--rounds", "1", "--out", str(out)]) == 0
    broken = damage(out.read_text())
    out.write_text(broken)
    with pytest.raises(store.BrokenFile, match=message):
        store.read(out)
    assert run.main(["--rounds", "1", "--out", str(out)]) == 1
    assert str(out) in capsys.readouterr().err
    assert out.read_text() == broken
    assert len(store.read(tmp_path / "rows.new.csv")) == 1


def test_a_peer_that_is_left_out_ends_in_status_1(only, tmp_path, capsys):
    only(_case({"fastmtl": _right, "peer": partial(_raise, ImportError("no", name="peer"))}))
    assert run.main(["--rounds", "1", "--out", str(tmp_path / "rows.csv")]) == 1
    assert "not installed: peer" in capsys.readouterr().out
    assert [row["note"] for row in store.read(tmp_path / "rows.csv")] == ["", "not installed: peer"]


def test_plots_are_drawn_from_stored_rows(only, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    only(_case({"fastmtl": _right, "peer": _right}))
    out = tmp_path / "rows.csv"
    run.main(["--rounds", "2", "--out", str(out)])
    assert run.main(["--plot", "--out", str(out)]) == 0
    pictures = sorted(tmp_path.glob("*.svg"))
    assert [picture.name.split("-")[0] for picture in pictures] == ["roofline", "speedup"]
    assert "peer" in pictures[1].read_text()


def test_the_codegen_table_goes_between_its_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("above\n<!-- codegen: begin -->\nold\n<!-- codegen: end -->\nbelow\n")
    codegen.write("new", page)
    assert page.read_text() == "above\n<!-- codegen: begin -->\nnew\n<!-- codegen: end -->\nbelow\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has lost its markers"):
        codegen.write("new", page)


def test_on_gpu_script_says_when_there_is_no_gpu(tmp_path):
    script = ROOT / "benchmarks" / "on_gpu.sh"
    subprocess.run(["bash", "-n", script], check=True)
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([script, "sanitize"], **options)
    assert done.returncode == 0, done.stderr
    assert "no GPU here" in done.stdout
    assert (tmp_path / "sanitize.done").exists()
    assert "sanitize is done" in subprocess.run([script, "sanitize"], **options).stdout
    assert subprocess.run([script, "everything"], **options).returncode == 2
