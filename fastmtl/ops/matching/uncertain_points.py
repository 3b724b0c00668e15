"""`sample_uncertain_points`: the points at which Mask2Former's loss reads a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import checks
from .points import sample_points


def sample_uncertain_points(
    maps: Tensor,
    num_points: int,
    *,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random points of each map, most of them where the prediction is least certain (a logit near 0).

    Of int(num_points * oversample_ratio) uniform points the int(importance_sample_ratio * num_points) with the least
    absolute logit are kept; uniform points fill up the number.

    Args:
        maps: logits [R, 1, H, W], floating.
        num_points: P, 1 or more.
        oversample_ratio: 1 or more.
        importance_sample_ratio: 0 to 1.
        generator: draws the points, on the device of maps; None: torch's default generator.

    Returns:
        coordinates [R, P, 2] for `sample_points`, in 0 to 1, float32 (float64 for float64 maps); no gradient.

    Raises:
        ValueError, TypeError: an invalid argument, which the message names.

    Source: Kirillov et al. 2020, PointRend, section 3.1, as used by Mask2Former.

    >>> source = torch.Generator().manual_seed(0)
    >>> edge = torch.linspace(-8, 8, 64).expand(1, 1, 64, 64)
    >>> points = sample_uncertain_points(edge, 100, generator=source)
    >>> bool(((points[0, :75, 0] - 0.5).abs() < 0.2).all())
    True
    """
    checks.tensor("maps", maps)
    checks.dtype("maps", maps, checks.FLOATING, "Pass logits.")
    if maps.dim() != 4 or maps.shape[1] != 1:
        raise ValueError(f"`maps` must be [R, 1, H, W], one map for each set of points; got {list(maps.shape)}.")
    check_ratios(num_points, oversample_ratio, importance_sample_ratio)
    maps = maps.detach()
    candidates = random_points(maps, int(num_points * oversample_ratio), generator)
    certainty = sample_points(maps, candidates)[:, 0].abs()
    chosen = int(importance_sample_ratio * num_points)
    least = certainty.topk(chosen, dim=1, largest=False, sorted=False).indices
    points = candidates.gather(1, least[:, :, None].expand(-1, -1, 2))
    if chosen == num_points:
        return points
    return torch.cat([points, random_points(maps, num_points - chosen, generator)], 1)


def random_points(maps: Tensor, number: int, generator: torch.Generator | None) -> Tensor:
    """Uniform points [B, number, 2] for maps [B, ...]."""
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    shape, device = (maps.shape[0], number, 2), maps.device
    if generator is None:  # torch.compile cannot follow generator=None
        return torch.rand(*shape, dtype=dtype, device=device)
    return torch.rand(*shape, dtype=dtype, device=device, generator=generator)


def check_ratios(num_points: int, oversample_ratio: float, importance_sample_ratio: float) -> None:
    if isinstance(num_points, bool) or not isinstance(num_points, int) or num_points < 1:
        raise ValueError(f"`num_points` must be an integer of 1 or more; got {num_points!r}.")
    if checks.finite("oversample_ratio", oversample_ratio) < 1:
        raise ValueError(f"`oversample_ratio` must be 1 or more; got {oversample_ratio}.")
    if not 0 <= checks.finite("importance_sample_ratio", importance_sample_ratio) <= 1:
        raise ValueError(f"`importance_sample_ratio` must lie in 0 to 1; got {importance_sample_ratio}.")
