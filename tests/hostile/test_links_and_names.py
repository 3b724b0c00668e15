"""Paths and links lead out of no folder that was given, and names change no page."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.checkpoints import save_checkpoint
from helpers.tiles import random_pixels, write_image

from fastmtl import config, data
from fastmtl.config import ConfigError
from fastmtl.evaluation.analyse import FILE as ANALYSES
from fastmtl.evaluation.per_image import ImageTable
from fastmtl.prediction.output_dir import inside
from fastmtl.report import read_run, render, render_comparison
from fastmtl.training import checkpoint
from fastmtl.training.file_lock import locked
from fastmtl.training.run_dir import RunError
from fastmtl.utils.atomic_io import append, empty_folder


@pytest.mark.parametrize(
    "base", ["../secret", "/etc/secret", "a/../../secret", "..", "", "a\\..\\b", "x" * 5000, "a\0", ["a"], 3]
)
def test_a_recipe_extends_no_file_elsewhere(tmp_path, base):
    (tmp_path / "secret.toml").write_text("[training]\nepochs = 3\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "r.toml").write_text(f"extends = {json.dumps(base)}\n")
    with pytest.raises(ConfigError, match=r"r\.toml: `extends` names a built-in recipe or a file in"):
        config.load_recipe(tmp_path / "own" / "r.toml")


def test_bases_below_the_recipe_and_chains_without_end(tmp_path):
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "one.toml").write_text('extends = "demo"\n[training]\nepochs = 7\n')
    (tmp_path / "r.toml").write_text('extends = "bases/one"\n')
    assert config.load_recipe(tmp_path / "r.toml").training.epochs == 7
    for number in range(1500):
        (tmp_path / f"c{number}.toml").write_text(f'extends = "c{number + 1}"\n')
    with pytest.raises(ConfigError, match="recipe c0 extends more than 20 recipes"):
        config.load_recipe(tmp_path / "c0.toml")


def test_what_is_removed_or_written_is_in_the_folder_and_not_where_a_link_leads(tmp_path):
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    run.mkdir()
    kept = write_image(outside / "kept.jpg", random_pixels(0, 8))
    for name in ("analyses", "tiles", "last", "last.tmp", "last.old"):
        (run / name).symlink_to(outside)
    empty_folder(run / "analyses")
    assert not (run / "analyses").is_symlink()
    for _ in range(2):
        try:
            save_checkpoint(run / "last", {"a": 1})
        except (OSError, checkpoint.CheckpointError) as error:
            assert "last" in str(error)  # noqa: PT017
    assert sorted(path.name for path in outside.iterdir()) == [kept.name]
    (run / "metrics.jsonl").symlink_to(outside / "profile")
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        append(run / "metrics.jsonl", "rm\n")
    assert not (outside / "profile").exists()
    (run / "sub").symlink_to(outside)
    assert inside(run, "a/b.png") == run / "a" / "b.png"
    for name in ("sub/a.png", "sub/more/a.png", "../a.png", "/a.png", "a\0"):
        with pytest.raises(RunError):
            inside(run, name)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_makes_no_file_elsewhere_and_waits_for_no_pipe(tmp_path, kind):
    run, lock = tmp_path / "run", tmp_path / "run" / ".lock"
    run.mkdir()
    make = {
        "link": lambda: lock.symlink_to(tmp_path / "outside"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }
    make[kind]()
    with pytest.raises(RunError, match=r"\.lock is not the file that fastmtl locks.*remove it"), locked(run, "busy"):
        pass
    assert not (tmp_path / "outside").exists()


def test_thumbnails_of_an_evaluation_are_not_removed_elsewhere(tmp_path):
    (tmp_path / "outside").mkdir()
    photo = write_image(tmp_path / "outside" / "photo.jpg", random_pixels(0, 8))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tiles").symlink_to(tmp_path / "outside")
    ImageTable([]).write(tmp_path / "run", {})
    assert photo.exists()
    assert not (tmp_path / "run" / "tiles").is_symlink()


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</style></title><svg onload=alert(1)>",
    "a\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe\N{LEFT-TO-RIGHT ISOLATE}",
    "&lt;b&gt;\0\x1b[31m",
    "--><!--",
]


class _Page(HTMLParser):
    """The elements and attributes of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {(tag, "")} | {(tag, name) for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]


