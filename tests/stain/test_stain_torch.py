"""`ops.stain_normalize` inside torch: opcheck, torch.compile without a break."""

from __future__ import annotations

import pytest
import torch
from helpers.stain import tissue

from fastmtl import ops
from fastmtl.reference.stain_conventions import HEMATOXYLIN_EOSIN, MAX_CONCENTRATION

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TARGET = torch.tensor(HEMATOXYLIN_EOSIN).double()[None], torch.tensor(MAX_CONCENTRATION).double()[None]
LAB_TARGET = [60.0, 10.0, -5.0], [10.0, 5.0, 5.0]


PLANES, LAST = torch.contiguous_format, torch.channels_last


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "dtype", "given", "return_stains", "layout"),
    [
        ("macenko", torch.float16, "both", True, LAST),  # known stains go in and come out, and share no memory
        ("macenko", torch.uint8, "none", True, PLANES),
        ("vahadane", torch.float32, "vectors", False, LAST),
        ("modified_reinhard", torch.float32, "none", True, PLANES),
    ],
)
def test_opcheck(method, dtype, given, return_stains, layout):
    images = tissue(number=2, size=24).contiguous(memory_format=layout)
    vectors, maxima = (part.expand(2, *part.shape[1:]) for part in TARGET)
    target = TARGET if "reinhard" not in method else tuple(torch.tensor([part]).double() for part in LAB_TARGET)
    known = (vectors if given != "none" else None, maxima if given == "both" else None)
    statistics = (None, None) if dtype == torch.uint8 else (MEAN, STD)
    options = (method, "torchstain", dtype, *statistics, return_stains, 50, "reference", "auto")
    inside = torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(0)).lt(0.9).view(torch.uint8)
    torch.library.opcheck(torch.ops.fastmtl.stain_normalize.default, (images, inside, *known, *target, *options))


@pytest.mark.long
def test_compiles_once_for_all_sizes_without_a_break():
    found = ops.stain_normalize(tissue(number=2), return_stains=True)

    def whole(images):
        known = {"stain_matrix": found.stain_matrix, "max_concentration": found.max_concentration}
        one = ops.stain_normalize(images, **known, mean=MEAN, std=STD, dtype=torch.float16)
        other = ops.stain_normalize(images.permute(0, 2, 3, 1), return_stains=True)
        return one, *other, ops.stain_normalize(images, "reinhard", target=LAB_TARGET)

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager", dynamic=True)
    for images in (tissue(number=2), tissue(3, number=2, size=40)):
        for ours, expected in zip(compiled(images), whole(images), strict=True):
            assert torch.equal(ours, expected)
            assert ours.stride() == expected.stride()
