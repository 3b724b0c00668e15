"""Heads, FiLM, DAFormer, ResNet, freezing and switching: what the models are made of."""

import re

import pytest
import torch
from helpers.models import ALL, OTHERS, TRANSFORMERS, batch_of, build, tasks_of, total_loss
from torch import nn

from fastmtl import models
from fastmtl.models import Output
from fastmtl.models.daformer import DAFormerDecoder
from fastmtl.models.film import FiLM
from fastmtl.models.heads import AuxiliaryHeads
from fastmtl.models.resnet import ResNet
from fastmtl.protocols import Batch
from fastmtl.utils.torchvision_guard import make_torchvision_importable

MASK = {"mask": Output("map", 1)}


@pytest.mark.parametrize("name", sorted([*ALL, "big_unet_frozen", "unet_multi_lessdepth"]))
def test_parameters_of_the_full_models(name):
    info = models.model_info(name)
    if info.extra:
        make_torchvision_importable()
        pytest.importorskip("segmentation_models_pytorch", reason="extra models is not installed")
    assert info.rows
    for label, row in info.rows.items():
        with torch.device("meta"):
            model = models.create_model(name, row.tasks, **row.options)
        assert sum(value.numel() for value in model.parameters()) == row.parameters, label
    made = getattr(model, "encoder", model)
    found = dict(zip(getattr(made, "strides", info.strides), made.channels, strict=True))
    assert {stride: found[stride] for stride in info.strides} == dict(zip(info.strides, info.channels, strict=True))


def test_counts_that_others_published():
    """Mask2Former with Swin-T 47.4 M; torchvision's ResNet-50 and Swin-T and EfficientNet-b0 with their own heads."""
    assert models.model_info("mask2tasks").rows["segmentation"].parameters == 47_403_133
    head = {name: features * 1000 + 1000 for name, features in (("resnet50", 2048), ("swin_t", 768))}
    head["efficientnet_b0"] = 1280 * 1000 + 1000
    for name, published in (("resnet50", 25_557_032), ("swin_t", 28_288_354), ("efficientnet_b0", 5_288_548)):
        features = (head[name] - 1000) // 1000
        ours = models.model_info(name).rows["classification"].parameters - features * 6 - 6
        assert ours == published - head[name]


@pytest.mark.parametrize("kind", ["resnet34", "resnet50", "resnet101"])
def test_resnet_has_torchvisions_keys_and_values(kind):
    make_torchvision_importable()
    torchvision = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    with torch.device("meta"):
        theirs, ours = getattr(torchvision, kind)(), ResNet(kind)
    expected = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    if kind == "resnet34":
        theirs, ours = torchvision.resnet34().eval(), ResNet(kind).eval()
        ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
        images = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            pooled = ours(images)[-1].mean((2, 3))
            torch.testing.assert_close(theirs.fc(pooled), theirs(images))


def test_smp_models_are_smps():
    make_torchvision_importable()
    smp = pytest.importorskip("segmentation_models_pytorch", reason="extra models is not installed")
    images = torch.randn(2, 3, 64, 64)
    for name, theirs in (("unet", smp.Unet), ("deeplabv3plus", smp.DeepLabV3Plus)):
        ours = models.create_model(name, MASK, encoder="tu-test_resnet").eval()
        other = theirs("tu-test_resnet", encoder_weights=None).eval()
        renamed = {
            key.replace("encoder.net.", "encoder.")
            .replace("decoders.mask.decoder.", "decoder.")
            .replace("decoders.mask.head.", "segmentation_head."): value
            for key, value in ours.state_dict().items()
        }
        other.load_state_dict(renamed)
        with torch.no_grad():
            torch.testing.assert_close(ours(images)["mask"], other(images))


