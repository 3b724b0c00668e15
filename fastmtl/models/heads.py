"""The outputs that tasks request from a model, and the small modules that compute them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor, nn

Kind = Literal["map", "vector", "box", "image", "embedding", "momentum_embedding", "queries", "auxiliary"]


@dataclass(frozen=True)
class Output:
    """The output that a task needs; logits and coordinates are returned before sigmoid or softmax.

    Attributes:
        kind: "map" [B, channels, H, W] logits at the input's size; "vector" [B, channels] logits or values; "box"
            [B, 4] logits or pixels of a box, see `tasks.BoundingBox`; "image" [B, 3, H, W], a reconstruction of the
            standardised input; "embedding" [B, channels], a projection for contrastive losses; "momentum_embedding" the
            same in evaluation, in training a `MomentumEmbedding`; "queries" a `Queries` for channels classes;
            "auxiliary" [B, channels, h, w] logits of an encoder block at a lower stride (see `AuxiliaryHeads`).
        channels: logits per pixel, image or embedding; 4 for a box, 3 for an image, classes for queries.
        queue, momentum: of a "momentum_embedding", see `MomentumQueue`.
    """

    kind: Kind
    channels: int
    queue: int = 0
    momentum: float = 0.0


class Queries(NamedTuple):
    """Outputs for universal segmentation, as `losses.Mask2FormerLoss` expects them.

    Attributes:
        class_logits: [B, Q, C + 1]; the last is "no object".
        mask_logits: [B, Q, h, w], at stride 4.
        auxiliary: (class_logits, mask_logits) of the decoder's earlier layers, in the same shapes.
    """

    class_logits: Tensor
    mask_logits: Tensor
    auxiliary: tuple[tuple[Tensor, Tensor], ...]


def check_outputs(tasks: Mapping[str, Output], model: str, kinds: Collection[str]) -> None:
    """Raise ValueError for no tasks, a name that is not valid for a module, or a kind this model does not support."""
    if not isinstance(tasks, Mapping) or not all(isinstance(output, Output) for output in tasks.values()):
        raise ValueError(f"`tasks` of {model!r} must map names to Output(kind, channels); got {tasks!r}.")
    if not tasks:
        raise ValueError(f"`tasks` of {model!r} is empty; give at least one, e.g. {{'mask': Output('map', 1)}}.")
    for name, output in tasks.items():
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise ValueError(
                f"task name {name!r} of {model!r} is not a valid module name; choose another, without dots."
            )
        if output.kind not in get_args(Kind):
            raise ValueError(
                f"task {name!r} of {model!r} must request one of {', '.join(get_args(Kind))}; got {output}."
            )
        if output.kind not in kinds:
            raise ValueError(
                f"model {model!r} supports {', '.join(sorted(kinds))}; task {name!r} requests {output.kind!r}. "
                "Remove the task or choose another model."
            )
        fixed = {"box": 4, "image": 3}.get(output.kind)
        if isinstance(output.channels, bool) or not isinstance(output.channels, int) or output.channels < 1:
            raise ValueError(f"task {name!r} of {model!r} must request at least one channel; got {output}.")
        if fixed and output.channels != fixed:
            raise ValueError(f"task {name!r} of {model!r}: {output.kind!r} has {fixed} channels; got {output}.")


class VectorHead(nn.Module):
    """Pool -> Linear -> ReLU -> Dropout -> Linear: features [B, C, h, w] to logits [B, channels].

    Args:
        in_channels: C.
        channels: logits per image.
        hidden: width of the hidden layer.
        grid: the features are average-pooled to grid x grid, then flattened; 1 is global pooling; the side of the
            feature map keeps every position, as in the Joint U-Net paper's flattened 512 x 24 x 24.
        dropout: probability, before the last layer.
    """

    def __init__(self, in_channels: int, channels: int, *, hidden: int = 64, grid: int = 1, dropout: float = 0.0):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.hidden = nn.Linear(in_channels * grid * grid, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.relu(self.hidden(self.pool(features).flatten(1)))
        return self.out(self.dropout(hidden))


def pooled_mlp(in_channels: int, widths: Sequence[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Global average pool, then Linear layers of these widths with ReLU in between: [B, C, h, w] -> [B, widths[-1]]."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    width = in_channels
    for number, outer in enumerate(widths):
        if number:
            layers.append(nn.ReLU(inplace=True))
        if dropout and number == len(widths) - 1:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(width, outer))
        width = outer
    return nn.Sequential(*layers)


class AuxiliaryHeads(nn.Module):
    """1x1 convolutions on encoder blocks, one of them active: features -> [B, channels, H / stride, W / stride].

    The switched auxiliary loss trains with the head at stride 8 (block 2) first, then with the one at stride 4
    (block 1); the others are not part of the graph and get no gradient.

    Args:
        encoder_strides, encoder_channels: of the encoder's feature maps.
        channels: logits per position.
        strides: the blocks that get a head (of several at one stride the first); the first is active until `use`
            selects another.

    Raises:
        ValueError: a stride that the encoder does not have.
    """

    def __init__(
        self,
        encoder_strides: Sequence[int],
        encoder_channels: Sequence[int],
        channels: int,
        strides: Sequence[int] = (8, 4),
    ):
        super().__init__()
        for stride in strides:
            if stride not in encoder_strides:
                known = sorted(set(encoder_strides))
                raise ValueError(f"`auxiliary_strides` must be among the encoder's {known}; got {stride}.")
        if not strides:
            raise ValueError("`auxiliary_strides` is empty; an auxiliary task needs at least one encoder block.")
        self.places = {stride: list(encoder_strides).index(stride) for stride in strides}
        self.convs = nn.ModuleDict(
            {
                f"stride{stride}": nn.Conv2d(encoder_channels[place], channels, 1)
                for stride, place in self.places.items()
            }
        )
        self.stride = strides[0]

    def use(self, stride: int) -> None:
        """Use the head at `stride` from now on."""
        if stride not in self.places:
            raise ValueError(f"`stride` must be one of {list(self.places)}, which have auxiliary heads; got {stride}.")
        self.stride = stride

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.convs[f"stride{self.stride}"](features[self.places[self.stride]])
