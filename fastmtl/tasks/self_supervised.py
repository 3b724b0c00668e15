"""Tasks that need no annotation: reconstruct the image, match neighbouring samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import losses
from ..models import MomentumEmbedding, Output
from ..protocols import Batch, Target
from .base import BaseTask, fraction, positive
from .registry import register_task

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


@register_task("reconstruction")
class Reconstruction(BaseTask):
    """Reconstruct the network's input: mean squared error on [B, 3, H, W] against `Batch.images`.

    Loss and `rmse` are in units of the normalised image, (pixel - data.mean) / data.std of pixels in 0..1: with mean 0
    and std 1/255 those of pixels 0..255.
    """

    target: Target = Target("none")

    def __init__(self, name: str, column: int):
        super().__init__(name, column)
        self.output = Output("image", 3)
        self.criterion = losses.MSELoss()

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar, in squared units of the normalised image."""
        return self.criterion(output.float(), batch.images, mask=self.has_label(batch))

    def predict(self, output: Tensor, batch: Batch | None = None) -> Tensor:
        """The normalised image [B, 3, H, W]."""
        return output.float()

    def metrics(self) -> MetricCollection:
        """`rmse`, of the normalised image."""
        from .metrics import error_metrics

        return error_metrics()

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the batch to `metrics`."""
        metrics.update(self.predict(output).flatten(), batch.images.flatten())


@register_task("contrastive")
class Contrastive(BaseTask):
    """Contrastive learning of neighbours, the pairs that the sampler drew; needs data.sampler = "pairs".

    Without a queue: NT-Xent on projections [B, D], the other samples of the batch being the negatives. With one,
    InfoNCE of MoCo v2: of each pair the first is the query, its key is the momentum encoder's projection of the second,
    and the negatives are the keys of earlier batches. Samples without a partner in the batch are excluded.

    Args:
        temperature: see `ops.nt_xent_loss`; MoCo v2 has 0.2.
        dimensions: D.
        queue: K, the number of earlier keys; 0: NT-Xent.
        momentum: of the momentum encoder, in [0, 1).
    """

    target: Target = Target("pair")

    def __init__(
        self,
        name: str,
        column: int,
        *,
        temperature: float = 0.1,
        dimensions: int = 128,
        queue: int = 0,
        momentum: float = 0.999,
    ):
        super().__init__(name, column)
        positive(name, "dimensions", dimensions)
        if type(queue) is not int or queue < 0:  # true is no length
            raise ValueError(f"task {name!r}: `queue` must be a whole number of 0 or more; got {queue!r}.")
        fraction(name, "momentum", momentum)
        self.temperature = positive(name, "temperature", temperature)
        self.output = (
            Output("momentum_embedding", dimensions, queue, momentum) if queue else Output("embedding", dimensions)
        )
        self.criterion = losses.NTXentLoss(temperature=self.temperature)

    def loss(self, output: Tensor | MomentumEmbedding, batch: Batch) -> Tensor:
        """Scalar; 0, with a graph, when no sample has its partner in the batch."""
        first, second, whole = self._pairs(batch)
        if isinstance(output, Tensor):
            return self.criterion(output[first], output[second], mask=whole)
        queries = F.normalize(output.queries[first].float(), dim=1)
        found = (queries * output.keys[second]).sum(1, keepdim=True)
        logits = torch.cat([found, queries @ output.queue.T], 1) / self.temperature
        each = F.cross_entropy(logits, torch.zeros_like(first), reduction="none")
        return torch.where(whole, each, 0.0).sum() / whole.sum().clamp(min=1)

    def predict(self, output: Tensor | MomentumEmbedding, batch: Batch | None = None) -> Tensor:
        """Unit vectors [B, D]."""
        return F.normalize((output if isinstance(output, Tensor) else output.queries).float(), dim=1)

    def metrics(self) -> MetricCollection:
        """`found`: how often a sample's partner is its nearest neighbour in the batch."""
        from .metrics import share_metrics

        return share_metrics("found")

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the batch's pairs to `metrics`."""
        partner = batch.targets[self.name]
        if (partner >= 0).any():
            unit = self.predict(output)
            alike = (unit @ unit.T).fill_diagonal_(-2)
            metrics.update((alike.argmax(1) == partner)[partner >= 0].float())

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(first, second, whole): int64 [B // 2] rows, and which of them are pairs; no shape depends on the data."""
        partner = batch.targets[self.name]
        rows = torch.arange(len(partner), device=partner.device)
        leads = partner > rows
        first = torch.argsort(leads.logical_not().to(torch.uint8), stable=True)[: max(1, len(partner) // 2)]
        return first, partner[first].clamp(min=0), leads[first]
