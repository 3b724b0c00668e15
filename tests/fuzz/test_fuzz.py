"""Each reader of files on valid files that were changed: a result, or an error of ours in one line, in little time and
memory. `make fuzz` takes longer: FUZZ_SECONDS for each."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import pytest
from helpers.fuzz import SECONDS, fuzz, mutated
from helpers.geojson import feature, ring
from helpers.slides import tissue_like, write_tiff
from helpers.tiles import random_pixels, write_image
from hypothesis import strategies as st

from fastmtl import config, data
from fastmtl.errors import UserError
from fastmtl.models.weights import _read
from fastmtl.report import read_run, render

_TIMES = count()


@cache
def _folder() -> Path:
    folder = Path(mkdtemp(prefix="fuzz"))
    for name in ("a.png", "b.png"):
        write_image(folder / name, random_pixels(0, 12))
    return folder


def _of_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    def check(content: bytes) -> None:
        path = _folder() / name
        path.write_bytes(content)
        os.utime(path, ns=(0, next(_TIMES)))  # readers remember a file until its time changes
        try:
            read(path)
        except (ValueError, OSError, UserError) as error:
            assert len(str(error).splitlines()) <= 1, str(error)  # noqa: PT017
            assert name.partition(".")[0] in str(error), str(error)  # noqa: PT017

    return check


_RECIPE = b"""name = "fuzz"
summary = "A recipe, with 'quotes'."
extends = "demo"
without = ["tasks.mask"]
[data]
size = 64
columns = {grade = "number", box = "box"}
[tasks.grade]
kind = "regression"
column = "grade"
[training]
epochs = 3
epoch_scale = 0.5
[[stages]]
name = "one"
epochs = 1
[scales.tiny.data]
size = 32
"""
_MANIFEST = b"id,image,label,patient,age,box,mask\n1,a.png,x,p1,3,1 2 3 4,rle:12x12:1 3\n2,b.png,y,p2,,2 2 3 3,\n"
_GEOJSON = json.dumps(
    {"type": "FeatureCollection", "features": [feature([ring(0, 0, 9, 9), ring(2, 2, 3, 3)], label="a")] * 2}
).encode()
_SPLIT = json.dumps({"validation_patients": ["p2"], "train": ["a"], "validation": ["b"], "test": ["c"]}).encode()


def _slide() -> bytes:
    return write_tiff(_folder() / "sound.tiff", tissue_like(), levels=2, compression="jpeg").read_bytes()


def _safetensors() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"encoder.weight": torch.zeros(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}, {"format": "pt"})


def _look(path: Path) -> None:
    with data.open_slide(path) as slide:
        for number, level in enumerate(slide.levels[:4]):
            slide.read_region(0, 0, min(level.width, 128), min(level.height, 128), number)


def _runs(text: str) -> None:
    for order in ("row", "column"):
        try:
            assert data.RunLengths(text, 7, 9, order).draw().shape == (7, 9)  # type: ignore[arg-type]
        except ValueError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017


_REPORT = {
    "run.json": {"data": "d", "split": "s", "class_names": ["a"], "classes": {}, "validation_patients": ["p"]},
    "summary.json": {"tasks": {"t": {"dice": 0.5, "per_class": {"a": 1.0}}}, "notices": ["n"], "num_images": 2},
    "environment.json": {"fastmtl": "1", "threads": 2, "gpus": []},
}
_JSONL = (
    b'{"epoch": 1, "step": 2, "loss": {"t": 1.0}, "lr": 0.1, "seconds": 2, "waiting": 0.1, "images_per_second": 3}\n'
    b'{"epoch": 2, "step": 4, "loss": {"t": 0.5}, "validation": {"loss": {"t": 1}, "tasks": {"t": {"dice": 0.5}}}}\n'
)
_IMAGES = (
    b'{"id": "a/b", "patient": "p", "tasks": {"t": {"dice": 0.5, "score": 0.5, "thumbnail": "tiles/1.jpg"}}}\n'
    b'{"id": "c", "patient": "q", "tasks": {"u": {"class": "a", "predicted": "b", "probabilities": {"a": 1.0}}}}\n'
)


def _report(contents: dict[str, bytes]) -> None:
    run = _folder() / "run"
    run.mkdir(exist_ok=True)
    for name, content in contents.items():
        (run / name).write_bytes(content)
    page = render(read_run(run))
    assert page.startswith("<!doctype html>")
    assert "<script" not in page


def _targets() -> dict[str, tuple[st.SearchStrategy, Callable]]:
    names = st.text(max_size=8)
    lists = st.one_of(st.none(), st.integers(), st.lists(names, max_size=3))
    splits = st.dictionaries(st.sampled_from(["train", "validation", "validation_patients", "test"]), lists)
    words = st.lists(st.one_of(st.integers(-2, 70), st.integers(), names)).map(lambda found: " ".join(map(str, found)))
    sound = {name: json.dumps(content).encode() for name, content in _REPORT.items()}
    sound |= {"metrics.jsonl": _JSONL, "evaluation.jsonl": _IMAGES, "config.toml": _RECIPE}
    return {
        "recipe": (mutated(_RECIPE), _of_file("r.toml", config.load_recipe)),
        "manifest": (mutated(_MANIFEST), _of_file("m.csv", data.read_manifest)),
        "geojson": (mutated(_GEOJSON), _of_file("g.geojson", lambda path: data.Polygons(path, 0, 0, 16, 16).draw())),
        "split": (
            st.one_of(mutated(_SPLIT), splits.map(lambda found: json.dumps(found).encode())),
            _of_file("split.json", data.load_split),
        ),
        "tiff": (mutated(_slide()), _of_file("slide.tiff", _look)),
        "safetensors": (mutated(_safetensors()), _of_file("w.safetensors", lambda path: _read(path, path))),
        "run lengths": (words, _runs),
        "report": (st.fixed_dictionaries({name: mutated(content) for name, content in sound.items()}), _report),
    }


KINDS = ("recipe", "manifest", "geojson", "split", "tiff", "safetensors", "run lengths", "report")


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@pytest.mark.filterwarnings("ignore")  # a damaged file may earn a warning of its library
@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_give_a_result_or_one_line(kind):
    fuzz(*_targets()[kind])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_new_changes_for_a_minute(kind):
    fuzz(*_targets()[kind], seconds=SECONDS)
