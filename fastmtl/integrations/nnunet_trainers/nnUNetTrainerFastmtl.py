"""nnU-Net finds this trainer by the variable nnUNet_extTrainer; docs/nnunet.md."""

from __future__ import annotations

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fastmtl.integrations import nnunet
from fastmtl.losses.patching import check_version

check_version("nnunet")


class nnUNetTrainerFastmtl(nnUNetTrainer):
    """nnU-Net's trainer with fastmtl's losses, and without stored logits of many labels. All else is nnU-Net's."""

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
        if heads is not None and not self.label_manager.has_regions and not self.is_ddp:
            nnunet.pass_inputs_on(heads)
