"""Mask2Former's loss with matching, point sampling and padding on the device: no loop over samples, no host sync."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import ops
from ..ops.core.checks import FLOATING, finite, names
from ..ops.matching.uncertain_points import check_ratios, random_points
from ..utils.deprecation import accept_renamed
from .mask2former_targets import INTEGERS, Targets, as_targets, known_targets
from .mask2former_targets import pad_targets as pad_targets

Prediction = tuple[Tensor, Tensor] | Mapping[str, Tensor]


class Mask2FormerLoss(nn.Module):
    """Set prediction of masks: match queries with targets, then class, mask and Dice losses of the matched.

    For each decoder layer: a query's cost for a target is class_weight * -(probability of its label) + mask_weight *
    (BCE) + dice_weight * (Dice), on num_points random points shared by a sample's queries; the cheapest assignment is
    matched (all layers in one call). Then
        loss_mask, loss_dice: BCE and Dice 1 - (2 I + 1) / (P + T + 1) of each matched pair on num_points separate
            points, mostly where the logits are uncertain; summed over pairs, divided by the number of targets.
        loss_cross_entropy: weighted mean over all queries; the unmatched have class L = num_classes ("no object") with
            the weight no_object_weight.
    They are returned without weights, as in transformers; `total` computes the weighted sum.

    Args:
        num_classes: L, without "no object"; class_logits have L + 1.
        class_weight, mask_weight, dice_weight: of the matching costs, and of the losses in `total`.
        no_object_weight: of "no object" in the cross-entropy.
        num_points, oversample_ratio, importance_sample_ratio: as in `ops.sample_uncertain_points`.
        reduce_num_masks: maps the number of targets in the batch, a float tensor on the device, to the divisor, then
            clamped to at least 1. In distributed training pass the mean over ranks, so that every mask has the
            same weight: `lambda n: funcol.all_reduce(n, "avg", group)`.

    Differences from transformers: masks of unequal sizes are padded for matching too (transformers pads them for the
    losses only), a batch without targets has mask losses of 0 (transformers fails), and sums are float32 for
    half-precision logits.

    Source: Cheng et al. 2022, Masked-attention Mask Transformer for Universal Image Segmentation; transformers 5,
    Mask2FormerLoss.

    >>> loss = Mask2FormerLoss(num_classes=3, num_points=64)
    >>> losses = loss(torch.zeros(1, 5, 4), torch.zeros(1, 5, 8, 8), [torch.tensor([1, 2])], [torch.ones(2, 32, 32)])
    >>> list(losses)
    ['loss_mask', 'loss_dice', 'loss_cross_entropy']
    >>> loss.total(losses).shape
    torch.Size([])
    """

    class_weights: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        reduce_num_masks: Callable[[Tensor], Tensor] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"`num_classes` must be an integer of 1 or more; got {num_classes!r}.")
        weights = {"class_weight": class_weight, "mask_weight": mask_weight, "dice_weight": dice_weight}
        for name, value in (*weights.items(), ("no_object_weight", no_object_weight)):
            if finite(name, value) < 0:
                raise ValueError(f"`{name}` must be 0 or more; got {value}.")
        if not any(weights.values()):
            raise ValueError("one of `class_weight`, `mask_weight`, `dice_weight` must be above 0: all costs are 0.")
        check_ratios(num_points, oversample_ratio, importance_sample_ratio)
        self.num_classes, self.num_points, self.backend = num_classes, num_points, backend
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        self.oversample_ratio, self.importance_sample_ratio = oversample_ratio, importance_sample_ratio
        self.reduce_num_masks = reduce_num_masks
        per_class = torch.ones(num_classes + 1)
        per_class[-1] = no_object_weight
        self.register_buffer("class_weights", per_class, persistent=False)

    @accept_renamed(present="has_label")
    def forward(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        labels: Tensor | Sequence[Tensor],
        masks: Tensor | Sequence[Tensor],
        num_targets: Tensor | None = None,
        *,
        has_label: Tensor | None = None,
        auxiliary: Sequence[Prediction] = (),
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The losses of the last layer, then those of `auxiliary` layers with the suffixes _0, _1, ...

        Args:
            class_logits: [B, Q, L + 1], floating.
            mask_logits: [B, Q, H, W], floating.
            labels, masks: `Targets.labels` and `Targets.masks`, or lists for `pad_targets` (which copies the counts to
                the device: pad in the data loader if that wait matters).
            num_targets: int64 [B], only with tensors; all T if None.
            has_label: bool [B]: samples with annotations; the others are excluded, also from "no object". All if
                None.
            auxiliary: (class_logits, mask_logits) of the other layers, in the same shapes, or transformers' dicts of
                `class_queries_logits` and `masks_queries_logits`.
            generator: random generator for the points, on the device of the logits.

        Returns:
            loss_mask, loss_dice, loss_cross_entropy and the same with suffixes: scalars, float32 or float64.

        Raises:
            ValueError, TypeError: an invalid argument, by name. A label outside 0 to num_classes - 1, a mask
                outside 0 to 1 or a count beyond T raises on a CPU and makes the losses NaN on a GPU.
        """
        layers = [(class_logits, mask_logits), *map(_pair, auxiliary)]
        targets = self._checked(layers, as_targets(labels, masks, num_targets))
        if has_label is not None:
            if has_label.shape != targets.num_targets.shape or has_label.dtype != torch.bool:
                found = f"{names((has_label.dtype,))} {list(has_label.shape)}"
                raise ValueError(f"`has_label` must be bool {list(targets.num_targets.shape)}; got {found}.")
            targets = targets._replace(num_targets=targets.num_targets * has_label)
        targets, spoilt = known_targets(targets, self.num_classes)
        matches = self._match(layers, targets, generator)
        number = targets.num_targets.sum().to(torch.float32) + spoilt
        number = (number if self.reduce_num_masks is None else self.reduce_num_masks(number)).clamp(min=1)
        losses: dict[str, Tensor] = {}
        for index, (layer, found) in enumerate(zip(layers, matches.unbind(), strict=True)):
            of_masks = self._mask_losses(layer[1], targets, found, generator)
            of_classes = self._class_loss(layer[0], targets, found, has_label) + spoilt
            values = (*(value / number for value in of_masks), of_classes)
            suffix = f"_{index - 1}" if index else ""
            parts = ("loss_mask", "loss_dice", "loss_cross_entropy")
            losses |= {f"{name}{suffix}": value for name, value in zip(parts, values, strict=True)}
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of what `forward` returns."""
        weights = {"mask": self.mask_weight, "dice": self.dice_weight, "cross": self.class_weight}
        return torch.stack([weights[name.split("_")[1]] * value for name, value in losses.items()]).sum()

    @torch.no_grad()
    def _match(
        self, layers: Sequence[tuple[Tensor, Tensor]], targets: Targets, generator: torch.Generator | None
    ) -> Tensor:
        """[layers, B, T]: a query or -1."""
        costs = []
        for class_logits, mask_logits in layers:
            points = random_points(mask_logits, self.num_points, generator)  # [B, P, 2]
            cost = ops.pairwise_mask_cost(
                ops.sample_points(mask_logits, points),
                ops.sample_points(targets.masks, points),
                bce_weight=self.mask_weight,
                dice_weight=self.dice_weight,
            )
            columns = targets.labels[:, None].expand(-1, cost.shape[1], -1)
            cost = cost - self.class_weight * class_logits.to(cost.dtype).softmax(2).gather(2, columns)
            # Non-finite costs are matched last, as in transformers, but never forbidden.
            costs.append(torch.where(cost.isfinite(), cost, torch.nan))
        stacked = torch.cat(costs)
        matches = ops.linear_assignment(stacked, targets.num_targets.repeat(len(layers)), backend=self.backend)
        return matches.unflatten(0, (len(layers), -1))

    def _mask_losses(
        self, mask_logits: Tensor, targets: Targets, matches: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Sums over matched pairs of BCE and Dice; a pair is a target [B, T], padding included, with its query."""
        if matches.numel() == 0:
            nothing = mask_logits[:, :0].sum().to(torch.promote_types(mask_logits.dtype, torch.float32))
            return nothing, nothing
        B, T = matches.shape
        Q = mask_logits.shape[1]
        query = matches.clamp(min=0) + Q * torch.arange(B, device=matches.device)[:, None]
        maps = mask_logits.flatten(0, 1).index_select(0, query.flatten()).unsqueeze(1)  # [B T, 1, H, W]
        points = ops.sample_uncertain_points(
            maps,
            self.num_points,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
            generator=generator,
        )
        values = ops.sample_points(maps, points).view(B, T, -1)
        truth = ops.sample_points(targets.masks.flatten(0, 1).unsqueeze(1), points).view(B, T, -1)
        sums = ops.overlap_sums(values, truth, mask=matches >= 0)  # [B, T] each, 0 for what is masked
        dice = 1 - (2 * sums.intersection + 1) / (sums.prediction + sums.target + 1)
        return sums.entropy.sum() / self.num_points, dice.sum()

    def _class_loss(self, class_logits: Tensor, targets: Targets, matches: Tensor, has_label: Tensor | None) -> Tensor:
        B, Q, classes = class_logits.shape
        # The extra column receives the labels of targets without a query.
        wanted = torch.full((B, Q + 1), self.num_classes, device=matches.device)
        wanted = wanted.scatter(1, torch.where(matches >= 0, matches, Q), targets.labels)[:, :Q]
        logits = class_logits.to(torch.promote_types(class_logits.dtype, torch.float32)).reshape(-1, classes)
        weights = self.class_weights.to(logits.dtype)
        if has_label is None:
            return cross_entropy(logits, wanted.flatten(), weights)
        kept = torch.where(has_label[:, None], wanted, -100).flatten()
        divisor = torch.where(kept < 0, 0, weights[kept.clamp(min=0)]).sum()
        # Divided here: without labelled samples torch's mean is 0 / 0.
        return cross_entropy(logits, kept, weights, reduction="sum") / divisor.clamp(min=torch.finfo(logits.dtype).tiny)

    def _checked(self, layers: Sequence[tuple[Tensor, Tensor]], targets: Targets) -> Targets:
        """Check all layers and targets; return the targets with int64 labels."""
        class_logits, mask_logits = layers[0]
        labels, masks, number = targets
        if class_logits.dim() != 3 or class_logits.shape[2] != self.num_classes + 1:
            raise ValueError(
                f"`class_logits` must be [B, Q, {self.num_classes + 1}], num_classes and one for no object; "
                f"got {list(class_logits.shape)}."
            )
        if mask_logits.dim() != 4 or mask_logits.shape[:2] != class_logits.shape[:2]:
            raise ValueError(
                f"`mask_logits` must be {[*class_logits.shape[:2]]} by [H, W] like `class_logits`; "
                f"got {list(mask_logits.shape)}."
            )
        for position, layer in enumerate(layers):
            for name, value, like in zip(("class_logits", "mask_logits"), layer, layers[0], strict=True):
                if value.shape != like.shape or value.dtype not in FLOATING:
                    where = f"`auxiliary[{position - 1}]`'s {name}" if position else f"`{name}`"
                    found = f"{names((value.dtype,))} {list(value.shape)}"
                    raise ValueError(f"{where} must be floating, {list(like.shape)}; got {found}.")
        B, T = class_logits.shape[0], masks.shape[1] if masks.dim() == 4 else -1
        if masks.dim() != 4 or masks.shape[0] != B or list(labels.shape) != [B, T]:
            raise ValueError(
                f"`labels` must be [B, T] and `masks` [B, T, H', W'] with B = {B}; "
                f"got {list(labels.shape)} and {list(masks.shape)}."
            )
        if labels.dtype not in INTEGERS or number.dtype != torch.int64 or list(number.shape) != [B]:
            raise ValueError(
                f"`labels` must be integers and `num_targets` int64 [{B}]; "
                f"got {names((labels.dtype, number.dtype))} and {list(number.shape)}."
            )
        devices = {value.device for value in (*layers[0], labels, masks, number, self.class_weights)}
        if len(devices) > 1:
            raise ValueError(f"logits, targets and this loss must be on one device; got {sorted(map(str, devices))}.")
        return targets._replace(labels=labels.long())


def _pair(prediction: Prediction) -> tuple[Tensor, Tensor]:
    if isinstance(prediction, Mapping):
        if missing := {"class_queries_logits", "masks_queries_logits"} - set(prediction):
            raise ValueError(f"`auxiliary` must hold {' and '.join(sorted(missing))}; got {', '.join(prediction)}.")
        return prediction["class_queries_logits"], prediction["masks_queries_logits"]
    class_logits, mask_logits = prediction
    return class_logits, mask_logits
