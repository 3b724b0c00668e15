"""Published weights by name: every family's repository, a hub cache without a network, and what to do without both."""

import shutil

import pytest
import torch
from helpers.models import ALL, build
from helpers.paths import DOCS
from helpers.tiles import shared_data
from torch import nn

from fastmtl import models
from fastmtl.models import Output, encoders
from fastmtl.models.resnet import ResNet
from fastmtl.utils.normalization import HALF, IMAGENET
from fastmtl.utils.torchvision_guard import make_torchvision_importable

MASK = {"mask": Output("map", 1)}
LABEL = {"label": Output("vector", 3)}
REPOSITORIES = {
    "swin_t": {"imagenet": "microsoft/swin-tiny-patch4-window7-224"},
    "mask2tasks": {
        "imagenet": "microsoft/swin-tiny-patch4-window7-224",
        "ade": "facebook/mask2former-swin-tiny-ade-semantic",
        "coco": "facebook/mask2former-swin-tiny-coco-panoptic",
    },
    "efficientnet_b0": {"imagenet": "google/efficientnet-b0"},
    "segformer_daformer": {"imagenet": "nvidia/mit-b2"},
    "pvtv2_daformer": {"imagenet": "OpenGVLab/pvt_v2_b2"},
    "coat_daformer": {"imagenet": "timm/coat_lite_medium.in1k"},
    "unet": {"imagenet": "smp-hub/efficientnet-b5.imagenet", "advprop": "smp-hub/efficientnet-b5.advprop"},
    "unet_resnet101": {"imagenet": "smp-hub/resnet101.imagenet"},
    "deeplabv3plus": {"imagenet": "smp-hub/efficientnet-b5.imagenet", "advprop": "smp-hub/efficientnet-b5.advprop"},
    "deeplabv3plus_resnet101": {"imagenet": "smp-hub/resnet101.imagenet"},
    "resnet50": {"imagenet": "timm/resnet50.tv_in1k"},
    "big_unet": {"imagenet": "timm/resnet50.tv_in1k"},
    "joint_unet_resnet34": {"imagenet": "timm/resnet34.tv_in1k"},
    **{name: {} for name in ("joint_unet", "small_unet", "small_unet_film", "unet_multi")},
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's library with an empty cache and without a network."""
    make_torchvision_importable()
    for name in ("timm", "transformers", "segmentation_models_pytorch"):
        pytest.importorskip(name, reason="extra models is not installed")
    library = pytest.importorskip("huggingface_hub", reason="extra models is not installed")
    monkeypatch.setattr(library.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", True)
    return library


def _cache(hub, repository, file, revision="0" * 40):
    """Put `file` where a download would, and return its folder."""
    folder = hub.constants.HF_HUB_CACHE + f"/models--{repository.replace('/', '--')}"
    home = type(file)(folder)
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    (home / "blobs").mkdir()
    blob = shutil.copy(file, home / "blobs" / ("1" * 64))
    snapshot = home / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / file.name).symlink_to(blob)
    return snapshot


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_repositories(hub, name):
    """Of the full encoders, whose weights are published; built without memory."""
    row = next(iter(models.model_info(name).rows.values()))
    if "timm" in str(REPOSITORIES[name]) and "coat" in name:
        model = models.create_model(name, row.tasks)
    else:
        with torch.device("meta"):
            model = models.create_model(name, row.tasks)
    found = models.published_weights(model)
    assert {key: one.repository for key, one in found.items()} == REPOSITORIES[name]
    for key, one in found.items():
        assert one.normalization == (HALF if key == "advprop" else IMAGENET)


@pytest.mark.parametrize(
    ("name", "classifier", "inner"),
    [
        ("swin_t", "SwinForImageClassification", "swin"),
        ("segformer_daformer", "SegformerForImageClassification", "segformer"),
        ("pvtv2_daformer", "PvtV2ForImageClassification", "pvt_v2"),
        ("efficientnet_b0", "EfficientNetForImageClassification", "efficientnet"),
    ],
)
def test_classifiers_of_transformers_load_from_the_cache(hub, tmp_path, name, classifier, inner):
    model = build(name, LABEL if name in ("swin_t", "efficientnet_b0") else MASK)
    torch.manual_seed(9)
    theirs = getattr(encoders.library("transformers", name), classifier)(model.encoder.net.config)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "saved")
    _cache(hub, REPOSITORIES[name]["imagenet"], tmp_path / "saved" / "model.safetensors")
    report = models.load_weights(model, "imagenet")
    assert report.loaded == ["encoder"]
    assert report.source.startswith("imagenet (")
    assert all("classifier" in key for key in report.unused)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = getattr(theirs.eval(), inner)(images).last_hidden_state
        made = model.eval().encoder(images)[-1]
    if expected.dim() == 3:
        expected = expected.transpose(1, 2).reshape(made.shape)
    torch.testing.assert_close(made, expected)


