"""Several ranks predict one input: the files are those of one rank, byte for byte, whatever was killed in between."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.pixel_model import lines_of
from helpers.runs import untrained, untrained_on_slides
from helpers.slides import patch_tile, tissue_like, write_tiff
from helpers.tiles import random_pixels, write_image

from fastmtl.cli import main
from fastmtl.prediction.records import read_records, rewrite
from fastmtl.prediction.sharing import share_helpers, share_slides


def _start(arguments: list[str], ranks: int) -> list[subprocess.Popen]:
    """`fastmtl predict` on so many ranks, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fastmtl", "predict", *arguments]
    environments = [os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return [subprocess.Popen(command, env=more, stderr=subprocess.PIPE, text=True) for more in environments]


def _finish(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    errors = [process.communicate(timeout=400)[1] for process in processes]
    return [process.returncode for process in processes], errors


def _files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _same(one: Path, two: Path) -> None:
    wanted, found = _files(one), _files(two)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_shares_are_of_equal_bytes_and_leave_nothing_out():
    sizes = {f"slide {number}": number % 7 * 100 + number for number in range(40)}
    shares = share_slides(sizes, 3)
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    totals = [sum(sizes[name] for name in share) for share in shares]
    assert max(totals) - min(totals) < max(sizes.values())
    assert share_slides({"one": 5}, 3) == [["one"], [], []]
    assert share_slides({"a": 0, "b": 0}, 2) == [["a"], ["b"]], "what cannot be read is shared too"


def test_lines_of_killed_ranks_are_joined_once(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"slide": "b", "y": 5, "x": 1}\n{"slide": "b", "y": 2, "x": 9}\n{"sli')
    (tmp_path / ".quarantine.1.jsonl").write_text('{"slide": "a"}\n{"slide": "b", "y": 5, "x": 1}\n{"slide": "c"}\n')
    kept = rewrite(path, "slide", lambda name: name != "c")
    assert [(record["slide"], record.get("y")) for record in kept] == [("a", None), ("b", 2), ("b", 5)]
    assert read_records(path, "slide") == kept == lines_of(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_slides_over_ranks_are_those_of_one_also_when_killed(tmp_path):
    slides, run = tmp_path / "slides", untrained_on_slides(tmp_path / "run", data={"tile_size": 32, "mpp": 0.5})
    slides.mkdir()
    for number, size in enumerate(((700, 400), (320, 300), (333, 201), (201, 333), (150, 150))):
        write_tiff(slides / f"{number}.tif", tissue_like(*size, seed=number), levels=2, compression="deflate")
    (slides / "torn.svs").write_bytes(b"II*\x00")
    one, many = tmp_path / "one", tmp_path / "many"
    assert main(["predict", str(run), str(slides), "--out", str(one)]) == 1
    arguments = [str(run), str(slides), "--out", str(many)]
    killed = _start(arguments, 2)
    for _ in range(6000):
        if list(many.glob("*/summary.json")) or any(process.poll() is not None for process in killed):
            break
        time.sleep(0.02)
    for process in killed:
        process.send_signal(signal.SIGKILL)
    _finish(killed)
    assert list(many.glob("*/summary.json"))
    for rest in sorted(many.glob("*/summary.json"))[1:]:  # leaves the three ranks something, however fast the two were
        shutil.rmtree(rest.parent)
    codes, errors = _finish(_start(arguments, 3))
    assert codes == [1, 1, 1], errors
    assert "1 could not be read" in errors[0]
    assert "could not be read" not in errors[1], "one summary"
    _same(one, many)
    codes, errors = _finish(_start(arguments, 2))  # of which one has no slide left, and the other a torn one
    assert codes == [1, 1]
    _same(one, many)


@pytest.mark.slow
@pytest.mark.parametrize("max_damaged", [0.2, 0.0], ids=["damaged tiles", "set aside"])
def test_ranks_without_a_slide_help_with_the_others(tmp_path, max_damaged):
    """Stains are those of the whole slide, and what is left out does not depend on the ranks."""
    stain = {"method": "macenko", "sample": 6, "min_tissue": 50}
    own = {"tile_size": 32, "mpp": 0.5, "overlap": 8, "stain": stain, "max_damaged": max_damaged}
    run, slides = untrained_on_slides(tmp_path / "run", data=own), tmp_path / "slides"
    slides.mkdir()
    slide = write_tiff(slides / "slide.tif", tissue_like(500, 400), compression="deflate")
    patch_tile(slide, 9, lambda part: part.__setitem__(slice(10, None), bytes(len(part) - 10)))
    one, three = tmp_path / "one", tmp_path / "three"
    assert main(["predict", str(run), str(slides), "--out", str(one)]) == (not max_damaged)
    codes, errors = _finish(_start([str(run), str(slides), "--out", str(three)], 3))
    assert codes == [int(not max_damaged)] * 3, errors
    assert [message.count("helps with slide.tif") for message in errors] == [0, 1, 1]
    _same(one, three)
    assert bool(lines_of(three / "predictions.jsonl")) == bool(max_damaged)
    assert lines_of(three / "quarantine.jsonl")


def test_helpers_are_asked_for_the_slides_with_the_most_bytes():
    shares = share_slides({"a": 10, "b": 30}, 6)
    assert shares == [["b"], ["a"], [], [], [], []]
    assert share_helpers({"a": 10, "b": 30}, shares) == {"b": [2, 3, 4], "a": [5]}
    assert share_helpers({}, [[], []]) == {}


@pytest.mark.slow
def test_a_failing_rank_ends_the_others(tmp_path):
    slides, run = tmp_path / "slides", untrained_on_slides(tmp_path / "run")
    slides.mkdir()
    write_tiff(slides / "large.tif", tissue_like(700, 700), compression="deflate")
    write_tiff(slides / "small.tif", tissue_like(400, 400), compression="deflate")
    out = tmp_path / "out"
    assert main(["predict", str(run), str(slides / "large.tif"), "--out", str(out)]) == 0
    shutil.rmtree(out / "large.tif")
    (out / "predicted_with.json").unlink()
    (out / "predictions.jsonl").unlink()
    (out / ".small.tif.part").write_text("a file in the way")
    codes, errors = _finish(_start([str(run), str(slides), "--out", str(out)], 2))
    assert codes == [1, 1]
    assert "rank 1 has ended: " in errors[0]
    assert "File exists" in errors[0]


@pytest.mark.slow
def test_images_over_ranks_are_those_of_one_without_the_damaged(tmp_path):
    images, run = tmp_path / "images", untrained(tmp_path / "run")
    for number in range(11):
        write_image(images / f"{number % 3}" / f"{number}.png", random_pixels(number, 40))
    torn = images / "1" / "4.png"
    torn.write_bytes(torn.read_bytes()[:60])
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["predict", str(run), str(images), "--out", str(one), "--on-damaged", "skip"]) == 1
    arguments = [str(run), str(images), "--out", str(two), "--on-damaged", "skip"]
    codes, errors = _finish(_start(arguments, 2))
    assert codes == [1, 1], errors
    assert "10 images, 1 could not be read (quarantine.jsonl)" in errors[0]
    _same(one, two)
    lines = (two / "predictions.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 10
    (two / "predictions.jsonl").write_text("".join(lines[:4]))
    (two / ".predictions.1.jsonl").write_text("".join(lines[8:]) + "{")  # as killed ranks leave them
    assert main(["predict", *arguments]) == 1
    _same(one, two)


def test_damaged_images_are_set_aside_or_refused(tmp_path, capsys):
    images, run = tmp_path / "images", untrained(tmp_path / "run")
    for name in "abc":
        write_image(images / f"{name}.png", random_pixels(1, 40))
    (images / "b.png").write_bytes(b"no image")
    arguments = ["predict", str(run), str(images), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "1 of 3 images cannot be read, first b.png: " in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.jsonl"))
    assert main([*arguments, "--on-damaged", "skip"]) == 1
    assert "2 images, 1 could not be read (quarantine.jsonl)" in capsys.readouterr().err
    (entry,) = lines_of(tmp_path / "out" / "quarantine.jsonl")
    assert (entry["image"], entry["file"]) == ("b.png", str(images / "b.png"))
    assert [line["image"] for line in lines_of(tmp_path / "out" / "predictions.jsonl")] == ["a.png", "c.png"]
    write_image(images / "b.png", random_pixels(1, 40))
    assert main(arguments) == 0
    assert "1 image, 2 were there already" in capsys.readouterr().err
    assert [line["image"] for line in lines_of(tmp_path / "out" / "predictions.jsonl")] == ["a.png", "b.png", "c.png"]
    assert not (tmp_path / "out" / "quarantine.jsonl").exists()
    skipping = untrained(tmp_path / "skipping", data={"on_damaged": "skip"})
    (images / "b.png").write_bytes(b"no image")
    assert main(["predict", str(skipping), str(images), "--out", str(tmp_path / "other")]) == 1
    assert len(lines_of(tmp_path / "other" / "predictions.jsonl")) == 2, "the recipe's data.on_damaged"
