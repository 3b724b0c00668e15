"""nnU-Net finds this trainer by the variable nnUNet_extTrainer; docs/nnunet.md."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fastmtl.integrations import nnunet
from fastmtl.losses.patching import check_version

check_version("nnunet")


class nnUNetTrainerFastmtl(nnUNetTrainer):
    """nnU-Net's trainer with fastmtl's losses, and without stored logits of many labels. All else is nnU-Net's."""

    fused_heads: tuple[nn.Module, ...] = ()
    """The segmentation heads that are computed with the loss."""

    def _build_loss(self) -> nn.Module:
        labels = self.label_manager
        loss = nnunet.loss_of(
            regions=labels.has_regions,
            ignore_label=labels.ignore_label,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
        )
        theirs = super()._build_loss()
        deep = isinstance(theirs, DeepSupervisionWrapper)
        return DeepSupervisionWrapper(loss, theirs.weight_factors) if deep else loss

    def initialize(self) -> None:
        super().initialize()
        network = getattr(self.network, "_orig_mod", self.network)  # compiled at its first call
        heads = getattr(getattr(network, "decoder", None), "seg_layers", None)
        # Over several ranks Dice needs the sums of all, and DistributedDataParallel the use of all parameters.
        if heads is not None and isinstance(self._loss_of_output(), nnunet.HeadLoss) and not self.is_ddp:
            self.fused_heads = tuple(heads)
            nnunet.pass_inputs_on(self.fused_heads)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's, which counts with seven tensors of the size of the logits, more than training needs."""
        loss_of_output = self._loss_of_output()
        if not self.fused_heads or not isinstance(loss_of_output, nnunet.HeadLoss):
            return super().validation_step(batch)
        data, target = (self._on_device(batch[name]) for name in ("data", "target"))
        cuda = self.device.type == "cuda"
        with torch.autocast("cuda") if cuda else nullcontext(), nnunet.inputs_passed_on(self.fused_heads):
            output = self.network(data)
            loss = self.loss(output, target)
            if self.enable_deep_supervision:
                output, target = output[0], target[0]
            counts = loss_of_output.counts(output, target)
        names = {"tp_hard": "true_positive", "fp_hard": "false_positive", "fn_hard": "false_negative"}
        found = {key: getattr(counts, name).sum(0)[1:].cpu().numpy() for key, name in names.items()}
        return {"loss": loss.detach().cpu().numpy()} | found

    def _loss_of_output(self) -> Any:
        return self.loss.loss if isinstance(self.loss, DeepSupervisionWrapper) else self.loss

    def _on_device(self, given: Any) -> Any:
        if isinstance(given, list):
            return [self._on_device(one) for one in given]
        return given.to(self.device, non_blocking=True)
