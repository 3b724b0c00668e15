"""Encoders of transformers, timm and segmentation-models-pytorch as feature pyramids; libraries are imported on use.

Each is a module with `channels`, `strides` and `multiple` (height and width must be multiples of it) that returns a
list of feature maps for images [B, 3, H, W]. `width` multiplies channels, `depth` the blocks of each stage.
The library's network is the attribute `net`, so that its pretrained weights keep their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ..utils.normalization import HALF, IMAGENET, Normalization
from ..utils.optional_imports import require
from ..utils.torchvision_guard import make_torchvision_importable
from .published import Published

STAGES = ("stage1", "stage2", "stage3", "stage4")
SWIN_T = Published("microsoft/swin-tiny-patch4-window7-224")


def library(name: str, what: str) -> ModuleType:
    """Import the library `name` of the extra `models`; `what` needs it."""
    make_torchvision_importable()
    return require(name, what, extra="models")


def scaled(value: int, factor: float, multiple: int = 1) -> int:
    """`value` times `factor`, rounded to the nearest positive multiple of `multiple`."""
    if not factor > 0:
        raise ValueError(f"`width` must be above 0; got {factor}.")
    return max(1, round(value * factor / multiple)) * multiple


def repeats(counts: Sequence[int], depth: float) -> list[int]:
    """Blocks per stage times `depth`, rounded up."""
    if not depth > 0:
        raise ValueError(f"`depth` must be above 0; got {depth}.")
    return [math.ceil(count * depth) for count in counts]


class Pyramid(nn.Module):
    """A library's network and how to read its feature maps; for `published` see `published_weights`."""

    def __init__(
        self,
        net: nn.Module,
        read: Callable[[nn.Module, Tensor], Sequence[Tensor]],
        channels: Sequence[int],
        strides: Sequence[int] = (4, 8, 16, 32),
        multiple: int = 32,
        *,
        published: Mapping[str, Published],
    ):
        super().__init__()
        self.net, self.read, self.published = net, read, published
        self.channels, self.strides, self.multiple = list(channels), list(strides), multiple

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.read(self.net, images))


def _feature_maps(net: nn.Module, images: Tensor) -> Sequence[Tensor]:
    return net(images).feature_maps


def _last_state(net: nn.Module, images: Tensor) -> Sequence[Tensor]:
    return [net(images).last_hidden_state]


def _as_it_is(net: nn.Module, images: Tensor) -> Sequence[Tensor]:
    return net(images)


def swin_t_config(*, width: float = 1.0, depth: float = 1.0, drop_path: float = 0.2, **options: Any) -> Any:
    """transformers' configuration of Swin-T: 96 to 768 channels at strides 4 to 32."""
    transformers = library("transformers", "Swin")
    return transformers.SwinConfig(
        embed_dim=scaled(96, width, 3),  # a multiple of the first stage's heads
        depths=repeats((2, 2, 6, 2), depth),
        num_heads=[3, 6, 12, 24],
        drop_path_rate=drop_path,
        **options,
    )


def swin_t(*, width: float = 1.0, depth: float = 1.0, drop_path: float = 0.2) -> Pyramid:
    """The last stage of Swin-T: [B, 768, H / 32, W / 32]. For classifiers."""
    config = swin_t_config(width=width, depth=depth, drop_path=drop_path, out_features=["stage4"])
    net = library("transformers", "Swin").SwinBackbone(config)
    net.swin.layernorm = nn.Identity()  # the backbone does not use it: its parameters would get no gradient
    return Pyramid(net, _feature_maps, [config.embed_dim * 8], [32], published={"imagenet": SWIN_T})


def mit_b2(*, width: float = 1.0, depth: float = 1.0, drop_path: float = 0.1) -> Pyramid:
    """SegFormer's encoder MiT-b2: 64, 128, 320, 512 channels at strides 4 to 32."""
    transformers = library("transformers", "SegFormer's encoder")
    channels = _four(width)
    config = transformers.SegformerConfig(
        hidden_sizes=channels, depths=repeats((3, 4, 6, 3), depth), drop_path_rate=drop_path
    )

    def read(net: nn.Module, images: Tensor) -> Sequence[Tensor]:
        return net(images, output_hidden_states=True).hidden_states[-4:]

    published = {"imagenet": Published("nvidia/mit-b2")}
    return Pyramid(transformers.SegformerModel(config), read, channels, published=published)


def pvtv2_b2(*, width: float = 1.0, depth: float = 1.0, drop_path: float = 0.1) -> Pyramid:
    """PVTv2-b2: 64, 128, 320, 512 channels at strides 4 to 32."""
    transformers = library("transformers", "PVTv2")
    channels = _four(width)
    config = transformers.PvtV2Config(
        hidden_sizes=channels,
        depths=repeats((3, 4, 6, 3), depth),
        drop_path_rate=drop_path,
        out_features=list(STAGES),
    )
    published = {"imagenet": Published("OpenGVLab/pvt_v2_b2")}
    return Pyramid(transformers.PvtV2Backbone(config), _feature_maps, channels, published=published)


def _four(width: float) -> list[int]:
    """Channels of MiT-b2 and PVTv2-b2, multiples of their stages' heads."""
    return [scaled(value, width, heads) for value, heads in ((64, 1), (128, 2), (320, 5), (512, 8))]


