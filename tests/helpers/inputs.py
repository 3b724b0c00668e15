"""Inputs sampled by construction: odd shapes, every dtype, every layout."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

TARGET_DTYPES = (torch.uint8, torch.bool, torch.int16, torch.int32, torch.int64, torch.float32, torch.bfloat16,
                 torch.float16, torch.float64)  # fmt: skip
LAYOUTS = ("contiguous", "channels_last", "expanded", "cropped", "transposed", "misaligned")
MASKS = ("none", "sample", "segment", "pixel", "full", "row", "nothing")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layout(tensor: Tensor, name: str) -> Tensor:
    """The same values [B, C, *spatial] laid out in another way; "expanded" repeats the first sample."""
    if name == "channels_last" and tensor.dim() in (4, 5):
        return tensor.to(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)
    if name == "expanded":
        return tensor[:1].expand_as(tensor)
    if name == "cropped":
        wider = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + 3)
        wider[..., 1:-2] = tensor
        return wider[..., 1:-2]
    if name == "transposed" and tensor.dim() > 3:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if name == "misaligned":
        flat = tensor.new_zeros(tensor.numel() + 1)
        flat[1:] = tensor.reshape(-1)
        return flat[1:].view(tensor.shape)
    return tensor.contiguous()


def laid_out(draw, tensor: Tensor | None) -> Tensor | None:
    """In a layout that hypothesis draws; None, a mask that there is not, stays None."""
    return None if tensor is None else layout(tensor, draw(st.sampled_from(LAYOUTS)))


def segmentation(
    shape: tuple[int, ...], dtype=torch.float32, target_dtype=torch.uint8, seed=0
) -> tuple[Tensor, Tensor]:
    """Logits [B, C, *spatial] of a confident network and a target that covers a fifth; soft where floating."""
    source = generator(seed)
    logits = torch.randn(shape, generator=source) * 4
    target = torch.rand(shape, generator=source)
    soft = target_dtype.is_floating_point
    return logits.to(dtype), (target if soft else target < 0.2).to(target_dtype)


def mask(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor | None:
    """A mask broadcastable to `shape`; about two in three elements are valid."""
    spatial = shape[2:]
    kinds = {
        "sample": (shape[0],),
        "segment": shape[:2],
        "pixel": (shape[0], 1, *spatial),
        "full": shape,
        "row": (1, 1, *(1,) * (len(spatial) - 1), *spatial[-1:]),
        "nothing": shape,
    }
    if name == "none":
        return None
    valid = torch.rand(kinds[name], generator=generator(seed + 1)) < 0.67
    return torch.zeros_like(valid) if name == "nothing" else valid


def class_numbers(shape: tuple[int, ...], dtype=torch.uint8, seed: int = 0):
    """Class numbers [B, *spatial] for logits `shape`."""
    return torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator(seed)).to(dtype)


def with_target(activation: str, shape: tuple[int, ...], dtype=torch.float32, target_dtype=torch.uint8, seed=0):
    """Logits with what a sigmoid or a softmax loss takes as target."""
    x, t = segmentation(shape, dtype, target_dtype, seed)
    return (x, t) if activation == "sigmoid" else (x, class_numbers(shape, target_dtype, seed))


def views(pairs, dim, dtype=torch.float32, noise=1.0, scale=3.0, seed=0):
    """Projections of two views: equal but for noise, of any length."""
    source = generator(seed)
    z = torch.randn(pairs, dim, generator=source) * scale
    return z.to(dtype), (z + noise * scale * torch.randn(pairs, dim, generator=source)).to(dtype)
