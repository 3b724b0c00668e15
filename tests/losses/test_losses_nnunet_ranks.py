"""`losses.nnunet` on several ranks: the batch Dice is computed over all ranks together."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.asserts import loss_and_gradient
from helpers.nnunet_cases import inputs
from helpers.nnunet_rank import four_samples, one_rank

from fastmtl.losses.nnunet import DC_and_CE_loss


@pytest.mark.long
def test_batch_dice_sums_over_ranks(tmp_path):
    """Two ranks of two samples have the Dice of four; each rank's gradient is counted by both, as in nnU-Net."""
    store, saved = str(tmp_path / "store"), str(tmp_path / "rank1")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-m", "helpers.nnunet_rank", store, saved]
    other = subprocess.Popen(command, env=environment)
    first = one_rank(0, store)
    assert other.wait(timeout=60) == 0
    second = torch.load(saved)
    logits, target = four_samples()
    whole = DC_and_CE_loss({"batch_dice": True, "ddp": False}, {}, weight_ce=0)
    value, gradient = loss_and_gradient(lambda x: whole(x, target), logits)
    for rank in (first, second):
        torch.testing.assert_close(rank[0], value)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), 2 * gradient)


def test_batch_dice_needs_a_process_group_as_in_nnunet():
    logits, target = inputs("DC_and_CE_loss", {})
    with pytest.raises(ValueError, match="process group"):
        DC_and_CE_loss({"batch_dice": True}, {})(logits, target)