def efficientnet_b0(*, width: float = 1.0, depth: float = 1.0, drop_path: float = 0.2) -> Pyramid:
    """EfficientNet-b0 with its top convolution: [B, 1280, H / 32, W / 32]. For classifiers."""
    transformers = library("transformers", "EfficientNet")
    top = _round_filters(1280, width)
    config = transformers.EfficientNetConfig(
        width_coefficient=float(width),
        depth_coefficient=float(depth),
        hidden_dim=top,
        drop_connect_rate=drop_path,
        # transformers' default 0.99 is TensorFlow's definition of momentum; in torch it would keep only the last batch.
        batch_norm_momentum=0.01,
    )

    net = transformers.EfficientNetModel(config)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # transformers initialises the scales around 0, which blocks the signal
            nn.init.ones_(module.weight)

    return Pyramid(net, _last_state, [top], [32], published={"imagenet": Published("google/efficientnet-b0")})


def _round_filters(value: int, width: float) -> int:
    """EfficientNet's rule: multiples of 8, never more than 10 % below."""
    wanted = value * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


COAT = {
    "coat_lite_medium": ((128, 256, 320, 512), (3, 6, 10, 8)),
    "coat_lite_small": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "coat_small": ((152, 320, 320, 320), (2, 2, 2, 2)),
    "coat_mini": ((152, 216, 216, 216), (2, 2, 2, 2)),
}


class CoaT(nn.Module):
    """timm's CoaT as a pyramid at strides 4 to 32; accepts any image size, which timm fixes at construction."""

    def __init__(self, kind: str = "coat_lite_medium", *, width: float = 1.0, depth: float = 1.0, drop_path: float = 0):
        super().__init__()
        if kind not in COAT:
            raise ValueError(f"`encoder` must be one of {', '.join(COAT)}; got {kind!r}.")
        channels, counts = COAT[kind]
        self.channels = [scaled(value, width, 8) for value in channels]  # of 8 heads
        self.strides, self.multiple = [4, 8, 16, 32], 32
        self.features = [f"x{number}_nocls" for number in range(1, 5)]
        timm, scales = library("timm", "CoaT"), {}
        if width != 1 or depth != 1:  # some of timm's functions cannot take them
            scales = {"embed_dims": self.channels, "serial_depths": repeats(counts, depth)}
        self.published = _timm_published(kind)
        self.net = timm.create_model(
            kind,
            **scales,
            drop_path_rate=drop_path,
            return_interm_layers=True,
            out_features=self.features,
            img_size=224,
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        if self.net.patch_embed1.img_size != (height, width):
            # No parameter depends on the size; the four embeddings only check it.
            for number, stride in enumerate((1, 4, 8, 16), start=1):
                getattr(self.net, f"patch_embed{number}").set_input_size((height // stride, width // stride))
        found = self.net(images)
        return [found[name] for name in self.features]


def smp_encoder(name: str, *, output_stride: int = 32) -> Pyramid:
    """An encoder of segmentation-models-pytorch by its name there; the first feature map is the image itself.

    Raises:
        ValueError: unknown name.
    """
    smp = library("segmentation_models_pytorch", f"the encoder {name!r}")
    try:
        net = smp.encoders.get_encoder(name, in_channels=3, depth=5, weights=None, output_stride=output_stride)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"segmentation-models-pytorch has no encoder {name!r}; it has efficientnet-b5, resnet101, ... "
            "and timm's as tu-NAME."
        ) from error
    strides = [min(2**level, output_stride) for level in range(6)]
    if name.startswith("tu-"):
        published = _timm_published(name.removeprefix("tu-"))
    else:
        published = {
            weights: Published(found["repo_id"], _smp_normalization(name, weights), found["revision"])
            for weights, found in smp.encoders.encoders[name]["pretrained_settings"].items()
        }
    return Pyramid(net, _as_it_is, net.out_channels, strides, published=published)


class TopConvolution(nn.Module):
    """The convolution between the deepest feature map of timm's EfficientNets and their classifier, under timm's names.

    [B, C, h, w] -> [B, channels, h, w]; pretrained like the encoder, it is most of what a classifier gets from weights.

    Args:
        name: the encoder, "tu-..." for timm's.

    Raises:
        ValueError: the encoder has none.
    """

    def __init__(self, name: str):
        super().__init__()
        net: Any = None
        if name.startswith("tu-"):
            net = library("timm", f"the encoder {name!r}").create_model(name.removeprefix("tu-"), num_classes=0)
        if not (hasattr(net, "conv_head") and hasattr(net, "bn2")):
            raise ValueError(
                f"the encoder {name!r} has no top convolution: timm's EfficientNets have one, for example "
                "tu-tf_efficientnet_lite0. Set `top` to false."
            )
        self.conv_head, self.bn2 = net.conv_head, net.bn2
        self.channels: int = net.conv_head.out_channels

    def forward(self, features: Tensor) -> Tensor:
        return self.bn2(self.conv_head(features))


def _timm_published(name: str) -> dict[str, Published]:
    """timm's default weights of a network."""
    found: Any = library("timm", f"the encoder {name!r}").get_pretrained_cfg(name)
    if found is None or not found.hf_hub_id:
        return {}
    return {"imagenet": Published(found.hf_hub_id, Normalization.of(found.mean, found.std))}


def _smp_normalization(name: str, weights: str) -> Normalization:
    if weights == "advprop" or name in ("inceptionresnetv2", "inceptionv4", "xception"):
        return HALF
    if name.startswith("dpn"):  # its authors subtract 124, 117, 104 and multiply by 0.0167, of 0..255
        return Normalization.of((124 / 255, 117 / 255, 104 / 255), [1 / (0.0167 * 255)] * 3)
    return IMAGENET
