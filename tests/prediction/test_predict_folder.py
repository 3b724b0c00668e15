"""A folder of predictions: whose it is, what may not lie in it, and that it says the same whatever was interrupted."""

import json
import shutil

import pytest
import torch
from helpers.pixel_model import CPU, lines_of, map_of, predict, read_tiles
from helpers.runs import untrained_on_slides
from helpers.slides import patch_tile, tissue_like, write_tiff
from helpers.tiles import write_image

from fastmtl import data
from fastmtl.cli import main
from fastmtl.prediction.images import find_images, write_predictions
from fastmtl.prediction.output_dir import claimed
from fastmtl.prediction.slides import check_places, predict_slides
from fastmtl.tasks import create_task
from fastmtl.training.run_dir import RunError

STAMP = {"what": "slides", "input": "/slides", "run": "/run", "weights": "1", "recipe": "1", "views": []}


@pytest.fixture
def slide(tmp_path):
    return write_tiff(tmp_path / "slide.tif", tissue_like(128, 128), compression="deflate")


def test_nothing_but_predictions_lies_in_it(tmp_path):
    out = tmp_path / "segmentation"
    write_image(out / "a.png", tissue_like(8, 8))
    with (
        pytest.raises(RunError, match=r"contains files that are not predictions \(for example a\.png"),
        claimed(out, STAMP),
    ):
        pass
    assert [path.name for path in out.iterdir()] == ["a.png"]
    with claimed(tmp_path / "new", STAMP), pytest.raises(RunError, match="other weights"):
        claimed(tmp_path / "new", STAMP | {"weights": "2"}).__enter__()
    with pytest.raises(RunError, match="other maps"):
        claimed(tmp_path / "new", STAMP | {"maps": {"min_area": 5.0}}).__enter__()
    with claimed(tmp_path / "new", STAMP | {"run": "/moved"}):
        pass


def test_sizes_of_outlines_are_numbers(capsys):
    for option in ("--min-area", "--simplify"):
        for value in ("-1", "nan", "inf", "small"):
            with pytest.raises(SystemExit) as ended:
                main(["predict", "RUN", "INPUT", "--out", "OUT", f"{option}={value}"])
            assert ended.value.code == 2
            assert f"argument {option}" in capsys.readouterr().err


def test_masks_do_not_take_the_place_of_images(tmp_path, capsys):
    """A task "segmentation" writes segmentation/a.png: the image itself, where --out is the folder of its folder."""
    run, image = untrained_on_slides(tmp_path / "run"), tmp_path / "data" / "segmentation" / "a.png"
    write_image(image, tissue_like(40, 40))
    before = image.read_bytes()
    assert main(["predict", str(run), str(image), "--out", str(tmp_path / "data")]) == 1
    assert "contains files that are not predictions (for example segmentation)" in capsys.readouterr().err
    assert image.read_bytes() == before
    assert main(["predict", str(run), str(image.parent), "--out", str(run)]) == 1, (
        "a run folder has a summary and a quarantine of its own"
    )
    assert not (run / "predictions.jsonl").exists()


def test_two_processes_do_not_share_it(tmp_path):
    """A lock is of the open file, so that a second claim here stands for another process."""
    out = tmp_path / "out"
    with claimed(out, STAMP), pytest.raises(RunError, match="another process predicts into"), claimed(out, STAMP):
        pass
    with claimed(out, STAMP):
        assert json.loads((out / "predicted_with.json").read_text()) == STAMP


def test_predictions_are_no_input(tmp_path):
    for folder in ("", "old", "old/slide.tif"):
        write_image(tmp_path / folder / "tile.png", tissue_like(20, 20))
        write_tiff(tmp_path / folder / "map.tif", tissue_like(40, 40), tile=16)
    (tmp_path / "old" / "predicted_with.json").write_text("{}")
    assert [tile.id for tile in find_images(tmp_path)] == ["map.tif", "tile.png"]
    assert list(data.find_slides(tmp_path).slides) == ["map.tif"]


def test_a_slide_that_changed_is_predicted_again(tmp_path, slide):
    slides, out = {"b": slide, "a": slide}, tmp_path / "out"
    assert predict(slides, out) == ("slides", 2, 0, 0)
    assert predict(slides, out) == ("slides", 0, 2, 0)
    before = map_of(out / "b" / "gland.tif")
    write_tiff(slide, tissue_like(128, 128, seed=5), compression="deflate")
    assert predict({"b": slide}, out) == ("slides", 1, 0, 0)
    assert (map_of(out / "b" / "gland.tif") != before).any()
    assert {path.name for path in out.iterdir()} == {"a", "b", "predictions.jsonl"}
    slide.write_bytes(slide.read_bytes()[:200])
    assert predict({"b": slide}, out).unreadable == 1
    assert [line["slide"] for line in lines_of(out / "predictions.jsonl")] == ["a"], "b is not what it was"


