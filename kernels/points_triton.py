"""Bilinear samples of maps at points on NVIDIA GPUs; the definition is in reference/points.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _corner(plane, row, column, share, height, width, live):
    inside = live & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    value = tl.load(plane + row.to(tl.int64) * width + column, mask=inside, other=0).to(share.dtype)
    # An infinite value times a weight of 0 would be NaN.
    return tl.where(inside & (share != 0), share * value, 0.0)


@triton.jit
def sample_points_kernel(
    maps, coordinates, out, batch_stride, channel_stride, channels, height, width, points, blocks, BLOCK: tl.constexpr
):
    """maps [B, C, H, W] with contiguous planes, coordinates [B, P, 2], out [B, C, P]; grid [blocks * B * C]."""
    pid = tl.program_id(0)
    plane = (pid // blocks).to(tl.int64)
    b = plane // channels
    point = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = point < points
    where = coordinates + 2 * (b * points + point)
    x = tl.load(where, mask=live, other=0.0) * width - 0.5
    y = tl.load(where + 1, mask=live, other=0.0) * height - 0.5
    # Also false for NaN: such a point is outside.
    live = live & (x > -2.0) & (x < width + 1.0) & (y > -2.0) & (y < height + 1.0)
    x = tl.where(live, x, 0.0)
    y = tl.where(live, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    right = x - left
    down = y - top
    column = left.to(tl.int32)
    row = top.to(tl.int32)
    maps += b * batch_stride + plane % channels * channel_stride
    total = _corner(maps, row, column, (1.0 - right) * (1.0 - down), height, width, live)
    total += _corner(maps, row + 1, column, (1.0 - right) * down, height, width, live)
    total += _corner(maps, row, column + 1, right * (1.0 - down), height, width, live)
    total += _corner(maps, row + 1, column + 1, right * down, height, width, live)
    tl.store(out + plane * points + point, total, mask=point < points)


def sample_points(maps: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """maps [B, C, H, W] with contiguous planes, contiguous coordinates [B, P, 2] -> [B, C, P] in their dtype."""
    B, C, H, W = maps.shape
    points = coordinates.shape[1]
    out = torch.empty((B, C, points), dtype=coordinates.dtype, device=maps.device)
    block = min(512, max(64, triton.next_power_of_2(points)))
    blocks = triton.cdiv(points, block)
    maps = maps.view(torch.uint8) if maps.dtype == torch.bool else maps
    with torch.cuda.device_of(maps):
        sample_points_kernel[(blocks * B * C,)](
            maps, coordinates, out, maps.stride(0), maps.stride(1), C, H, W, points, blocks, BLOCK=block, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    return out
