"""`losses.nnunet` on several ranks: the batch Dice is that of all of them."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.asserts import loss_and_gradient
from test_losses_nnunet import _inputs, _numbers, ours
from torch import distributed

RANK = """
import sys
import torch
from test_losses_nnunet_ranks import one_rank
torch.save(one_rank(1, sys.argv[1]), sys.argv[2])
"""


def _four_samples():
    return _numbers(4, 3, 4, 4).float() * 4, torch.arange(4 * 16).view(4, 1, 4, 4) % 3


def one_rank(rank, store):
    """Loss and gradient of the two samples of one of two ranks."""
    distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
    logits, target = (part[rank * 2 : rank * 2 + 2] for part in _four_samples())
    result = loss_and_gradient(lambda x: ours.DC_and_CE_loss({"batch_dice": True}, {}, weight_ce=0)(x, target), logits)
    distributed.destroy_process_group()
    return result


def test_batch_dice_sums_over_ranks(tmp_path):
    """Two ranks of two samples have the Dice of four; each rank's gradient is counted by both, as in nnU-Net."""
    store, saved = str(tmp_path / "store"), str(tmp_path / "rank1")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.Popen([sys.executable, "-W", "ignore", "-c", RANK, store, saved], env=environment)
    first = one_rank(0, store)
    assert other.wait(timeout=60) == 0
    second = torch.load(saved)
    logits, target = _four_samples()
    whole = ours.DC_and_CE_loss({"batch_dice": True, "ddp": False}, {}, weight_ce=0)
    value, gradient = loss_and_gradient(lambda x: whole(x, target), logits)
    for rank in (first, second):
        torch.testing.assert_close(rank[0], value)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), 2 * gradient)


def test_batch_dice_needs_a_process_group_as_in_nnunet():
    logits, target = _inputs("DC_and_CE_loss", {})
    with pytest.raises(ValueError, match="process group"):
        ours.DC_and_CE_loss({"batch_dice": True}, {})(logits, target)
