"""Every command that learns from masks or scores against them asks what they hold."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.masks import as_files, as_slides, shape
from helpers.tiles import write_image
from rich.console import Console

from fastmtl import api
from fastmtl.cli import main
from fastmtl.config import ConfigError, load_recipe

pytest.importorskip("tifffile")
SMALL = {
    "model": {"base_channels": 4},
    "data": {"size": 32, "batch_size": 4, "tile_size": 32, "min_tissue": 0.0, "on_damaged": "raise"},
    "training": {"epochs": 1, "device": "cpu", "precision": "float32"},
}
DARK = r"no value above 1, and pixels above 127 are foreground"


def discs(*values: int) -> list[np.ndarray]:
    return [shape(number).astype(np.uint8) * np.uint8(value) for number, value in enumerate(values)]


def trained(data: Path, out: Path) -> tuple[dict, str]:
    """The summary, and what was printed."""
    said = Console(file=io.StringIO(), width=400)
    summary = api.train(load_recipe("ebhi_joint_unet", SMALL), data, out, console=said)
    return summary, said.file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on files of 0 and 255; tests copy it."""
    root = tmp_path_factory.mktemp("run")
    (root / "data").mkdir()
    faint = np.tile(np.arange(64, dtype=np.uint8), (64, 1))  # no pixel above 127, and no value that anybody chose
    _, said = trained(as_files(root / "data", [*discs(*[255] * 9), faint]), root / "run")
    assert "masks of segmentation: 10 in all, 65 values from 0 to 255, foreground 17." in said
    assert "9_mask.png: task 'segmentation': the mask holds no value above 63 and counts as empty" in said
    return root


@pytest.mark.parametrize("make", [as_files, as_slides])
def test_train_refuses_before_there_is_a_run_folder(make, tmp_path):
    (tmp_path / "data").mkdir()
    manifest = make(tmp_path / "data", discs(*[255] * 8, 1, 1))
    with pytest.raises(ConfigError, match=DARK):
        trained(manifest, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("make", [as_files, as_slides])
@pytest.mark.parametrize("values", [(1, 1, 1, 1), (255, 255, 255, 1)])
def test_eval_refuses_what_training_refuses(make, values, run, tmp_path):
    with pytest.raises(ConfigError, match=DARK):
        api.evaluate(run / "run", make(tmp_path, discs(*values)), everything=True, device="cpu")


def test_eval_says_what_is_odd(run, tmp_path):
    odd = [mask // 255 * 127 + 128 for mask in discs(255, 255)]  # 128 and 255
    found = api.evaluate(run / "run", as_files(tmp_path, odd), everything=True, device="cpu")
    assert any("areas of 128 and 255, which all count as foreground" in notice for notice in found["notices"])


def test_resume_looks_again(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    home = tmp_path / "copy"
    (home / "run" / "summary.json").unlink()  # it was stopped before its end
    extra = home / "run" / "run.json"
    files = [path for path in (home / "run").glob("*.json") if str(run) in path.read_text()]
    for path in files or [extra]:
        path.write_text(path.read_text().replace(str(run), str(home)))
    for path in (home / "data").glob("*_mask.png"):
        write_image(path, shape().astype(np.uint8))
    with pytest.raises(ConfigError, match=DARK):
        api.resume(home / "run", console=Console(quiet=True))


def test_the_command_line_says_it_in_one_line(run, tmp_path, capsys):
    manifest = as_files(tmp_path, discs(1, 1))
    assert main(["eval", str(run / "run"), "--data", str(manifest), "--everything"]) == 1
    said = capsys.readouterr()
    assert not said.out
    assert DARK in said.err
    assert len(said.err.strip().splitlines()) == 1