@pytest.mark.long
def test_mask2former_loads_whole_and_swin_into_its_encoder(hub, tmp_path):
    tasks = {"segments": Output("queries", 2)} | LABEL
    model = build("mask2tasks", tasks)
    transformers = encoders.library("transformers", "mask2tasks")
    torch.manual_seed(9)
    whole = transformers.Mask2FormerForUniversalSegmentation(model.net.config)
    whole.save_pretrained(tmp_path / "whole")
    _cache(hub, REPOSITORIES["mask2tasks"]["ade"], tmp_path / "whole" / "model.safetensors")
    report = models.load_weights(model, "ade")
    assert report.loaded == ["encoder", "pixel_decoder", "transformer", "class_predictor"]
    key = "model.transformer_module.queries_features.weight"
    assert torch.equal(model.net.get_parameter(key), whole.get_parameter(key))
    swin = transformers.SwinForImageClassification(model.net.config.backbone_config)
    nn.init.normal_(swin.swin.layernorm.weight)
    swin.save_pretrained(tmp_path / "swin")
    _cache(hub, REPOSITORIES["mask2tasks"]["imagenet"], tmp_path / "swin" / "model.safetensors")
    fresh = build("mask2tasks", tasks)
    report = models.load_weights(fresh, "imagenet")
    assert report.loaded == ["encoder"]
    encoder = fresh.parts["encoder"]
    assert torch.equal(encoder.hidden_states_norms["stage4"].weight, swin.swin.layernorm.weight)
    assert encoder.hidden_states_norms["stage1"].weight.eq(1).all()  # a classifier has no norm of it
    missing = [key for key in report.missing if "pixel_level_module.encoder" in key]
    assert len(missing) == 6
    assert all("hidden_states_norms.stage" in key for key in missing)


@pytest.mark.parametrize(
    ("name", "encoder", "options", "repository"),
    [
        ("coat_daformer", "coat_lite_small", {}, "timm/coat_lite_small.in1k"),
        ("coat_daformer", "coat_small", {}, "timm/coat_small.in1k"),
        ("unet", "tu-test_resnet", {"width": 0.1}, "timm/test_resnet.r160_in1k"),
        ("unet", "resnet18", {"width": 0.1}, "smp-hub/resnet18.imagenet"),
        ("joint_unet", "resnet34", {"base_channels": 64}, "timm/resnet34.tv_in1k"),
    ],
)
def test_networks_of_timm_smp_and_torchvision_load_from_the_cache(hub, tmp_path, name, encoder, options, repository):
    save_file = pytest.importorskip("safetensors.torch", reason="extra train is not installed").save_file
    model = models.create_model(name, MASK, encoder=encoder, **options)
    net = model.encoder if isinstance(model.encoder, ResNet) else model.encoder.net
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    state = {key.removeprefix("model."): value.clone() for key, value in net.state_dict().items()}
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    save_file(state | {"head.weight": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    published = models.published_weights(model)["imagenet"]
    assert published.repository == repository
    snapshot = _cache(hub, published.repository, tmp_path / "model.safetensors", published.revision or "0" * 40)
    snapshot.joinpath("config.json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}')
    report = models.load_weights(model, "imagenet")
    assert report.loaded == ["encoder"]
    assert report.normalization == HALF  # the repository's own word
    assert len(report.unused) == 1
    for key, value in net.named_parameters():
        assert torch.equal(value, state[key.removeprefix("model.")])


def test_offline_the_error_says_which_file_to_fetch_and_where_it_goes(hub):
    for name, options, repository in (
        ("unet", {"encoder": "tu-tf_efficientnet_lite0"}, "timm/tf_efficientnet_lite0.in1k"),
        ("joint_unet", {"encoder": "resnet34"}, "timm/resnet34.tv_in1k"),
    ):
        with pytest.raises(ValueError, match=f"`weights` 'imagenet' are {repository} and cannot be") as caught:
            models.create_model(name, MASK, weights="imagenet", **options)
        said = str(caught.value)
        assert f"Fetch model.safetensors from https://huggingface.co/{repository}/tree/main" in said
        assert "--set model.weights=FILE" in said
        assert f"models--{repository.replace('/', '--')}, into {hub.constants.HF_HUB_CACHE}." in said
        assert "\n" not in said


def test_names_that_are_not_published(hub):
    with pytest.raises(ValueError, match="on the Hugging Face hub; there is no file imagenet"):
        build("joint_unet", MASK, weights="imagenet")
    with pytest.raises(ValueError, match=r"or one of its published weights; .*imagenet.*; there is no file imagent"):
        build("joint_unet_resnet34", MASK, weights="imagent")


def test_the_real_file_as_a_cached_download(hub):
    file = shared_data("weights") / "tf_efficientnet_lite0.safetensors"
    model = models.create_model("unet", MASK, encoder="tu-tf_efficientnet_lite0")
    snapshot = _cache(hub, "timm/tf_efficientnet_lite0.in1k", file)
    (snapshot / file.name).rename(snapshot / "model.safetensors")
    report = models.load_weights(model, "imagenet")
    assert report.loaded == ["encoder"]
    assert report.normalization == HALF


def test_the_page_lists_every_repository():
    page = (DOCS / "pretrained.md").read_text()
    for name, weights in REPOSITORIES.items():
        for key, repository in weights.items():
            assert f"`{repository}`" in page, (name, key)