def hostile_run(folder: Path, names: list[str], picture: str = "tiles/001.jpg") -> Path:
    """A run folder in which every name is one of `names` in turn."""
    import tomli_w

    (folder / "tiles").mkdir(parents=True)
    write_image(folder / "tiles" / "001.jpg", random_pixels(0, 8))
    one, two = names[0], names[-1] + "2"
    recipe = {"name": one, "summary": two, "tasks": {one: {"kind": one}, two: {"kind": "classification"}}}
    recipe |= {"model": {"name": two, one: two}, "balancer": {"name": one}, "data": {"root": two}}
    (folder / "config.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    scores = {one: {"dice": 0.5, one: 0.25, "per_class": {two: 0.5}}, two: {"accuracy": 0.5}}
    loss = {one: 1.0, two: 0.5}
    lines = [
        {"epoch": n, "step": n, "loss": loss, "lr": 0.1, "seconds": 1.0, "waiting": 0.5, "stage": names[n % len(names)],
         "images_per_second": 3.0, "validation": {"loss": loss, "tasks": scores, "score": 0.5}}
        for n in (1, 2)
    ]  # fmt: skip
    looks = [{"step": n, "loss": loss, "norms": [1, 2], "weights": [1, 1], "cosines": [[1, 0], [0, 1]]} for n in (1, 2)]
    chosen = {"class": one, "predicted": two, "probabilities": {one: 0.25, two: 0.75}, "probability": 0.75}
    images = [
        {"id": f"{name}/{name}", "patient": name, "tasks": {
            one: {"dice": 0.5, "score": 0.5, "thumbnail": picture, "shown": "worst", "true_area": 0.5,
                  "predicted_area": 0.5},
            two: chosen | {"class": (one, two)[number % 2], "thumbnail": picture, "score": 0.5},
        }}
        for number, name in enumerate(names)
    ]  # fmt: skip
    analyses = {
        "failed": {one: two}, "images": [{"id": images[0]["id"], "picture": picture}],
        "saliency": [{"image": 0, "task": one, "picture": picture, "on_true": 0.5, "true_area": 0.5}],
        "features": {"maps": [{"picture": picture, "stride": one, "channels": two, "height": one, "width": two}]},
        "filters": {"picture": picture, "count": 3, "shown": 2, "size": [one, two]},
    }  # fmt: skip
    facts = {"data": one, "split": two, "class_names": [one, two], "classes": {one: [two]}, "notices": names}
    facts |= {"training_patients": [], "validation_patients": names, "inner_patients": []}
    environment = {"fastmtl": one, "commit": two, "gpus": [one], "processor": two, "command": one, "packages": {}}
    summary = {"tasks": scores, "notices": [f"{name}: {name}" for name in names], "num_images": 4, "chosen_by": one}
    for name, content in (
        ("run.json", facts), ("environment.json", environment), ("summary.json", summary), (ANALYSES, analyses),
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(content))
    for name, content in (("metrics.jsonl", lines), ("balance.jsonl", looks), ("evaluation.jsonl", images)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in content))
    return folder


def _pages(folder: Path, names: list[str]) -> tuple[str, str]:
    run = read_run(hostile_run(folder, names))
    return render(run), render_comparison([run, read_run(folder)])


def test_names_are_text_on_every_page(tmp_path):
    plain = [f"name {number}" for number in range(len(HOSTILE))]
    known = [_Page(), _Page()]
    for parser, page in zip(known, _pages(tmp_path / "plain", plain), strict=True):
        parser.feed(page)
    for number in range(len(HOSTILE)):
        names = HOSTILE[number:] + HOSTILE[:number]
        for page, expected in zip(_pages(tmp_path / f"run{number}", names), known, strict=True):
            parser = _Page()
            parser.feed(page)
            assert parser.found <= expected.found, parser.found - expected.found
            assert all(link.startswith("data:image/") for link in parser.links)
            assert "default-src 'none'" in page
            assert not {"\N{RIGHT-TO-LEFT OVERRIDE}", "\N{LEFT-TO-RIGHT ISOLATE}", "\0", "\x1b"} & set(page)
        assert "a[U+202E]gpj.exe" in _pages(tmp_path / f"again{number}", names)[0]
    assert ("script", "") not in known[0].found
    assert not any(name.startswith("on") for _, name in known[0].found)


