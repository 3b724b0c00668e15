"""Stain normalisation of a batch on a GPU, recorded without one: no wait, no copy, and few launches."""

from __future__ import annotations

import pytest
import torch
from helpers.fake_gpu import DEVICE, fake_gpu
from helpers.op_backends import needs_triton

from fastmtl import ops

LAB = ([60.0, 10.0, -5.0], [10.0, 5.0, 5.0])


@needs_triton
@pytest.mark.parametrize(
    ("method", "convention", "target", "most"),
    [
        ("macenko", "torchstain", None, 22),
        ("macenko", "staintools", None, 23),  # and the mask's table
        ("macenko", "tiatoolbox", None, 85),  # and its contrast stretch
        ("macenko", "cucim", None, 22),
        ("macenko", "histomicstk", None, 22),
        ("ruifrok", "torchstain", None, 17),
        ("reinhard", "torchstain", LAB, 118),
        ("modified_reinhard", "staintools", LAB, 147),
        ("reinhard", "histomicstk", LAB, 65),
    ],
)
def test_a_batch_never_waits_and_copies_nothing(method, convention, target, most, monkeypatch):
    images = torch.empty(8, 3, 64, 64, dtype=torch.uint8, device=DEVICE)
    options = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "dtype": torch.float16}
    with fake_gpu(monkeypatch) as launches:
        ops.stain_normalize(images, method, convention=convention, target=target, **options)  # copies its constants
        launches.clear()
        ops.stain_normalize(images, method, convention=convention, target=target, **options)
    assert not launches.faults
    assert 0.9 * most < launches.counts.total() <= most, launches.counts.most_common()
