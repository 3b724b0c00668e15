"""Reinhard's colour transfer in plain torch, float64: the definition of the spaces and of the map between them."""

from __future__ import annotations

import torch
from torch import Tensor

from .stain_conventions import LUMINANCE
from .stain_vectors import linear

_XYZ = ((0.412453, 0.357580, 0.180423), LUMINANCE, (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
_CONES = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
_DECORRELATED = ((3**-0.5, 3**-0.5, 3**-0.5), (6**-0.5, 6**-0.5, -2 * 6**-0.5), (2**-0.5, -(2**-0.5), 0.0))


_KEPT: dict[tuple[object, torch.device], Tensor] = {}


def _numbers(numbers: tuple[object, ...], like: Tensor) -> Tensor:
    """Float64 on `like`'s device, copied there once."""
    key = numbers, like.device
    if key not in _KEPT:
        _KEPT[key] = torch.tensor(numbers, dtype=torch.float64).to(like.device)
    return _KEPT[key]


def _inverse(rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """On the host, because `torch.linalg.inv` waits for a GPU."""
    return tuple(map(tuple, torch.linalg.inv(torch.tensor(rows, dtype=torch.float64)).tolist()))


_FROM_CONES, _FROM_XYZ = _inverse(_CONES), _inverse(_XYZ)


def to_lab(rgb: Tensor, space: str) -> Tensor:
    """Grey levels 0..255 [..., 3, N] to "cie" (L 0..100, a, b; D65), "cie 8 bit" (the same, quantised as OpenCV's
    bytes) or "ruderman" (l, alpha, beta)."""
    levels = rgb.double()
    if space == "ruderman":
        cones = _numbers(_CONES, rgb) @ levels
        return _numbers(_DECORRELATED, rgb) @ torch.where(cones == 0, 2.0**-52, cones).log()
    xyz = _numbers(_XYZ, rgb) @ linear(levels) / _numbers(_WHITE, rgb)[:, None]
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=1e-12) ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(-2)
    lab = torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -2)
    return quantised(lab, 0.5) if space == "cie 8 bit" else lab


def quantised(lab: Tensor, half: float) -> Tensor:
    """As bytes hold it: 2.55 L, a + 128, b + 128; rounded with `half` 0.5, truncated with (nearly) 0."""
    factor = _numbers((2.55, 1.0, 1.0), lab)[:, None]
    addend = _numbers((0.0, 128.0, 128.0), lab)[:, None]
    return (((lab * factor + addend).clamp(0, 255) + half).floor() - addend) / factor


def from_lab(lab: Tensor, space: str) -> Tensor:
    """Back to grey levels 0..255."""
    if space == "ruderman":
        logs = (_numbers(_DECORRELATED, lab).T @ lab).clamp(-80, 20)
        return (_numbers(_FROM_CONES, lab) @ logs.exp()).clamp(0, 255)
    if space == "cie 8 bit":
        lab = quantised(lab, 1e-4)
    L, a, b = lab.unbind(-2)
    y = (L + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], -2)
    xyz = torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
    xyz = xyz * _numbers(_WHITE, lab)[:, None]
    rgb = (_numbers(_FROM_XYZ, lab) @ xyz).clamp(0, 1)
    return 255 * torch.where(rgb > 0.0031308, 1.055 * rgb.clamp(min=1e-12) ** (1 / 2.4) - 0.055, 12.92 * rgb)


def reinhard_map(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], modified: bool) -> tuple[Tensor, Tensor]:
    """Factor and addend of each channel, [..., 3], from means and standard deviations [..., 3].

    Modified: with q = (s_target - s_source) / s_target of L, 0.05 if not positive, L is stretched about its mean by 1 +
    q; a and b are shifted by the difference of their means.
    """
    (mean, spread), (wanted_mean, wanted_spread) = source, target
    if not modified:
        factor = wanted_spread / spread.clamp(min=1e-9)
        return factor, wanted_mean - factor * mean
    q = (wanted_spread[..., 0] - spread[..., 0]) / wanted_spread[..., 0].clamp(min=1e-9)
    stretch = 1 + torch.where(q <= 0, 0.05, q)
    factor = torch.stack([stretch, torch.ones_like(stretch), torch.ones_like(stretch)], -1)
    kept = torch.cat([mean[..., :1], wanted_mean[..., 1:].expand_as(mean[..., 1:])], -1)
    return factor, kept - factor * mean


def reinhard(
    rgb: Tensor, target: tuple[Tensor, Tensor], space: str = "cie", modified: bool = False, unbiased: bool = True
) -> Tensor:
    """RGB 0..255 [3, N] with the target's means and standard deviations [3]."""
    lab = to_lab(rgb, space)
    factor, addend = reinhard_map((lab.mean(1), lab.std(1, correction=int(unbiased))), target, modified)
    return from_lab(lab * factor[:, None] + addend[:, None], space)
