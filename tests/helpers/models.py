"""A loss and targets for whatever a model gives: what the tests of all models train on."""

import torch
import torch.nn.functional as F

from fastmtl import losses, models, ops
from fastmtl.protocols import Batch

SIZE = 32  # one position is left at stride 32
CORE = ["big_unet", "joint_unet", "joint_unet_resnet34", "resnet50", "small_unet", "small_unet_film", "unet_multi"]
TRANSFORMERS = ["efficientnet_b0", "mask2tasks", "pvtv2_daformer", "segformer_daformer", "swin_t"]
OTHERS = ["coat_daformer", "deeplabv3plus", "deeplabv3plus_resnet101", "unet", "unet_resnet101"]
ALL = CORE + TRANSFORMERS + OTHERS  # big_unet_frozen and unet_multi_lessdepth differ by an option, tested on its own


def tasks_of(name):
    """All the outputs that the papers ask of this model, under their own names."""
    tasks = {}
    for row in models.model_info(name).rows.values():
        tasks |= row.tasks
    return tasks


def build(name, tasks=None, seed=0, **options):
    torch.manual_seed(seed)
    return models.create_model(name, tasks or tasks_of(name), preset="tiny", **options)


def batch_of(count=4, size=SIZE):
    generator = torch.Generator().manual_seed(1)
    images = F.interpolate(torch.randn(count, 3, 4, 4, generator=generator), size=(size, size), mode="nearest")
    film = torch.rand(count, 7, generator=generator)
    return Batch(images, {}, torch.ones(count, 1, dtype=torch.bool), {"film": film})


def total_loss(model, tasks, batch):
    """One scalar for all outputs; each sample has its own targets, drawn from its place in the batch."""
    outputs = model(batch)
    assert list(outputs) == list(tasks)
    count, device = len(batch), batch.images.device
    turn = torch.arange(count, device=device)
    total = batch.images.new_zeros(())
    for name, output in tasks.items():
        made = outputs[name]
        if output.kind in ("map", "auxiliary"):
            height, width = made.shape[-2:]
            bright = F.interpolate(batch.images, size=(height, width), mode="area")[:, :1] > 0
            total = total + F.binary_cross_entropy_with_logits(made, bright.float().expand_as(made))
        elif output.kind == "image":
            total = total + F.mse_loss(made, batch.images)
        elif output.kind == "box":
            total = total + F.mse_loss(made.sigmoid(), (torch.stack([turn] * 4, 1) + 1) / (count + 2))
        elif output.kind == "embedding":
            total = total + ops.nt_xent_loss(made[0::2], made[1::2], temperature=0.1)
        elif output.kind == "queries":
            total = total + _queries_loss(made, batch)
        elif output.channels == 1:
            total = total + F.mse_loss(made[:, 0], turn / count)
        else:
            total = total + F.cross_entropy(made, turn % output.channels)
    return total


def _queries_loss(queries, batch):
    bright = (batch.images[:, :1] > 0).float()
    # Points where they fall: the uncertain ones lie on edges, where no mask at stride 4 can be right.
    criterion = losses.Mask2FormerLoss(
        queries.class_logits.shape[-1] - 1, num_points=64, oversample_ratio=1.0, importance_sample_ratio=0.0
    )
    labels = torch.zeros(len(batch), 1, dtype=torch.long)
    parts = criterion(queries.class_logits, queries.mask_logits, labels, bright, auxiliary=queries.auxiliary)
    return criterion.total(parts)
