"""A rank with a momentum queue, for `spawn`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import distributed, nn

from fastmtl.models.momentum import MomentumQueue

LENGTH = 6


def main(rank: int, folder: str) -> None:
    """Two steps with two images each; saves the rank's keys of both steps and the queue afterwards."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    encoder, projection = nn.Linear(3, 4), nn.Linear(4, 5)
    queue = MomentumQueue(encoder, projection, 5, LENGTH, 0.9)
    images = F.normalize(torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(rank)), dim=-1)
    keys = []
    for step in range(2):
        found, _ = queue(lambda one, step=step: [one(images[step])], encoder, projection, True)
        keys.append(found)
    torch.save({"keys": torch.stack(keys), "queue": queue.keys}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
