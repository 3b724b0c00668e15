"""Mask2Tasks: transformers' Mask2Former on Swin-T for universal segmentation, and a classifier on its encoder.

Two-stage training: first the "queries" task alone; then `freeze("encoder", "pixel_decoder", "transformer")` and
`select` the classification task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from .base import MultiTaskModel
from .encoders import STAGES, SWIN_T, library, scaled, swin_t_config
from .heads import Output, Queries, pooled_mlp
from .published import Published
from .registry import ModelInfo, Row, register_model

SEGMENTS = Output("queries", 2)  # background and tumour, as in the task universal_segmentation


@register_model(
    "mask2tasks",
    ModelInfo(
        summary="Mask2Former with Swin-T; a classifier of three layers on the encoder's features",
        paper="Mask2Tasks on EBHI-Seg (Le Xuan et al.)",
        channels=(96, 192, 384, 768),
        strides=(4, 8, 16, 32),
        extra="models",
        rows={
            "segmentation, classification": Row(
                {"segmentation": SEGMENTS, "classification": Output("vector", 6)}, 47_633_667
            ),
            "segmentation": Row({"segmentation": SEGMENTS}, 47_403_133),
        },
        tiny={"width": 1 / 8, "depth": 0.25, "drop_path": 0.0, "num_queries": 6, "head_widths": (32, 16)},
    ),
)
class Mask2Tasks(MultiTaskModel):
    """Universal segmentation and classification on one encoder.

    Args:
        tasks: task name -> `Output`: at most one "queries" (channels is the number of segment classes, without "no
            object"), any "vector"s.
        head_stage: which of the encoder's stages the classifiers read, 1 (stride 4) to 4 (stride 32); the paper says
            "low-level features given by the encoder".
        head_widths: of the classifiers' hidden layers.
        num_queries: Q.
        decoder_layers: of the transformer decoder; each layer returns a prediction, the last one is used.
        width: multiplies the channels of encoder and decoders.
        depth: multiplies the blocks of the encoder and the layers of the decoders.
        drop_path: probability that the encoder's deepest residual branch is dropped.

    Shape:
        batch: a `Batch`, or images [B, 3, H, W] with H and W multiples of 32.
        output: `Queries` at stride 4, and [B, channels].

    transformers' decoder waits for the device once per layer, to find empty attention masks.
    """

    stride = 32
    published: ClassVar[dict[str, Published]] = {
        "imagenet": SWIN_T,
        "ade": Published("facebook/mask2former-swin-tiny-ade-semantic"),
        "coco": Published("facebook/mask2former-swin-tiny-coco-panoptic"),
    }

    def __init__(
        self,
        tasks: Mapping[str, Output],
        *,
        head_stage: int = 4,
        head_widths: tuple[int, ...] = (256, 128),
        num_queries: int = 100,
        decoder_layers: int = 10,
        width: float = 1.0,
        depth: float = 1.0,
        drop_path: float = 0.3,
    ):
        super().__init__("mask2tasks", tasks, ("queries", "vector"))
        universal = [name for name, output in tasks.items() if output.kind == "queries"]
        if len(universal) > 1:
            raise ValueError(f"mask2tasks has one set of queries; tasks {', '.join(map(repr, universal))} ask for it.")
        if head_stage not in (1, 2, 3, 4):
            raise ValueError(f"`head_stage` of mask2tasks must be 1 to 4; got {head_stage!r}.")
        transformers = library("transformers", "mask2tasks")
        backbone = swin_t_config(width=width, depth=depth, drop_path=drop_path, out_features=list(STAGES))
        hidden = scaled(256, width, 16)  # of 8 heads, with as many sines as cosines in the position embedding
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone,
            num_labels=tasks[universal[0]].channels if universal else 1,
            feature_size=hidden,
            mask_feature_size=hidden,
            hidden_dim=hidden,
            encoder_feedforward_dim=scaled(1024, width),
            dim_feedforward=scaled(2048, width),
            encoder_layers=max(1, round(6 * depth)),
            decoder_layers=max(2, round((decoder_layers - 1) * depth) + 1),
            num_queries=num_queries,
        )
        self.net = transformers.Mask2FormerForUniversalSegmentation(config)
        del self.net.criterion  # losses.Mask2FormerLoss replaces it
        self.universal = universal[0] if universal else None
        self.channels = [backbone.embed_dim * 2**stage for stage in range(4)]
        self.head_stage = head_stage
        inner = self.channels[head_stage - 1]
        self.heads = nn.ModuleDict(
            {
                name: pooled_mlp(inner, (*head_widths, output.channels))
                for name, output in tasks.items()
                if output.kind == "vector"
            }
        )

    @property
    def parts(self) -> dict[str, nn.Module]:
        """ "encoder", "pixel_decoder", "transformer", "class_predictor", "heads" and each "heads.TASK"."""
        level = self.net.model.pixel_level_module
        found: dict[str, nn.Module] = {
            "encoder": level.encoder,
            "pixel_decoder": level.decoder,
            "transformer": self.net.model.transformer_module,
            "class_predictor": self.net.class_predictor,
        }
        if len(self.heads):
            found |= {"heads": self.heads} | {f"heads.{name}": head for name, head in self.heads.items()}
        return found

    def forward(self, batch: Any) -> dict[str, Any]:
        images = self.images_of(batch)
        features = self.net.model.pixel_level_module.encoder(images).feature_maps
        outputs: dict[str, Any] = {}
        for name in self.wanted(batch):
            if name == self.universal:
                outputs[name] = self._queries(features)
            else:
                outputs[name] = self.heads[name](features[self.head_stage - 1])
        return outputs

    def _queries(self, features: tuple[Tensor, ...]) -> Queries:
        decoded = self.net.model.pixel_level_module.decoder(features)
        states = self.net.model.transformer_module(
            multi_scale_features=decoded.multi_scale_features,
            mask_features=decoded.mask_features,
            output_hidden_states=True,
        )
        classes = [self.net.class_predictor(state.transpose(0, 1)) for state in states.intermediate_hidden_states]
        masks = list(states.masks_queries_logits)
        return Queries(classes[-1], masks[-1], tuple(zip(classes[:-1], masks[:-1], strict=True)))