@pytest.mark.parametrize("way", ["link", "link of the folder", "../", "another file"])
def test_a_report_shows_no_file_from_elsewhere(tmp_path, way):
    (tmp_path / "private").mkdir()
    secret = write_image(tmp_path / "private" / "001.jpg", random_pixels(1, 8))
    folder = hostile_run(tmp_path / "run", ["a"], {"../": "../private/001.jpg"}.get(way, "tiles/001.jpg"))
    if way == "link":
        (folder / "tiles" / "001.jpg").unlink()
        (folder / "tiles" / "001.jpg").symlink_to(secret)
    elif way == "link of the folder":
        (folder / "tiles").rename(folder / "others")
        (folder / "tiles").symlink_to(secret.parent)
    elif way == "another file":
        folder = hostile_run(tmp_path / "other", ["a"], "tiles/key.pem")
        (folder / "tiles" / "key.pem").write_text("secret")
    run = read_run(folder)
    assert "<img" not in render(run)
    assert any("cannot be read" in problem for problem in run.problems)


@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_page(tmp_path):
    import shutil
    import subprocess

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium")
    for number in range(len(HOSTILE)):
        page = tmp_path / f"{number}.html"
        page.write_text(_pages(tmp_path / f"run{number}", HOSTILE[number:] + HOSTILE[:number])[0])
        # A script that ran would leave its mark in the text of the page.
        marked = page.read_text().replace("alert(1)", "document.title=String.fromCharCode(80,87,78)")
        page.write_text(marked)
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        assert "</html>" in shown
        assert "<title>PWN" not in shown


@pytest.mark.parametrize("cell", ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png"])
def test_a_manifest_names_no_file_elsewhere(tmp_path, cell):
    (tmp_path / "set").mkdir()
    write_image(tmp_path / "secret.png", random_pixels(0, 8))
    (tmp_path / "set" / "m.csv").write_text(f"image\n{cell}\n")
    with pytest.raises(ValueError, match=r"m\.csv, line 2: .* is outside the data root"):
        data.read_manifest(tmp_path / "set" / "m.csv")


def test_an_index_of_a_slide_that_no_scan_writes_is_ignored(tmp_path):
    from helpers.slides import tissue_like, write_tiff
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = write_tiff(tmp_path / "slide.tiff", tissue_like(), levels=2, compression="jpeg")
    data.index_slide(path)
    stored = tmp_path / ".fastmtl" / "slide.tiff.safetensors"
    with safe_open(stored, framework="numpy") as file:
        words, arrays = json.loads(file.metadata()["index"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert data.slides.index.load_index(path) is not None
    places = [("rasters", "level 0", key) for key in ("width", "height", "tile_width", "tile_height")]
    places += [("rasters", "level 0", "encoding", key) for key in words["rasters"]["level 0"]["encoding"]]
    places += [(key,) for key in words] + [("layout", key) for key in words["layout"]] + [("levels", 0, "width")]
    for place in places:
        for value in (-1, 0, 2**62, "x", [], {}, [[1]], 1.5, float("nan")):
            changed = json.loads(json.dumps(words))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            save_file(arrays, stored, {"index": json.dumps(changed)})
            with data.open_slide(path) as slide:
                assert slide.read_region(0, 0, 64, 64).shape == (64, 64, 3)
    for name in arrays:
        if arrays[name].size:
            save_file(arrays | {name: arrays[name][:-1]}, stored, {"index": json.dumps(words)})
            assert data.slides.index.load_index(path) is None
    stored.unlink()
    os.mkfifo(stored)
    assert data.slides.index.load_index(path) is None
