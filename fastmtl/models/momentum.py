"""A momentum encoder with a queue of its outputs, for contrastive learning with small batches (MoCo v2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn


class MomentumEmbedding(NamedTuple):
    """What a contrastive task needs in training.

    Attributes:
        queries: [B, D] projections of the trained encoder, not normalised.
        keys: [B, D] unit vectors of the momentum encoder, without a graph.
        queue: [K, D] unit vectors, the keys of earlier batches, in no order.
    """

    queries: Tensor
    keys: Tensor
    queue: Tensor


class MomentumQueue(nn.Module):
    """He et al. 2020, MoCo: keys from a moving average of encoder and projection, and a queue of the latest keys.

    Before each training step the average moves: w' <- m w' + (1 - m) w, the running statistics of BatchNorm too. The
    average is always in evaluation mode, so that no statistics of the batch tell a query its key (MoCo shuffles the
    batch over several GPUs for that; averaged statistics are Cai et al.'s, CVPR 2021). Average and queue are part of
    the model's state. With several ranks all have the same queue, of all ranks' keys.

    A forward pass without a graph changes nothing, so that a batch can be evaluated again.

    Args:
        encoder: images -> feature maps, of which the last is projected.
        projection: feature map -> [B, dimensions].
        dimensions: D.
        length: K.
        momentum: m.
    """

    keys: Tensor
    place: Tensor
    started: Tensor

    def __init__(self, encoder: nn.Module, projection: nn.Module, dimensions: int, length: int, momentum: float):
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.projection = copy.deepcopy(projection).requires_grad_(False)
        self.momentum = momentum
        self.register_buffer("keys", F.normalize(torch.randn(length, dimensions), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.zeros(()))  # 0: the first step copies the weights, which may be loaded
        self.train(self.training)

    def train(self, mode: bool = True) -> MomentumQueue:
        """As `nn.Module.train`; the moving average stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        self.projection.eval()
        return self

    @torch.no_grad()
    def forward(
        self, encode: Callable[[nn.Module], Sequence[Tensor]], encoder: nn.Module, projection: nn.Module, learns: bool
    ) -> tuple[Tensor, Tensor]:
        """Keys [B, D] of the batch and the queue [K, D] before they join it; `learns` allows changes of the state.

        Args:
            encode: an encoder -> the batch's feature maps.
            encoder, projection: the trained ones, which the average follows.
        """
        if learns:
            self._follow(encoder, projection)
        keys = F.normalize(self.projection(encode(self.encoder)[-1]).float(), dim=1)
        queue = self.keys.clone()
        if learns:
            self._append(_of_all_ranks(keys))
        return keys, queue

    def _follow(self, encoder: nn.Module, projection: nn.Module) -> None:
        weight = torch.where(self.started > 0, 1 - self.momentum, 1.0)
        for old_module, new_module in ((self.encoder, encoder), (self.projection, projection)):
            pairs: Any = zip(_tensors(old_module), _tensors(new_module), strict=True)
            for old, new in pairs:
                if old.is_floating_point():
                    old.lerp_(new, weight.to(old.dtype))
                else:
                    old.copy_(new)
        self.started.fill_(1)

    def _append(self, keys: Tensor) -> None:
        keys = keys[-len(self.keys) :]
        rows = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        # A key that is not finite would make the loss NaN until it leaves the queue.
        keys = torch.where(keys.isfinite().all(1, keepdim=True), keys, self.keys[rows])
        self.keys.index_copy_(0, rows, keys)
        self.place.add_(len(keys)).remainder_(len(self.keys))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _of_all_ranks(keys: Tensor) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return keys
    parts = [torch.empty_like(keys) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, keys)
    return torch.cat(parts)
