"""The main job, whole: a multi-task model learns on held-out patients, by the commands of the README."""

import json
import os
import time
from pathlib import Path

import pytest
from helpers.tiles import shared_data

from fastmtl.cli import main
from fastmtl.utils.torchvision_guard import make_torchvision_importable


def _train(out: Path, *options: str) -> dict:
    assert main(["train", *options, "--out", str(out)]) == 0
    return json.loads((out / "summary.json").read_text())["tasks"]


@pytest.mark.slow
def test_the_demo_learns_in_under_three_minutes(tmp_path):
    started = time.monotonic()
    tasks = _train(tmp_path / "demo", "demo")
    seconds = time.monotonic() - started
    assert tasks["segmentation"]["dice"] >= 0.85
    assert tasks["classification"]["accuracy"] >= 0.8
    if not os.environ.get("CI"):  # shared machines are too uneven for a limit in seconds
        assert seconds < 180
    untaught = _train(tmp_path / "lr0", "demo", "--lr", "0", "--epochs", "2")
    assert untaught["segmentation"]["dice"] < 0.65
    assert untaught["classification"]["accuracy"] < 0.6


@pytest.mark.slow
def test_three_epochs_on_real_tiles(tmp_path):
    """EBHI-Seg, 50 held-out patients of the reference fold."""
    tasks = _train(tmp_path / "ebhi", "ebhi_joint_unet", "--data", str(shared_data("ebhi_seg")), "--epochs", "3")
    assert tasks["segmentation"]["dice"] >= 0.80
    assert tasks["classification"]["accuracy"] >= 0.60
    facts = json.loads((tmp_path / "ebhi" / "run.json").read_text())
    assert len(facts["validation_patients"]) == 50


@pytest.mark.slow
def test_pretrained_weights_beat_random_ones_after_two_epochs(tmp_path):
    make_torchvision_importable()
    pytest.importorskip("segmentation_models_pytorch", reason="extra models is not installed")
    data, file = shared_data("ebhi_seg"), shared_data("weights") / "tf_efficientnet_lite0.safetensors"
    few = ("--data", str(data), "--epochs", "2", "--set", "data.size=96", "--set", "data.max_tiles=600")
    few += ("--set", "training.tta=[]", "--set", "training.average=")
    loaded = _train(tmp_path / "loaded", "ebhi_pretrained", *few, "--set", f"model.weights={file}")
    random = _train(tmp_path / "random", "ebhi_pretrained", *few, "--set", "model.weights=")
    assert loaded["classification"]["accuracy"] > random["classification"]["accuracy"] + 0.05
    assert loaded["segmentation"]["dice"] > random["segmentation"]["dice"]