def test_film_starts_as_the_identity_and_then_scales_and_shifts():
    film, x, metadata = FiLM(3, 5, hidden=4), torch.randn(2, 5, 4, 4), torch.rand(2, 3)
    torch.testing.assert_close(film(x, metadata), x)
    with torch.no_grad():
        film.scale[-1].bias.copy_(torch.arange(5.0))
        film.shift[-1].bias.fill_(2.0)
    torch.testing.assert_close(film(x, metadata), (1 + torch.arange(5.0))[:, None, None] * x + 2)


def test_film_reads_the_metadata():
    model, batch = build("small_unet_film").eval(), batch_of(2)
    with torch.no_grad():
        for layer in (model.encoder.film.scale[-1], model.encoder.film.shift[-1]):
            nn.init.normal_(layer.weight)
        other = Batch(batch.images, {}, batch.has_label, {"film": batch.metadata["film"].flip(0)})
        assert not torch.equal(model(batch)["organs"], model(other)["organs"])
    for wrong in (batch.images, Batch(batch.images, {}, batch.has_label, {"film": torch.rand(2, 3)})):
        with pytest.raises(ValueError, match=r"metadata\['film'\] \[2, 7\]; got (none|\[2, 3\])"):
            model(wrong)


@pytest.mark.parametrize(("fusion", "inner"), [("sep_aspp", 3), ("conv", 0)])
def test_daformer_both_fusions(fusion, inner):
    decoder = DAFormerDecoder((4, 8, 12, 16), 3, channels=8, fusion=fusion)
    features = [torch.randn(2, width, 16 >> level, 16 >> level) for level, width in enumerate((4, 8, 12, 16))]
    assert decoder(features).shape == (2, 3, 16, 16)
    assert sum(isinstance(m, nn.Conv2d) and m.groups > 1 for m in decoder.modules()) == inner
    assert {m.dilation[0] for m in decoder.modules() if isinstance(m, nn.Conv2d)} == ({1, 6, 12, 18} if inner else {1})
    with pytest.raises(ValueError, match="`fusion` must be 'sep_aspp' or 'conv'"):
        DAFormerDecoder((4, 8), 1, fusion="add")


