"""One of two ranks that share nnU-Net's batch Dice; as a program the second: STORE RESULT."""

from __future__ import annotations

import sys

import torch
from torch import distributed

from fastmtl.losses.nnunet import DC_and_CE_loss
from helpers.asserts import loss_and_gradient
from helpers.nnunet_cases import numbers


def four_samples():
    return numbers(4, 3, 4, 4).float() * 4, torch.arange(4 * 16).view(4, 1, 4, 4) % 3


def one_rank(rank, store):
    """Loss and gradient of the two samples of one of two ranks."""
    distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
    logits, target = (part[rank * 2 : rank * 2 + 2] for part in four_samples())
    result = loss_and_gradient(lambda x: DC_and_CE_loss({"batch_dice": True}, {}, weight_ce=0)(x, target), logits)
    distributed.destroy_process_group()
    return result


if __name__ == "__main__":
    torch.save(one_rank(1, sys.argv[1]), sys.argv[2])
