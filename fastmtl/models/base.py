"""The common interface of all models: one encoder, a module per task, parts that can be frozen by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.suggestions import nearest
from .heads import AuxiliaryHeads, Output, check_outputs, pooled_mlp
from .momentum import MomentumEmbedding, MomentumQueue


class MultiTaskModel(nn.Module):
    """The interface that the trainer and its stages need.

    Attributes:
        name: the model's name in error messages.
        names: the tasks, in the order of the outputs.
        stride: height and width of the images must be multiples of it.
    """

    name: str
    stride: int

    def __init__(self, name: str, tasks: Mapping[str, Output], kinds: Iterable[str]):
        super().__init__()
        check_outputs(tasks, name, tuple(kinds))
        self.name, self.names = name, list(tasks)
        self.selected = tuple(tasks)
        self.frozen: frozenset[str] = frozenset()

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Name -> module, for `freeze`: "encoder" and the model's other parts."""
        raise NotImplementedError

    def select(self, *names: str) -> None:
        """Compute only the outputs of these tasks from now on; without names, all of them.

        Heads that are not selected are not computed and get no gradient.
        """
        for name in names:
            if name not in self.names:
                raise ValueError(f"model {self.name!r} has no task {name!r}; {nearest(name, self.names)}")
        self.selected = tuple(name for name in self.names if name in names or not names)

    def freeze(self, *names: str) -> None:
        """Stop training these parts: no gradients; BatchNorm and dropout stay in evaluation mode.

        Args:
            names: keys of `parts`, or dotted paths of any module, for example "encoder.layer1".

        Raises:
            ValueError: unknown part.
        """
        for name in names:
            self.part(name).requires_grad_(False)
        self.frozen |= set(names)
        self.train(self.training)

    def unfreeze(self, *names: str) -> None:
        """Train these parts again; without names, all of them."""
        for name in names:
            if name not in self.frozen:
                known = sorted(self.frozen)
                hint = nearest(name, known) if known else "nothing is frozen."
                raise ValueError(f"part {name!r} of {self.name!r} is not frozen; {hint}")
        again = set(names) or self.frozen
        for name in again:
            self.part(name).requires_grad_(True)
        self.frozen -= again
        for name in self.frozen:  # parts within the ones just freed
            self.part(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MultiTaskModel:
        """As `nn.Module.train`, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.part(name).eval()
        return self

    def shared_parameters(self) -> Iterable[nn.Parameter]:
        """The encoder's trainable parameters; if the encoder is frozen, all trainable parameters.

        With a frozen encoder the tasks share no parameters and their gradients are orthogonal.
        """
        training = [parameter for parameter in self.parts["encoder"].parameters() if parameter.requires_grad]
        return training or [parameter for parameter in self.parameters() if parameter.requires_grad]

    def use_auxiliary(self, stride: int) -> None:
        """Switch all auxiliary tasks to the head on the encoder block at `stride`.

        Raises:
            ValueError: no head at this stride, or no auxiliary task.
        """
        heads = [module for module in self.modules() if isinstance(module, AuxiliaryHeads)]
        if not heads:
            raise ValueError(
                f"model {self.name!r} has no auxiliary task; add one with Output('auxiliary', 1), in a recipe with "
                '[tasks.auxiliary] kind = "auxiliary_segmentation".'
            )
        for head in heads:
            head.use(stride)

    def wanted(self, batch: Any) -> tuple[str, ...]:
        """The selected tasks, without those that no sample of the `Batch` can have a label for."""
        tasks = getattr(batch, "tasks", None)
        return self.selected if tasks is None else tuple(name for name in self.selected if name in tasks)

    def images_of(self, batch: Any) -> Tensor:
        """The images of a `Batch`, or the images themselves, with their size checked."""
        images: Tensor = batch if isinstance(batch, Tensor) else batch.images
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"{self.name} needs images [B, 3, H, W]; got {list(images.shape)}.")
        if not images.is_floating_point():
            raise ValueError(f"{self.name} needs normalised images of a floating type; got {images.dtype}.")
        if images.shape[-1] % self.stride or images.shape[-2] % self.stride or 0 in images.shape[-2:]:
            raise ValueError(
                f"{self.name} needs images whose sides are multiples of {self.stride}; got {list(images.shape)}. "
                "Pad or resize them."
            )
        return images

    def part(self, name: str) -> nn.Module:
        """The module of a name that `freeze` takes; ValueError if there is none."""
        parts = self.parts
        if name in parts:
            return parts[name]
        try:
            if name:
                return self.get_submodule(name)
        except AttributeError:
            pass
        raise ValueError(f"model {self.name!r} has no part {name!r}; {nearest(name, list(parts))}")


class PyramidModel(MultiTaskModel):
    """Encoder -> feature maps -> a decoder for each map, a head for each vector.

    Args:
        name: the model's name in error messages.
        tasks: task name -> `Output`.
        encoder: images [B, 3, H, W] -> list of feature maps, with `channels`, `strides` and `multiple` (height and
            width of the images must be multiples of it).
        decoder: channels -> module from the feature maps to a map of any size, for "map" and "image".
            None builds the model without decoders.
        head: channels -> module from the deepest feature map to [B, channels], for "vector" and "box"; None is global
            pooling and one linear layer.
        auxiliary_strides: see `AuxiliaryHeads`; None disables auxiliary tasks.
        trunk: module from the deepest feature map to the input of all heads; None passes the feature map itself.

    Each "embedding" pools the deepest feature map and applies two linear layers. A "momentum_embedding" does too, and
    has a `MomentumQueue` in training.
    """

    def __init__(
        self,
        name: str,
        tasks: Mapping[str, Output],
        encoder: Any,
        *,
        decoder: Callable[[int], nn.Module] | None = None,
        head: Callable[[int], nn.Module] | None = None,
        auxiliary_strides: Sequence[int] | None = None,
        trunk: nn.Module | None = None,
    ):
        deepest = encoder.channels[-1]

        def linear(channels: int) -> nn.Module:
            return pooled_mlp(deepest, (channels,))

        def projection(channels: int) -> nn.Module:
            return pooled_mlp(deepest, (deepest, channels))

        head = head or linear
        makers = {"map": decoder, "image": decoder, "vector": head, "box": head, "embedding": projection}
        makers["momentum_embedding"] = projection
        kinds = {kind for kind, make in makers.items() if make is not None}
        super().__init__(name, tasks, kinds | ({"auxiliary"} if auxiliary_strides is not None else set()))
        self.encoder, self.stride = encoder, encoder.multiple
        self.decoders, self.heads, self.auxiliary = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.projections, self.queues = nn.ModuleDict(), nn.ModuleDict()
        places = {"map": self.decoders, "image": self.decoders}
        places |= dict.fromkeys(("embedding", "momentum_embedding"), self.projections)
        for task, output in tasks.items():
            if output.kind == "auxiliary":
                self.auxiliary[task] = AuxiliaryHeads(
                    encoder.strides, encoder.channels, output.channels, auxiliary_strides or ()
                )
            else:
                make = cast("Callable[[int], nn.Module]", makers[output.kind])  # guaranteed by the check above
                places.get(output.kind, self.heads)[task] = make(output.channels)
            if output.kind == "momentum_embedding":
                projected = self.projections[task]
                self.queues[task] = MomentumQueue(encoder, projected, output.channels, output.queue, output.momentum)
        self.trunk = trunk if len(self.heads) else None

    @property
    def parts(self) -> dict[str, nn.Module]:
        """ "encoder", "decoders", "heads", "trunk", ... and each task's own, for example "decoders.mask"."""
        groups = ("encoder", "decoders", "trunk", "heads", "projections", "auxiliary")
        found = {name: self.get_submodule(name) for name in groups if getattr(self, name) is not None}
        found = {name: part for name, part in found.items() if next(part.parameters(), None) is not None}
        own = {
            f"{name}.{task}": module
            for name, part in found.items()
            if isinstance(part, nn.ModuleDict)
            for task, module in part.items()
        }
        return found | own

    def encode(self, batch: Any, images: Tensor, encoder: nn.Module | None = None) -> list[Tensor]:
        """The feature maps of `encoder`, or of the model's own; models that use more of the batch than its images
        override it."""
        return (self.encoder if encoder is None else encoder)(images)

    def forward(self, batch: Any) -> dict[str, Any]:
        images = self.images_of(batch)
        features = self.encode(batch, images)
        wanted = self.wanted(batch)
        outputs: dict[str, Any] = {}
        for name, decoder in self.decoders.items():
            if name in wanted:
                outputs[name] = resize(decoder(features), images)
        read = features[-1]
        if self.trunk is not None and any(name in wanted for name in self.heads):
            read = self.trunk(read)
        outputs |= {name: head(read) for name, head in self.heads.items() if name in wanted}
        outputs |= {name: head(features[-1]) for name, head in self.projections.items() if name in wanted}
        outputs |= {name: heads(features) for name, heads in self.auxiliary.items() if name in wanted}
        for name in self.queues if self.training else ():
            if name in wanted:
                outputs[name] = self._with_queue(name, outputs[name], batch, images)
        return {name: outputs[name] for name in wanted}

    def _with_queue(self, name: str, queries: Tensor, batch: Any, images: Tensor) -> MomentumEmbedding:
        def encode(encoder: nn.Module) -> list[Tensor]:
            return self.encode(batch, images, encoder)

        learns = torch.is_grad_enabled()
        keys, queue = self.queues[name](encode, self.encoder, self.projections[name], learns)
        return MomentumEmbedding(queries, keys, queue)


def resize(logits: Tensor, images: Tensor) -> Tensor:
    """`logits` [B, C, h, w] resized bilinearly to the images' size; returned as is if they already match."""
    if logits.shape[-2:] == images.shape[-2:]:
        return logits
    return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
