"""Batches of two tasks from memory."""

from __future__ import annotations

import torch

from fastmtl.protocols import Batch

CLASSES = ("left", "right")


class MemoryLoader:
    """Batches of random blobs, left or right, that remembers its place; a pure function of (seed, epoch)."""

    def __init__(self, num_batches=4, batch_size=4, seed=0, label_some=False):
        self.num_batches, self.batch_size, self.seed, self.label_some = num_batches, batch_size, seed, label_some
        self.epoch = self.batch = 0
        self.spoil = lambda batch, epoch, number: batch

    def __len__(self):
        return self.num_batches

    def __iter__(self):
        while self.batch < self.num_batches:
            generator = torch.Generator().manual_seed(hash((self.seed, self.epoch, self.batch)) % 2**31)
            side = torch.randint(0, 2, (self.batch_size,), generator=generator)
            mask = torch.zeros(self.batch_size, 1, 32, 32, dtype=torch.uint8)
            for index, right in enumerate(side.tolist()):
                mask[index, 0, 8:24, 16 * right + 2 : 16 * right + 14] = 1
            images = torch.randn(self.batch_size, 3, 32, 32, generator=generator) * 0.3 + mask
            has_label = torch.ones(self.batch_size, 2, dtype=torch.bool)
            if self.label_some:
                has_label[:, 1] = False
            made = Batch(images, {"mask": mask, "side": side}, has_label)
            number, self.batch = self.batch, self.batch + 1
            yield self.spoil(made, self.epoch, number)
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state):
        self.epoch, self.batch = state["epoch"], state["batch"]
