"""Figures across rows: the right panels for a tiny run of each paper, the same images for all rows, and what is missing
is said in a line."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from helpers.published import write_for_recipes

from fastmtl.cli import main
from fastmtl.reproduce import figures, plan, samples
from fastmtl.reproduce.plan import Result, RunKey

pytest.importorskip("matplotlib")
CPU = ("training.device=cpu", "training.precision=float32")
ROWS = {
    "mask2tasks": ("single_resnet50", "two_stage"),
    "joint_unet": ("dice_15", "bce_15"),
    "gi_tract": ("small", "contrastive"),
    "switched_aux": ("unet_r101_normal", "unet_r101_switched"),
    "unet_multi": ("mtl_class", "mtl_rec"),
}
FILES = {
    "mask2tasks": {"losses", "predictions-segmentation", "saliency-classification"},
    "joint_unet": {"losses", "predictions-mask", "roc-intensity"},
    "gi_tract": {"losses", "predictions-organs", "errors-organs"},
    "switched_aux": {"losses", "predictions-mask"},
    "unet_multi": {"losses", "predictions-mask", "features"},
}


@pytest.fixture
def drawn(monkeypatch):
    """File name -> the figure that was written."""
    from matplotlib.figure import Figure

    found, real = {}, Figure.savefig

    def savefig(self, path, **options):
        found[Path(path).stem] = self
        return real(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


@pytest.fixture(scope="module", params=ROWS)
def tiny(request, tmp_path_factory):
    """(paper, folder) of a reproduction of two rows at scale tiny, one fold."""
    folder = tmp_path_factory.mktemp(request.param)
    root = write_for_recipes(request.param, folder / "data")
    folds = ("--folds", "1") if plan(request.param)[0].num_folds > 1 else ()
    options = ("--scale", "tiny", "--samples", "0", "--set", *CPU, "--out", str(folder / "out"))
    rows = ("--rows", *ROWS[request.param])
    assert main(["reproduce", request.param, "--data", str(root), *folds, *rows, *options]) == 0
    return request.param, folder / "out"


def _results(paper, out):
    results = [Result(row) for row in plan(paper, scale="tiny", rows=ROWS[paper])]
    for result in results:
        folder = out / result.row.name / "fold-0"
        result.folders[RunKey(0)] = folder
        result.summaries[RunKey(0)] = json.loads((folder / "summary.json").read_text())
    return results


def _titles(figure):
    return [axes.get_title().replace("\n", " ") for axes in figure.axes if axes.get_title()]


@pytest.mark.long
def test_every_paper_has_its_figures_with_a_panel_for_each_row(tiny, drawn, tmp_path):
    paper, out = tiny
    results, notes = _results(paper, out), []
    written = figures.write_figures(results, tmp_path, "tiny", 2, notes.append)
    assert not notes
    assert all(path.stat().st_size > 5_000 for path in written)
    names = {path.stem for path in written}
    # A curve needs both classes among the few held-out images of a tiny run.
    assert FILES[paper] - {"roc-intensity"} <= names
    rows = [figures.title(result) for result in results]
    for name in names:
        if name.startswith("predictions"):
            having = [r for r, result in zip(rows, results, strict=True) if "single" not in result.row.name]
            assert _titles(drawn[name])[1:] == having
            assert len(drawn[name].axes) == 2 * (1 + len(having))
    axes = drawn["losses"].axes
    tasks = list(dict.fromkeys(task for result in results for task in result.row.recipe.tasks))
    assert len(axes) == len(results) * (len(tasks) + (len(tasks) > 1))
    if paper == "mask2tasks":
        assert sorted(_titles(drawn["saliency-classification"])[1:]) == sorted(rows)
        marked = [text.get_text().strip() for one in axes for text in one.texts]
        assert set(marked) == {"classification"}, "the second stage is marked"
    if paper == "unet_multi":
        assert _titles(drawn["features"]) == ["input", *(f"conv {number}" for number in range(1, 11))]
        assert len(drawn["features"].axes) == 2 * 2 * 11
    if paper == "gi_tract":
        assert _titles(drawn["errors-organs"]) == ["large bowel", "small bowel", "stomach"]


@pytest.mark.long
@pytest.mark.parametrize("tiny", ["unet_multi"], indirect=True)
def test_all_rows_show_the_same_images_and_what_cannot_be_shown_is_said(tiny, drawn, tmp_path):
    paper, out = tiny
    copy = shutil.copytree(out, tmp_path / "out")
    results, notes = _results(paper, copy), []
    seen = samples.see(results, 2, notes.append)
    assert seen is not None
    assert list(seen.by_row) == list(ROWS[paper])
    for found in seen.by_row.values():
        assert [one.id for one in found] == list(seen.ids)
    again = samples.see(results, 2, notes.append)
    assert again is not None
    assert again.ids == seen.ids
    named = samples.see(results, [seen.ids[1]], notes.append)
    assert named is not None
    assert named.ids == [seen.ids[1]]
    figures.write_figures(results, tmp_path, "tiny", ["nobody"], notes.append)
    assert len(notes) == 1
    assert "--samples: no row held out an image 'nobody'" in notes[0]
    notes.clear()
    shutil.rmtree(results[0].folders[RunKey(0)] / "checkpoints")
    written = figures.write_figures(results, tmp_path, "tiny", 2, notes.append)
    assert len(notes) == 1
    assert notes[0].startswith("mtl_class is not in the figures of images: ")
    assert _titles(drawn["predictions-mask"])[1:] == [figures.title(results[1])]
    single = figures.write_figures(results[1:], tmp_path, "tiny", 1, notes.append)
    assert {path.stem for path in single} == {path.stem for path in written}


def test_rows_without_runs_have_the_published_values_alone(tmp_path):
    results = [Result(row, failures={RunKey(0): "RuntimeError: no"}) for row in plan("mask2tasks", rows=["pcgrad"])]
    assert figures.write_figures(results, tmp_path, "tiny") == []


def test_images_come_from_every_class_in_the_order_of_their_names():
    lines = [
        {"id": f"{name}/{number}", "tasks": {"kind": {"class": name}, "mask": {"true_area": 0.1 * (number > 3)}}}
        for name in ("b", "a")
        for number in range(8)
    ]
    assert samples.choose([lines, lines[::-1]], 4) == ["a/5", "a/7", "b/5", "b/7"]
    assert samples.choose([lines, lines[:8]], 2) == ["b/5", "b/7"], "both rows held out b alone"
    assert samples.choose([lines, []], 2) == []
    assert samples.choose([lines], 99) == samples.choose([lines[::-1]], 99)


def test_without_matplotlib_a_plain_sentence_says_so(tmp_path, monkeypatch):
    from fastmtl.utils.optional_imports import MissingExtra

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"drawing the figures needs matplotlib; install it with: pip install"):
        figures.write_figures([Result(row) for row in plan("mask2tasks", rows=["pcgrad"])], tmp_path, "tiny")