def test_auxiliary_heads_switch_and_the_unused_one_gets_no_gradient():
    tasks = MASK | {"auxiliary": Output("auxiliary", 1)}
    model = build("joint_unet", tasks)
    for stride, other in ((8, 4), (4, 8)):
        model.use_auxiliary(stride)
        model.zero_grad()
        total_loss(model, tasks, batch_of(2)).backward()
        convs = model.auxiliary["auxiliary"].convs
        assert convs[f"stride{stride}"].weight.grad.abs().sum() > 0
        assert convs[f"stride{other}"].weight.grad is None
        assert model(batch_of(2))["auxiliary"].shape == (2, 1, 32 // stride, 32 // stride)
    with pytest.raises(ValueError, match=r"one of \[8, 4\]"):
        model.use_auxiliary(2)
    with pytest.raises(ValueError, match="no auxiliary task"):
        build("joint_unet", MASK).use_auxiliary(4)
    with pytest.raises(ValueError, match=r"among the encoder's \[1, 2, 4\]; got 8"):
        AuxiliaryHeads([1, 2, 4], [3, 4, 5], 1, (8,))


@pytest.mark.parametrize("name", ["joint_unet", "big_unet", "mask2tasks"])
def test_a_frozen_encoder_does_not_move_nor_its_statistics(name):
    if models.model_info(name).extra:
        pytest.importorskip("transformers", reason="extra models is not installed")
    model, tasks, batch = build(name), tasks_of(name), batch_of(4)
    model.freeze("encoder")
    encoder = model.parts["encoder"]
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    model.train()
    assert not encoder.training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total_loss(model, tasks, batch).backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert {id(p) for p in model.shared_parameters()} == {id(p) for p in model.parameters() if p.requires_grad}
    model.unfreeze()
    assert encoder.training
    assert {id(p) for p in model.shared_parameters()} == {id(p) for p in encoder.parameters()}


def test_parts_freeze_one_by_one():
    model = build("joint_unet")
    model.freeze("encoder", "decoders.mask")
    model.freeze("encoder.stages.0")
    model.unfreeze("encoder")
    assert not model.encoder.stages[0].conv1.weight.requires_grad
    assert model.encoder.stages[1].conv1.weight.requires_grad
    assert not any(value.requires_grad for value in model.decoders["mask"].parameters())
    with pytest.raises(ValueError, match="no part 'encodr'; did you mean 'encoder'"):
        model.freeze("encodr")
    with pytest.raises(ValueError, match="'heads' of 'joint_unet' is not frozen"):
        model.unfreeze("heads")


def test_selected_tasks_alone_are_computed():
    model, batch = build("mask2tasks"), batch_of(2)
    calls = []
    model.net.model.transformer_module.register_forward_hook(lambda *_: calls.append(1))
    model.select("classification")
    assert list(model(batch)) == ["classification"]
    assert not calls
    model.select()
    assert list(model(batch)) == ["segmentation", "classification"]
    assert calls
    with pytest.raises(ValueError, match="no task 'class'; did you mean 'classification'"):
        model.select("class")


def test_variants_and_options_that_change_the_network():
    frozen = models.create_model("big_unet_frozen", MASK, preset="tiny")
    assert not any(parameter.requires_grad for parameter in frozen.encoder.parameters())
    some = models.create_model("big_unet", MASK, preset="tiny", frozen_stages=2)
    assert not some.encoder.layer1[0].conv1.weight.requires_grad
    assert some.encoder.layer2[0].conv1.weight.requires_grad
    less = models.create_model("unet_multi_lessdepth", MASK | {"class": Output("vector", 1)}, preset="tiny")
    assert less.stride == 8
    assert less(torch.randn(2, 3, 32, 32))["class"].shape == (2, 1)
    low = build("mask2tasks", {"classification": Output("vector", 6)}, head_stage=1)
    assert low.heads["classification"][2].in_features == low.channels[0]


def test_class_and_box_share_their_trunk():
    both = {"class": Output("vector", 1), "box": Output("box", 4)}
    model = build("unet_multi", both)
    model(torch.randn(2, 3, 32, 32))["box"].sum().backward()
    assert all(value.grad is not None for value in model.trunk.parameters())
    assert model.heads["class"].weight.grad is None


def test_coat_takes_any_size():
    make_torchvision_importable()
    pytest.importorskip("timm", reason="extra models is not installed")
    model = build("coat_daformer", MASK).eval()
    for height, width in ((32, 64), (64, 32), (96, 96)):
        assert model(torch.randn(1, 3, height, width))["mask"].shape == (1, 1, height, width)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("big_unet", ["^conv1", "^bn1"], ["layer3"]),
        ("segformer_daformer", ["stages.0"], ["stages.3"]),
        ("pvtv2_daformer", ["layers.0"], ["layers.3"]),
        ("coat_daformer", ["patch_embed1", "serial_blocks1"], ["patch_embed4", "serial_blocks4"]),
        ("mask2tasks", ["embeddings", "layers.0.blocks", "norms.stage1"], ["layers.3", "norms.stage4"]),
        ("unet", ["conv_stem"], ["blocks.4"]),
    ],
)
def test_depths_of_an_encoders_parameters(name, first, last):
    if name in OTHERS:
        make_torchvision_importable()
        pytest.importorskip("segmentation_models_pytorch", reason="extra models is not installed")
    elif name in TRANSFORMERS:
        pytest.importorskip("transformers", reason="extra models is not installed")
    model = build(name)
    depths = models.encoder_depths(model, batch_of(1, 64))
    encoder = model.parts["encoder"]
    assert depths.keys() == set(encoder.parameters())
    places = {key: depths[parameter] for key, parameter in encoder.named_parameters()}
    for parts, expected in ((first, max(places.values())), (last, 0)):
        for part in parts:
            found = {place for key, place in places.items() if re.search(part, key)}
            assert found == {expected}, (part, sorted(places.items()))
    assert max(places.values()) == {"unet": 4}.get(name, 3)
