"""Small UNet of the gastro-intestinal tract paper, with FiLM; position and contrastive learning are tasks.

The paper specifies "two convolutional layers" per level and FiLM's 48 scales and shifts after the first convolution;
doubling the 48 channels down to stride 16 and the transposed convolutions follow the original U-Net.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn

from .base import PyramidModel
from .film import FiLM
from .heads import Output, pooled_mlp
from .registry import ModelInfo, Row, register_model, register_variant
from .unet import PooledEncoder, UNetDecoder, double_conv, doubled

PAPER = "Gastro-intestinal tract segmentation (Chia, Gu, Lui)"
ORGANS = {"organs": Output("map", 3)}
POSITION = ORGANS | {"position": Output("vector", 1)}
CONTRASTIVE = ORGANS | {"contrastive": Output("embedding", 128)}
METADATA = 7  # slice position, case, day, pixel height and width, image height and width


class FilmEncoder(PooledEncoder):
    """`PooledEncoder` of double convolutions; metadata [B, M] modulates the first convolution."""

    def __init__(self, channels: list[int], num_features: int, hidden: int):
        super().__init__(channels, double_conv)
        self.film = FiLM(num_features, channels[0], hidden=hidden)

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> list[Tensor]:
        if metadata is None:
            raise ValueError("an encoder with FiLM needs `metadata` [B, M].")
        convolution, *others = cast(nn.Sequential, self.stages[0])
        x = self.film(convolution(images), metadata)
        for module in others:
            x = module(x)
        return self.rest(x)


@register_model(
    "small_unet",
    ModelInfo(
        summary="U-Net of double convolutions, 48 channels at the top",
        paper=PAPER,
        channels=(48, 96, 192, 384, 768),
        strides=(1, 2, 4, 8, 16),
        rows={
            "organs": Row(ORGANS, 17_461_491),
            "organs, position": Row(POSITION, 17_510_772),
            "organs, contrastive": Row(CONTRASTIVE, 18_150_515),
        },
        tiny={"base_channels": 6},
    ),
)
class SmallUNet(PyramidModel):
    """A plain U-Net.

    Args:
        tasks: task name -> `Output`: a "map" for the organs, a "vector" for the slice's position, an "embedding" for
            contrastive learning ...
        base_channels: width at stride 1; doubles at every level.
        levels: resolutions; the last is at stride 2 ** (levels - 1).
        up: see `UNetDecoder`.
        film: whether `batch.metadata["film"]`, float32 [B, film_features], modulates the first convolution.
        film_features: M.
        film_hidden: width of FiLM's hidden layers.
        head_hidden: width of the vector heads' hidden layer.
    """

    def __init__(
        self,
        tasks: Mapping[str, Output],
        *,
        base_channels: int = 48,
        levels: int = 5,
        up: Literal["bilinear", "transposed"] = "transposed",
        film: bool = False,
        film_features: int = METADATA,
        film_hidden: int = 64,
        head_hidden: int = 64,
    ):
        channels = doubled("small_unet", base_channels, levels)
        super().__init__(
            "small_unet",
            tasks,
            FilmEncoder(channels, film_features, film_hidden) if film else PooledEncoder(channels, double_conv),
            decoder=lambda outputs: UNetDecoder(channels, outputs, up=up),
            head=lambda outputs: pooled_mlp(channels[-1], (head_hidden, outputs)),
            auxiliary_strides=(8, 4),
        )
        self.film = film

    def encode(self, batch: Any, images: Tensor, encoder: nn.Module | None = None) -> list[Tensor]:
        chosen = self.encoder if encoder is None else encoder
        if not self.film:
            return chosen(images)
        metadata = None if isinstance(batch, Tensor) else batch.metadata.get("film")
        wanted = [images.shape[0], self.encoder.film.num_features]
        if metadata is None or list(metadata.shape) != wanted:
            found = "none" if metadata is None else list(metadata.shape)
            raise ValueError(f"small_unet with film=True needs a Batch with metadata['film'] {wanted}; got {found}.")
        return chosen(images, metadata)


register_variant(
    "small_unet_film",
    "small_unet",
    ModelInfo(
        summary="Small UNet with feature-wise linear modulation by the scan's metadata",
        paper=PAPER,
        channels=(48, 96, 192, 384, 768),
        strides=(1, 2, 4, 8, 16),
        rows={"organs": Row(ORGANS, 17_477_075)},
        tiny={"base_channels": 6, "film_hidden": 8},
    ),
    film=True,
)
