"""The normalisation that belongs to weights: found by the encoder or a configuration beside the file, used and kept."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.models import build
from helpers.runs import SMALL
from helpers.tiles import shared_data, write_folder

from fastmtl import api, config, models
from fastmtl.builders import components, datasets, pretrained
from fastmtl.config import ConfigError
from fastmtl.config.parsing import merge
from fastmtl.models import Output
from fastmtl.utils.normalization import HALF, IMAGENET, Normalization
from fastmtl.utils.torchvision_guard import make_torchvision_importable

CPU = torch.device("cpu")
BOTH = {"segmentation": Output("map", 1), "classification": Output("vector", 6)}
LITE0 = "tu-tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "tiles", {"a": 8, "b": 8}, size=32).root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(build("joint_unet", BOTH, seed=3, base_channels=2).state_dict(), path)
    return path


def _recipe(**changes):
    return config.load_recipe("demo", merge(SMALL, changes))


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (LITE0, HALF),
        ("tu-test_efficientnet", IMAGENET),
        ("resnet18", IMAGENET),
        ("xception", HALF),
        ("dpn68", Normalization((0.4863, 0.4588, 0.4078), (0.2348, 0.2348, 0.2348))),
    ],
)
def test_normalization_of_an_encoder(encoder, expected):
    make_torchvision_importable()
    pytest.importorskip("segmentation_models_pytorch", reason="extra models is not installed")
    found = models.normalization_of(models.create_model("unet", BOTH, encoder=encoder, width=0.1))
    assert found.near(expected)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}, HALF),
        ("config.json", {"architecture": "x", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}, HALF),
        ("config.json", {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, HALF),
        # google/efficientnet-b0 divides by this std twice.
        (
            "preprocessor_config.json",
            {
                "image_processor_type": "EfficientNetImageProcessor",
                "include_top": True,
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.47853944, 0.4732864, 0.47434163],
            },
            IMAGENET,
        ),
        ("config.json", {"model_type": "swin"}, IMAGENET),
        ("config.json", [], IMAGENET),
    ],
)
def test_a_configuration_beside_the_weights_comes_first(tmp_path, name, values, expected):
    (tmp_path / name).write_text(json.dumps(values))
    found = models.normalization_of(build("joint_unet", BOTH), tmp_path / "model.safetensors")
    assert found.near(expected)


def test_the_run_keeps_it_and_its_loaders_use_it(tiles, weights, tmp_path):
    (weights.with_name("preprocessor_config.json")).write_text(
        '{"image_mean": [0, 0, 0], "image_std": [0.5, 0.5, 0.5]}'
    )
    run = tmp_path / "run"
    try:
        api.train(_recipe(model={"weights": str(weights)}), tiles, run)
    finally:
        weights.with_name("preprocessor_config.json").unlink()
    kept = config.load_run_recipe(run / "config.toml")
    assert (kept.data.mean, kept.data.std) == ([0.0] * 3, [0.5] * 3)
    trained = api.runs.load(run, None, "cpu", None)
    with trained.read(datasets.read_data(trained.recipe, tiles, trained.classes)) as loader:
        images = next(iter(loader)).images
    assert images.min() >= 0  # ImageNet's mean would give negative values
    assert images.max() > 1.5


def test_without_weights_it_is_the_encoders_and_in_old_runs_imagenets(tiles):
    recipe = _recipe()
    tasks = components.build_tasks(recipe, ["a", "b"])
    model = components.build_model(recipe, tasks, CPU)
    assert pretrained.normalization_of(recipe) == IMAGENET
    resolved = pretrained.with_normalization(recipe, model)
    assert pretrained.normalization_of(resolved).near(IMAGENET)
    model.published = {"imagenet": models.Published("me/mine", HALF)}  # as a model of a package may have
    assert pretrained.normalization_of(pretrained.with_normalization(recipe, model)) == HALF
    other = _recipe(data={"mean": [0, 0, 0], "std": [1, 1, 1]})
    assert pretrained.with_normalization(other, model) == other  # random weights have no normalisation of their own


def test_weights_of_another_normalization_are_refused(tiles, weights, tmp_path):
    recipe = _recipe(model={"weights": str(weights)}, data={"mean": [0.5] * 3, "std": [0.5] * 3})
    with pytest.raises(ConfigError, match=r"data.mean and data.std are mean 0.5 .* had mean 0.485") as caught:
        api.train(recipe, tiles, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    accepted = replace(recipe, data=replace(recipe.data, other_normalization=True))
    api.train(accepted, tiles, tmp_path / "run")
    assert config.load_run_recipe(tmp_path / "run" / "config.toml").data.mean == [0.5] * 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mean": [0.5]}, "data.mean must be three numbers"),
        ({"mean": [127, 127, 127], "std": [1, 1, 1]}, "data.mean must be three numbers, R, G and B in 0..1"),
        ({"mean": [0.5] * 3, "std": [0, 1, 1]}, "data.std must be three numbers above 0"),
        ({"mean": [0.5] * 3}, "data.mean and data.std are given together"),
        ({"mean": ["a", "b", "c"], "std": [1, 1, 1]}, "data.mean must be three numbers"),
    ],
)
def test_bad_values_are_one_line(data, message):
    with pytest.raises(ConfigError, match=message):
        _recipe(data=data)


def test_report_of_the_real_weights():
    make_torchvision_importable()
    pytest.importorskip("segmentation_models_pytorch", reason="extra models is not installed")
    path = shared_data("weights") / "tf_efficientnet_lite0.safetensors"
    model = models.create_model("unet", BOTH, encoder=LITE0)
    report = models.load_weights(model, path)
    assert model.weights_report is report
    assert report.loaded == ["encoder"]
    assert report.normalization == HALF
    assert not report.wrong_shape
    assert all(key.startswith(("decoders.", "heads.")) for key in report.missing)
    unused = {key.removeprefix("encoder.net.model.").split(".")[0] for key in report.unused}
    assert unused == {"conv_head", "bn2"}  # of the classifier, which the pyramid lacks
    outputs = model.eval()(torch.zeros(1, 3, 64, 64))
    assert {name: list(made.shape) for name, made in outputs.items()} == {
        "segmentation": [1, 1, 64, 64],
        "classification": [1, 6],
    }


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5] * 3, [0.5, 0.0, 0.5]),
        ([0.5] * 3, [0.5, float("nan"), 0.5]),
        ([0.5] * 3, [-0.5] * 3),
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    ],
    ids=["zero", "nan", "negative", "of 0..255"],
)
def test_an_impossible_normalization_beside_weights_is_an_error(mean, std, weights, tmp_path):
    copied = tmp_path / "small.pt"
    copied.write_bytes(weights.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"mean": mean, "std": std}))
    with pytest.raises(ValueError, match=r"config.json has mean .* expected a mean in 0..1 and a std above 0"):
        models.load_weights(build("joint_unet", BOTH, base_channels=2), copied)
