"""The benchmark harness: nothing wrong is timed, what fails is named, the rest goes on, rows are kept and compared."""

from __future__ import annotations

import csv
import re
from functools import partial

import pytest
import torch

pytest.importorskip("rich", reason="the tables need rich")

import fastmtl
from fastmtl.benchmarks import codegen, registry, run, store
from fastmtl.benchmarks.machine import contender_version
from fastmtl.benchmarks.measure import measure
from fastmtl.benchmarks.registry import Case

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


def test_a_case_that_fails_as_a_whole_gets_one_line(only, capsys):
    def make(device):
        raise MemoryError

    only(Case("op", "shape", "mode", make, {"fastmtl": _right, "peer": _right}, 0, 0, _right))
    assert run.main(["--rounds", "1"]) == run.FAILED
    _head, line = capsys.readouterr().out.splitlines()
    assert line == "left out, every contender of op  shape  mode: no inputs: out of memory"


@pytest.mark.long
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
    for name in ("device", "instructions", "torch"):
        assert not store.compare([row | {name: "another"} for row in rows[2:]], rows, "a" * 40)
    assert first["rounds"] == 2
    assert first["contender_version"] == f"fastmtl {fastmtl.__version__}"
    assert rows[1]["contender_version"].startswith("torch 2")


def test_nothing_to_compare_with_is_said_before_measuring(only, tmp_path, monkeypatch, capsys):
    only(_case({"fastmtl": _right}))
    out, options = tmp_path / "rows.csv", ["--rounds", "1", "--out", str(tmp_path / "rows.csv")]
    monkeypatch.setattr(store, "resolve", lambda revision: "c" * 40)

    def refused():
        assert run.main([*options, "--compare", "v9"]) == run.WRONG_USAGE
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    assert "does not exist" in refused()
    assert run.main(options) == 0
    capsys.readouterr()
    assert "no rows of it" in refused()
    rows = [row | {"commit": "c" * 12, "torch": "1.0", "instructions": "mmx"} for row in store.read(out)]
    store.append(out, rows)
    assert re.search(r"rows of it from .*, mmx, torch 1\.0, warm cache, and this would be .*, torch 2", refused())
    store.append(out, [row | {"op": "triple"} for row in rows])
    store.append(out, [row | {"commit": "d" * 12, "op": "triple"} for row in rows])
    monkeypatch.setattr(store, "resolve", lambda revision: "d" * 40)
    assert "of other cases" in refused()


@pytest.mark.long
def test_rows_of_before_the_newest_columns_are_read_and_widened(only, tmp_path):
    only(_case({"fastmtl": _right, "peer": _right}))
    out = tmp_path / "rows.csv"
    old = [row | {"rounds": "", "contender_version": ""} for row in _stored_rows(out)]
    with out.open("w", newline="") as file:
        columns = [name for name in store.COLUMNS if name not in ("rounds", "contender_version")]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(old)
    before = store.read(out)
    assert [(row["rounds"], row["contender_version"]) for row in before] == [(None, "")] * 2
    assert run.main(["--rounds", "3", "--out", str(out)]) == 0
    after = store.read(out)
    assert after[:2] == before
    assert [row["rounds"] for row in after[2:]] == [3, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def _stored_rows(out):
    assert run.main(["--rounds", "1", "--out", str(out)]) == 0
    return store.read(out)


def test_committed_rows_are_where_compare_and_plot_look_for_them():
    for path in store.RESULTS.glob("*.csv"):
        rows = store.read(path)
        assert {store.default_path(row["device"], row["instructions"]) for row in rows} == {path}


def test_out_must_not_be_a_folder(only, tmp_path, capsys):
    only(_case({"fastmtl": _right}))
    assert run.main(["--out", str(tmp_path)]) == run.WRONG_USAGE
    assert capsys.readouterr().err.count(str(tmp_path)) == 1
    assert run.main(["--plot", "--out", str(tmp_path / "none.csv")]) == run.FAILED
    assert capsys.readouterr().err == f"fastmtl bench: {tmp_path / 'none.csv'}: No such file or directory.\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "a,b\n1,2\n", "first line must name the columns"),
        (lambda text: text + "2026-01-01,abc\n", "line 3: 2 cells instead"),
        (lambda text: text.replace("8000", "many"), "line 2: .*many.* is not valid in its column"),
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


@pytest.mark.long
def test_a_peer_that_is_left_out_ends_in_a_status_of_its_own(only, tmp_path, capsys):
    only(_case({"fastmtl": _right, "peer": partial(_raise, ImportError("no", name="peer"))}))
    assert run.main(["--rounds", "1", "--out", str(tmp_path / "rows.csv")]) == run.LEFT_OUT
    assert "not installed: peer" in capsys.readouterr().out
    assert [row["note"] for row in store.read(tmp_path / "rows.csv")] == ["", "not installed: peer"]
    only(_case({"fastmtl": _right, "peer": partial(_raise, ImportError("no", name="peer")), "wrong": _wrong}))
    assert run.main(["--rounds", "1"]) == run.FAILED


def test_what_columns_mean_is_said_once(only, capsys):
    case = _case({"fastmtl": _right, "read x": _right}, figures={"read x": 2})
    only(case)
    assert run.main(["--rounds", "1"]) == 0
    said = capsys.readouterr().out
    for name in ("times fastmtl", "aim", "of copy bandwidth", "read x"):
        assert said.count(f"  {name}: ") == 1


def test_a_contender_names_its_package():
    pytest.importorskip("matplotlib", reason="a package whose version is known to be there")
    assert contender_version("matplotlib bars").startswith("matplotlib 3")
    assert contender_version("torch.cat of .grad") == contender_version("pairwise loop")


def test_plots_are_drawn_from_stored_rows(only, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    only(_case({"fastmtl": _right, "peer": _right}))
    out = tmp_path / "rows.csv"
    run.main(["--rounds", "2", "--out", str(out)])
    assert run.main(["--plot", "--out", str(out)]) == 0
    pictures = sorted(tmp_path.glob("*.svg"))
    assert [picture.name.split("-")[0] for picture in pictures] == ["roofline", "speedup"]
    assert "peer" in pictures[1].read_text()


def test_a_plot_keeps_cases_without_kept_memory_and_tells_floors_from_peers(only, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from fastmtl.benchmarks import plot

    only(_case({"fastmtl": _right, "peer": _right, "read x": _right}))
    rows = _stored_rows(tmp_path / "rows.csv")
    kept = [row | {"kept_memory": True, "contender": row["contender"]} for row in rows]
    other = [row | {"op": "triple"} for row in rows]
    older = [row | {"torch": "1.0"} for row in rows]
    groups = plot._groups([*older, *rows, *kept, *other])
    assert list(groups) == ["double  [1000] float32  forward *", "triple  [1000] float32  forward"]
    assert groups["double  [1000] float32  forward *"] == kept
    speedup, roofline = plot.draw([*rows, *kept, *other], tmp_path)
    assert "floor: read x" in speedup.read_text()
    assert "double, floor" in roofline.read_text()


def test_the_codegen_table_goes_between_its_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("above\n<!-- codegen: begin -->\nold\n<!-- codegen: end -->\nbelow\n")
    codegen.write("new", page)
    assert page.read_text() == "above\n<!-- codegen: begin -->\nnew\n<!-- codegen: end -->\nbelow\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has lost its markers"):
        codegen.write("new", page)
