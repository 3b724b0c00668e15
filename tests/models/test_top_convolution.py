"""The top convolution of timm's EfficientNets as the trunk of the heads: its weights, its numbers, its refusals."""

import pytest
import torch
from helpers.tiles import shared_data

from fastmtl import models
from fastmtl.models import Output, encoders
from fastmtl.utils.torchvision_guard import make_torchvision_importable

BOTH = {"mask": Output("map", 1), "label": Output("vector", 6)}
LITE0 = "tu-tf_efficientnet_lite0"
TEST = "tu-test_efficientnet"


@pytest.fixture(autouse=True)
def _libraries():
    make_torchvision_importable()
    for name in ("timm", "segmentation_models_pytorch"):
        pytest.importorskip(name, reason="extra models is not installed")


def test_heads_read_what_timms_classifier_reads():
    import timm
    from safetensors.torch import load_file

    path = shared_data("weights") / "tf_efficientnet_lite0.safetensors"
    model = models.create_model("unet", BOTH, encoder=LITE0, top=True).eval()
    report = models.load_weights(model, path)
    assert report.loaded == ["encoder", "trunk"]
    assert report.unused == []
    assert all(key.startswith(("decoders.", "heads.")) for key in report.missing)
    published = timm.create_model(LITE0.removeprefix("tu-"), num_classes=0, global_pool="").eval()
    published.load_state_dict(load_file(path), strict=False)
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        read = model.trunk(model.encoder(images)[-1])
        torch.testing.assert_close(read, published(images), rtol=1e-5, atol=1e-5)
        assert model.heads["label"][-1].in_features == read.shape[1] == 1280


def test_weights_of_the_whole_model_and_of_files_without_the_top(tmp_path):
    model = models.create_model("unet", BOTH, encoder=TEST, top=True, head_dropout=0.5)
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    again = models.create_model("unet", BOTH, encoder=TEST, top=True, head_dropout=0.5)
    assert models.load_weights(again, tmp_path / "whole.pt").missing == []
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    own = {key: value for key, value in model.state_dict().items() if not key.startswith("trunk.")}
    torch.save(own, tmp_path / "no_top.pt")
    report = models.load_weights(again, tmp_path / "no_top.pt")
    assert "trunk" not in report.loaded
    assert {key.split(".")[0] for key in report.missing} == {"trunk"}
    half = {key.replace("trunk.", "other."): value for key, value in model.state_dict().items() if ".bn2." in key}
    torch.save(own | {key: value for key, value in half.items() if "other." in key}, tmp_path / "half.pt")
    report = models.load_weights(again, tmp_path / "half.pt")
    assert {"trunk.conv_head.weight", "trunk.bn2.weight"} <= set(report.missing)
    assert "other.bn2.weight" in report.unused


def test_only_the_heads_tasks_train_the_top():
    model = models.create_model("unet", BOTH, encoder=TEST, top=True)
    model(torch.rand(2, 3, 64, 64))["mask"].sum().backward()
    assert all(value.grad is None for value in model.trunk.parameters())
    model(torch.rand(2, 3, 64, 64))["label"].sum().backward()
    assert all(value.grad is not None for value in model.trunk.parameters())
    shared = {id(value) for value in model.shared_parameters()}
    assert not shared & {id(value) for value in model.trunk.parameters()}


@pytest.mark.parametrize("name", ["tu-resnet18", "resnet18", "efficientnet-b0"])
def test_encoders_without_a_top_are_refused(name):
    with pytest.raises(ValueError, match=f"the encoder '{name}' has no top convolution: timm's EfficientNets have one"):
        encoders.TopConvolution(name)
