"""A checkpoint written at once, at any path: what `CheckpointStore` does beside a training."""

from pathlib import Path

import torch

from fastmtl.training import checkpoint
from fastmtl.training.state_checks import StateDict


def save_checkpoint(directory: Path, state: StateDict) -> None:
    tree, tensors = checkpoint.encode(state)
    copies = {name: one.cpu().clone(memory_format=torch.contiguous_format) for name, one in tensors.items()}
    checkpoint.write(directory, tree, copies, best="")
