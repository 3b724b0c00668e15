"""A run that is used from Python predicts what the command writes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.pixel_model import lines_of
from helpers.runs import untrained
from helpers.slides import tissue_like
from helpers.tiles import write_image
from PIL import Image

import fastmtl
from fastmtl.api import LoadedRun
from fastmtl.cli import main
from fastmtl.training.run_dir import RunError

STAIN = {"method": "macenko", "min_tissue": 50}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(5):
        write_image(folder / f"P{number}-1.png", tissue_like(40 + 9 * number, 50))
    return folder


@pytest.mark.parametrize("changes", [{}, {"data": {"stain": STAIN}}, {"training": {"tta": ["h"]}}])
def test_files_and_arrays_give_what_the_command_writes(images, changes, tmp_path):
    run, out = untrained(tmp_path / "run", **changes), tmp_path / "out"
    assert main(["predict", str(run), str(images), "--out", str(out), "--device", "cpu"]) == 0
    files = sorted(images.iterdir())
    loaded = fastmtl.load(run, device="cpu")
    assert isinstance(loaded, LoadedRun)
    of_files = loaded.predict_all(files)
    of_arrays = loaded.predict_all([np.asarray(Image.open(file)) for file in files])
    lines = {line["image"]: line for line in lines_of(out / "predictions.jsonl")}
    for file, by_file, by_array in zip(files, of_files, of_arrays, strict=True):
        line = lines[file.name]
        assert set(by_file) == set(by_array) == set(loaded.tasks) == set(line) - {"image"}
        for found in (by_file, by_array, loaded.predict(str(file))):
            mask = torch.from_numpy(np.array(Image.open(out / line["segmentation"]["mask"])))
            assert torch.equal(found["segmentation"]["mask"], mask)
            assert found["segmentation"]["foreground"] == line["segmentation"]["foreground"]
            assert found["classification"]["class"] == line["classification"]["class"]
            expected = line["classification"]["probabilities"]
            assert found["classification"]["probabilities"] == pytest.approx(expected, abs=1e-6)


def test_what_is_no_image_is_named(images, tmp_path):
    loaded = fastmtl.load(untrained(tmp_path / "run"), device="cpu")
    assert loaded.predict_all([]) == []
    (tmp_path / "cut.png").write_bytes((images / "P0-1.png").read_bytes()[:100])
    for wrong, said in (
        (tmp_path / "none.png", r"none\.png: .*Nothing was predicted"),
        (tmp_path / "cut.png", r"cut\.png: .*Nothing was predicted"),
        (
            np.zeros((8, 8, 3), np.float32),
            r"must be uint8 \[H, W, 3\] in RGB or \[H, W\] in grey; got float32 \[8, 8, 3\]",
        ),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"got uint8 \[3, 8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"got uint8 \[8, 8, 4\]"),
        (np.zeros((0, 8), np.uint8), r"got uint8 \[0, 8\]"),
    ):
        with pytest.raises(RunError, match=said):
            loaded.predict_all([images / "P1-1.png", wrong])
    with pytest.raises(RunError, match="is not a run"):
        fastmtl.load(tmp_path / "nothing")


def test_stains_of_images_are_forgotten(images, tmp_path):
    loaded = fastmtl.load(untrained(tmp_path / "run", data={"stain": STAIN}), device="cpu")
    loaded.predict(images / "P0-1.png")
    assert not loaded._trained.stain.slides


def test_a_run_with_preprocessing_reads_files_alone(tmp_path):
    run = untrained(tmp_path / "run", data={"preprocessing": "percentiles"})
    with pytest.raises(RunError, match=r"data\.preprocessing = 'percentiles'; pass files"):
        fastmtl.load(run, device="cpu").predict(np.zeros((8, 8), np.uint8))


def test_a_network_that_reads_metadata_does_not_see_zeros(images, tmp_path, capsys):
    run = untrained(tmp_path / "run", data={"metadata": {"position": ["x", "y"]}})
    said = r"reads data\.metadata \(position\), which images and slides alone do not have"
    with pytest.raises(RunError, match=said):
        fastmtl.load(run, device="cpu")
    assert main(["predict", str(run), str(images), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert "reads data.metadata (position)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_threads_wait_for_each_others_stains(images, tmp_path):
    loaded = fastmtl.load(untrained(tmp_path / "run", data={"stain": STAIN}), device="cpu")
    files = sorted(images.iterdir())
    expected = [loaded.predict(file)["classification"]["probabilities"] for file in files]
    with ThreadPoolExecutor(4) as pool:
        found = [one["classification"]["probabilities"] for one in pool.map(loaded.predict, files * 4)]
    assert found == expected * 4
