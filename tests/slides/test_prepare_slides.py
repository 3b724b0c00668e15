"""`fastmtl prepare` on folders that are large, broken, interrupted or prepared before."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.slides import tissue_like, write_tiff
from helpers.tiles import random_pixels, write_folder, write_image
from rich.console import Console

from fastmtl import data
from fastmtl.cli import main
from fastmtl.cli.file_progress import FileProgress
from fastmtl.data.checks import damaged_tiles, prepare
from fastmtl.data.slides import indexing


def _slides(root: Path, number: int = 3) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for at in range(number):
        write_tiff(root / f"P{at}-1.tiff", tissue_like(seed=at), levels=2)
    return root


def _indexes(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (root / ".fastmtl").glob("*.safetensors")}


def test_a_second_call_scans_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = _slides(tmp_path / "d")
    for number in range(3):
        write_image(folder / f"P{number}-a.png", random_pixels(number))
    data.prepare(folder)
    before, text = _indexes(folder), (folder / "manifest.csv").read_text()
    (folder / ".fastmtl" / "P1-1.tiff.safetensors").unlink()
    scanned, decoded = [], []
    scan, check = indexing.scan, damaged_tiles.opened_image
    monkeypatch.setattr(indexing, "scan", lambda path, most: scanned.append(path.name) or scan(path, most))
    monkeypatch.setattr(damaged_tiles, "opened_image", lambda *a, **k: decoded.append(a) or check(*a, **k))
    prepared = data.prepare(folder)
    assert scanned == ["P1-1.tiff"]
    assert decoded == []
    assert prepared.existed
    assert (folder / "manifest.csv").read_text() == text
    after = _indexes(folder)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == ["P1-1.tiff.safetensors"]


def test_files_that_came_later_are_named_and_the_manifest_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = _slides(tmp_path / "d")
    assert main(["prepare", str(folder)]) == 0
    first = capsys.readouterr().out
    assert 'patients: 3, by file name (before the first "-"): P0, P1, P2; if that is wrong' in first
    edited = (folder / "manifest.csv").read_text().replace("patient", "group")
    (folder / "manifest.csv").write_text(edited)
    assert main(["prepare", str(folder)]) == 0
    write_tiff(folder / "P9-1.tiff", tissue_like(seed=9))
    said = capsys.readouterr().out
    assert "patients" not in said
    assert "passed over" not in said  # the manifest itself
    assert main(["prepare", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "manifest.csv was there and is unchanged; the folder has 0 tiles, 4 slides" in said
    assert "not in it: P9-1.tiff; add rows, or write another manifest with --out FILE" in said
    assert (folder / "manifest.csv").read_text() == edited
    assert "P9-1.tiff.safetensors" in _indexes(folder)


def test_a_manifest_that_somebody_writes_meanwhile_stays(tmp_path: Path):
    for number in range(3):
        write_image(tmp_path / f"P{number}-1.png", random_pixels(number, 32))
    own = "image,patient\nP0-1.png,mine\n"

    def written(done: int, total: int, path: Path) -> None:
        if done == total:
            (tmp_path / "manifest.csv").write_text(own)

    prepared = data.prepare(tmp_path, on_progress=written)
    assert (tmp_path / "manifest.csv").read_text() == own
    assert (prepared.existed, prepared.unnamed) == (True, ("P1-1.png", "P2-1.png"))


def test_other_patients_are_not_taken_from_a_manifest_that_is_there(tmp_path: Path):
    folder = _slides(tmp_path / "d", 2)
    data.prepare(folder)
    with pytest.raises(FileExistsError, match="already exists, and its patients are not read again; remove it"):
        data.prepare(folder, patient="P")


def test_one_broken_slide_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    folder = _slides(tmp_path / "d", 4)
    (folder / "P0-1.tiff").write_bytes(b"II*\0" + bytes(200))
    (folder / "P8-1.svs").write_bytes(b"")
    look = prepare._look_at_slide

    def failing(found, index_folder):
        if found.path.name == "P1-1.tiff":
            raise MemoryError("a reader fails in a way nobody thought of")
        look(found, index_folder)

    monkeypatch.setattr(prepare, "_look_at_slide", failing)
    assert main(["prepare", str(folder), "--workers", "3"]) == 1
    said = capsys.readouterr().out
    names = ", ".join(str(folder / name) for name in ("P0-1.tiff", "P1-1.tiff", "P8-1.svs"))
    assert f"left out: 3 files: {names}\n" in said
    assert "cannot be read: a reader fails in a way nobody thought of" in " ".join(said.split())
    assert len((folder / "manifest.csv").read_text().splitlines()) == 3  # the header, and two slides


@pytest.mark.parametrize("workers", [1, 4])
def test_the_order_and_the_contents_do_not_depend_on_the_workers(tmp_path: Path, workers: int):
    folder = _slides(tmp_path / "d", 6)
    out = tmp_path / f"{workers}.csv"
    prepared = data.prepare(folder, out, workers=workers)
    assert [one.path.name for one in prepared.found] == [f"P{n}-1.tiff" for n in range(6)]
    assert [row.split(",")[1] for row in out.read_text().splitlines()[1:]] == [f"d/P{n}-1.tiff" for n in range(6)]


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_workers_must_be_above_0(tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", str(_slides(tmp_path / "d", 1)), "--workers", workers]) == 1
    assert f"`workers` must be at least 1; got {workers}" in capsys.readouterr().err
    assert not (tmp_path / "d" / "manifest.csv").exists()


def test_a_prepare_that_is_killed_leaves_whole_files_and_goes_on(tmp_path: Path):
    folder = _slides(tmp_path / "d", 40)
    command = [sys.executable, "-m", "fastmtl", "prepare", str(folder), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while time.monotonic() < until and not _indexes(folder) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    there = _indexes(folder)
    assert 0 < len(there) < 40
    assert not (folder / "manifest.csv").exists()
    for slide in folder.glob("*.tiff"):
        if f"{slide.name}.safetensors" in there:
            with data.open_slide(slide) as opened:
                assert opened.levels
    assert main(["prepare", str(folder)]) == 0
    after = _indexes(folder)
    assert len(after) == 40
    assert {name: after[name] for name in there} == there
    assert len((folder / "manifest.csv").read_text().splitlines()) == 41


def test_a_tile_folder_is_prepared_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_folder(tmp_path / "data", {"A": 3, "B": 2})
    assert main(["prepare", str(tmp_path / "data"), "--json"]) == 0
    assert main(["prepare", str(tmp_path / "data"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.partition("}\n{")[2].join(["{", ""]))
    assert (found["existed"], found["unnamed"], len(found["files"])) == (True, [], 5)


def test_the_bar_shows_files_and_time_and_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch):
    terminal, log = io.StringIO(), io.StringIO()
    with FileProgress(Console(file=terminal, force_terminal=True, width=80)) as progress:
        progress(3, 40, Path("a/slide [3].svs"))
    assert "3/40 files" in terminal.getvalue()
    assert "slide [3].svs" in terminal.getvalue()
    monkeypatch.setattr("fastmtl.cli.file_progress._SECONDS_BETWEEN", -1.0)
    with FileProgress(Console(file=log)) as progress:
        progress(3, 40, Path("a/slide.svs"))
    assert log.getvalue() == "3 of 40 files\n"


def test_a_large_manifest_with_one_bad_cell_names_its_line_and_column(tmp_path: Path):
    rows = [f"t{n},{n}.png,{n % 90},P{n // 10}" for n in range(100_000)]
    rows[77_777] = rows[77_777].replace(",17,", ",1O,")
    (tmp_path / "m.csv").write_text("\n".join(["id,image,age,patient", *rows]))
    start = time.process_time()
    with pytest.raises(ValueError, match=r"m.csv, line 77779: age must be a number; got '1O'"):
        data.read_manifest(tmp_path / "m.csv", data.ManifestOptions(columns={"age": "number"}))
    assert time.process_time() - start < 30  # four seconds where this was written
    shutil.rmtree(tmp_path)