def test_lines_are_the_same_whatever_was_interrupted(tmp_path, slide):
    torn = tmp_path / "torn.tif"
    shutil.copy(slide, torn)
    patch_tile(torn, 1, lambda part: part.__setitem__(slice(10, None), bytes(len(part) - 10)))
    slides, one, two = {"a": torn, "b": slide, "c-d": torn, "c/d": slide}, tmp_path / "one", tmp_path / "two"

    def go(some, out):
        return predict(
            {name: slides[name] for name in some}, out, read=lambda tiles: read_tiles(tiles, max_damaged=0.5)
        )

    go(["c/d", "b"], one)
    go(["c-d"], one)
    assert go(["a", "b", "c-d", "c/d"], one) == ("slides", 1, 3, 0)
    go(["a", "b", "c-d", "c/d"], two)
    for name in ("predictions.jsonl", "quarantine.jsonl"):
        assert (one / name).read_text() == (two / name).read_text()
    assert [entry["slide"] for entry in lines_of(one / "quarantine.jsonl")] == ["a", "c-d"]
    assert go(slides, one).new == 0
    assert len(lines_of(one / "quarantine.jsonl")) == 2, "damaged tiles of slides that are done"


def test_a_folder_in_the_way_is_told_before_any_slide_is_read(tmp_path):
    (tmp_path / "slide.svs").mkdir()
    check_places(["slide.svs"], tmp_path)
    (tmp_path / "slide.svs" / "notes.txt").touch()
    with pytest.raises(RunError, match=r"slide\.svs has no summary\.json, and is not empty"):
        check_places(["slide.svs"], tmp_path)


def test_names_of_tasks_and_structures(tmp_path, slide):
    """A task called as a fact leaves it alone, and a name with a slash is one file."""
    tasks = [
        create_task("binary_segmentation", "tissue", 0),
        create_task("regression", "x", 1, mean=0.0, std=1.0),
        create_task("multilabel_segmentation", "layers", 2, structures=["Gleason 3/4", "5%", "outlines"]),
    ]

    class Model(torch.nn.Module):
        def forward(self, batch):
            reds = batch.images[:, :1] - 150
            return {"tissue": reds, "x": reds.mean((2, 3)), "layers": torch.cat([reds, -reds, reds], 1)}

    out = tmp_path / "out"
    out.mkdir()
    grid = data.GridOptions(64, 0.0, 0, 0.0)
    predict_slides({"s": slide}, out, model=Model(), tasks=tasks, grid=grid, read=read_tiles, device=CPU)
    (line,) = lines_of(out / "predictions.jsonl")
    assert line["tissue"] == 1.0
    assert line["tissue_task"]["mask"] == "s/tissue.tif"
    assert line["layers"]["Gleason 3/4"]["mask"] == "s/layers/Gleason 3%2F4.tif"
    assert (out / line["layers"]["5%"]["mask"]).is_file()
    assert line["layers"]["outlines"] == "s/layers.geojson"
    assert line["layers"]["outlines_structure"]["mask"] == "s/layers/outlines.tif"
    tiles = lines_of(out / "s" / "tiles.jsonl")
    assert [tile["x"] for tile in tiles] == [0, 64, 0, 64]
    assert line["x"]["value"] == pytest.approx(sum(tile["x_task"]["value"] for tile in tiles) / 4)
    image = tmp_path / "images" / "a.png"
    write_image(image, tissue_like(64, 64))
    found = find_images(image)
    loader = read_tiles(data.Dataset(image, (), tuple(found)))
    assert write_predictions(Model(), tasks[2:], iter(loader), found, tmp_path / "masks") == 1
    loader.close()
    assert (tmp_path / "masks" / "layers" / "Gleason 3%2F4" / "a.png").is_file()


@pytest.mark.parametrize("kind", ["multiclass_segmentation", "universal_segmentation"])
def test_maps_have_256_numbers(kind):
    with pytest.raises(ValueError, match=r"must have at most 256 names because maps are uint8; got 257"):
        create_task(kind, "zones", 0, structures=[f"class {number}" for number in range(257)])
