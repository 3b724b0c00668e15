"""Bilinear samples of maps at points, from their four neighbours, in plain torch: the definition."""

import torch
from torch import Tensor


def neighbours(coordinates: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pixels (0 where outside the map) and weights (0 there) of the points' four neighbours, [B, 4, P] each."""
    x, y = coordinates[..., 0] * width - 0.5, coordinates[..., 1] * height - 0.5  # [B, P]
    left, top = x.floor(), y.floor()
    pixels, weights = [], []
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixels.append(torch.where(inside, row, 0).long() * width + torch.where(inside, column, 0).long())
            weights.append(torch.where(inside, across * down, 0))
    return torch.stack(pixels, 1), torch.stack(weights, 1)


def sample_points(maps: Tensor, coordinates: Tensor) -> Tensor:
    """maps [B, C, H, W] at coordinates [B, P, 2] -> [B, C, P] in the coordinates' dtype."""
    B, C, H, W = maps.shape
    pixels, weights = neighbours(coordinates, H, W)
    found = maps.flatten(2).gather(2, pixels.view(B, 1, -1).expand(-1, C, -1)).view(B, C, 4, -1)
    # An infinite value times a weight of 0 would be NaN.
    return torch.where(weights[:, None] == 0, 0, weights[:, None] * found.to(weights.dtype)).sum(2)


def scatter_points(grad: Tensor, coordinates: Tensor, height: int, width: int) -> Tensor:
    """The gradient with respect to the maps, [B, C, H, W], from grad [B, C, P]; summed in a fixed order, also on a
    GPU."""
    B, C, P = grad.shape
    pixels, weights = neighbours(coordinates, height, width)
    parts = (grad[:, :, None] * weights[:, None]).view(B * C, 4 * P)
    index = pixels.view(B, 1, 4 * P).expand(-1, C, -1).reshape(B * C, 4 * P)
    gradient = grad.new_zeros(B * C, height * width)
    if grad.device.type == "cpu":
        gradient.scatter_add_(1, index, parts)
    else:  # `scatter_add_` uses float atomics; an accumulating index is sorted first
        plane = torch.arange(B * C, device=grad.device)[:, None].expand_as(index)
        gradient.index_put_((plane, index), parts, accumulate=True)
    return gradient.view(B, C, height, width)
