"""`fastmtl predict` on slides: files, folders and manifests, stains, views, and a folder that is gone on with."""

import numpy as np
import pytest
from helpers.pixel_model import lines_of
from helpers.runs import untrained_on_slides
from helpers.slides import tissue_like, write_tiff
from helpers.tiles import write_image

from fastmtl import data
from fastmtl.cli import main


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return data.generate_slides(tmp_path_factory.mktemp("data") / "set", num_patients=3, slide_size=256)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_on_slides(tmp_path_factory.mktemp("runs") / "run")


def _predict(run, source, out, *flags):
    return main(["predict", str(run), str(source), "--out", str(out), *flags])


def test_a_folder_is_gone_on_with(run, slides, tmp_path, capsys):
    out = tmp_path / "out"
    (slides / "slides" / "torn.svs").write_bytes(b"II*\x00")
    try:
        assert _predict(run, slides, out) == 1
        assert "3 slides, 1 could not be read (quarantine.jsonl)" in capsys.readouterr().err
        (entry,) = lines_of(out / "quarantine.jsonl")
        assert entry["slide"] == "slides/torn.svs"
    finally:
        (slides / "slides" / "torn.svs").unlink()
    lines = lines_of(out / "predictions.jsonl")
    assert [line["slide"] for line in lines] == [f"slides/P00{number}-1.tiff" for number in (1, 2, 3)]
    for line in lines:
        assert (out / line["segmentation"]["mask"]).is_file()
        assert (out / line["segmentation"]["outlines"]).is_file()
        assert sum(line["classification"]["probabilities"].values()) == pytest.approx(1)
        assert line["tiles"] == len(lines_of(out / line["slide"] / "tiles.jsonl")) > 4
    assert _predict(run, slides, out) == 0
    assert "0 slides, 3 were there already" in capsys.readouterr().err
    assert lines_of(out / "predictions.jsonl") == lines
    assert _predict(run, slides, out, "--tta", "h") == 1
    assert "already holds predictions with other views" in capsys.readouterr().err


def test_one_slide_a_manifest_and_a_folder_are_predicted_alike(run, slides, tmp_path, capsys):
    assert _predict(run, slides / "manifest.csv", tmp_path / "manifest") == 0
    lines = lines_of(tmp_path / "manifest" / "predictions.jsonl")
    for line in lines:  # one after the other into one folder
        assert _predict(run, slides / line["slide"], tmp_path / "single") == 0
    assert "1 slide: " in capsys.readouterr().err
    for alone, listed in zip(lines_of(tmp_path / "single" / "predictions.jsonl"), lines, strict=True):
        assert alone["slide"] == listed["slide"].removeprefix("slides/")
        assert alone["segmentation"]["foreground"] == listed["segmentation"]["foreground"]
        assert alone["classification"] == listed["classification"]


def test_a_manifest_may_leave_its_folder_below_the_root_of_the_recipe(slides, tmp_path, capsys):
    (slides / "lists").mkdir(exist_ok=True)
    (slides / "lists" / "one.csv").write_text("slide,x\n../slides/P002-1.tiff,\n")
    within = untrained_on_slides(tmp_path / "within", data={"root": str(slides)})
    elsewhere = untrained_on_slides(tmp_path / "elsewhere", data={"root": str(tmp_path)})
    assert _predict(within, slides / "lists" / "one.csv", tmp_path / "out") == 0
    assert (tmp_path / "out" / "slides" / "P002-1.tiff" / "segmentation.tif").is_file()
    assert _predict(elsewhere, slides / "manifest.csv", tmp_path / "other") == 0
    assert _predict(elsewhere, slides / "lists" / "one.csv", tmp_path / "none") == 1
    assert "outside the data root" in capsys.readouterr().err


def test_views_and_stains_of_the_run_count(run, slides, tmp_path):
    slide = slides / "slides" / "P001-1.tiff"
    stained = untrained_on_slides(
        tmp_path / "run", data={"stain": {"method": "macenko", "sample": 4, "min_tissue": 50}}
    )
    found = {}
    for name, folder, flags in (("plain", run, ()), ("stained", stained, ()), ("views", run, ("--tta", "h", "v"))):
        assert _predict(folder, slide, tmp_path / name, *flags) == 0
        (line,) = lines_of(tmp_path / name / "predictions.jsonl")
        found[name] = line["classification"]["probabilities"]["Polyp"]
    assert len(set(found.values())) == 3
    assert found["views"] == pytest.approx(found["plain"], rel=0.5)


def test_which_files_are_slides(tmp_path, capsys, run):
    tile = tissue_like(60, 50)
    write_image(tmp_path / "mixed" / "plain.tif", tile)
    write_tiff(tmp_path / "mixed" / "cut.tif", tile, tile=16)
    write_image(tmp_path / "mixed" / "masks" / "cut.tif", np.zeros((50, 60), np.uint8))
    write_image(tmp_path / "mixed" / "picture.png", tile)
    (tmp_path / "mixed" / "torn.tiff").write_bytes(b"II*\x00")
    found = data.find_slides(tmp_path / "mixed")
    assert list(found.slides) == ["cut.tif", "torn.tiff"]
    assert found.num_images == 2
    assert data.find_slides(tmp_path / "mixed" / "plain.tif") is None
    assert list(data.find_slides(tmp_path / "mixed" / "cut.tif").slides) == ["cut.tif"]
    (tmp_path / "mixed" / "cut.tif").rename(tmp_path / "cut.tif")
    assert data.find_slides(tmp_path / "mixed") is None, "a torn image among images"
    assert data.find_slides(tmp_path / "nothing") is None
    (tmp_path / "mixed" / "predicted_with.json").write_text("{}")
    assert list(data.find_slides(tmp_path).slides) == ["cut.tif"], "maps that were predicted are no slides"
    assert data.find_slides(tmp_path / "mixed") is None
    (tmp_path / "m.csv").write_text("slide,label\n../cut.tif,a\n")
    with pytest.raises(ValueError, match="outside the data root"):
        data.find_slides(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("image\ncut.png\n")
    with pytest.raises(ValueError, match="no slide in a column slide"):
        data.find_slides(tmp_path / "m.csv")
    assert _predict(run, tmp_path / "cut.tif", tmp_path) == 1
    assert "is a file, not the folder of its predictions" in capsys.readouterr().err
    assert not (tmp_path / "predicted_with.json").exists()
