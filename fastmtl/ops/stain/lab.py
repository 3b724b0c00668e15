"""Reinhard's colour transfer: each channel of a perceptual space is shifted and scaled to the target's mean and
standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.stain_conventions import Convention
from ...reference.stain_lab import from_lab, reinhard_map, to_lab
from ..core import backends
from ..core.constants import to_device
from ..core.pointers import address, num_threads
from .coefficients import OUTSIDE, Output
from .passes import write_output
from .pixels import Pixels, describe_output
from .small_problems import output_rows

_CHUNK = 65536
_SPACES = {"cie": (0, False), "cie 8 bit": (0, True), "ruderman": (1, False)}


def statistics(pixels: Pixels, convention: Convention, on_cpu: bool) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the three channels, float64 [B, 3] each, over the pixels inside; see also
    `valid`."""
    space, eight_bit = _SPACES[str(convention.lab)]
    if on_cpu:
        partials = torch.empty(pixels.batch, -(-pixels.size // _CHUNK), 7, dtype=torch.float64)
        backends.extension().stain_lab_moments(
            pixels.describe(), space, eight_bit, _CHUNK, address(partials), num_threads()
        )
        sums = partials.sum(1)
    else:
        lab, kept = to_lab(pixels.planes(), str(convention.lab)), pixels.kept()
        kept = torch.ones_like(lab[:, 0]) if kept is None else kept.double()
        weighted = lab * kept[:, None]
        sums = torch.cat([kept.sum(1, keepdim=True), weighted.sum(2), (weighted * lab).sum(2)], 1)
    number = sums[:, :1].clamp(min=2)
    mean = sums[:, 1:4] / number
    variance = (sums[:, 4:] - number * mean**2) / (number - 1 if convention.unbiased else number)
    return mean, variance.clamp(min=0).sqrt()


def valid(deviation: Tensor) -> Tensor:
    """Bool [B]: whether the standard deviations are above 0; those of a blank or one-colour tile are not."""
    return (deviation > 1e-3).all(1)


def coefficients(
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    modified: bool,
    output: Output,
    as_is: Tensor,
) -> Tensor:
    """Float32 [B, 26], as csrc/stain/stain_lab_cpu.cpp reads them."""
    factor, addend = reinhard_map(source, target, modified)
    batch = len(factor)
    constants = to_device(output.numbers(), factor.device)
    ends = [output_rows(constants, output.colour_on(factor.device), batch), as_is.double()[:, None]]
    outside = torch.full_like(factor[:, :1], OUTSIDE)
    return torch.cat([factor, addend, *ends, outside], 1).nan_to_num(0.0, 0.0, 0.0).float().contiguous()


def apply(pixels: Pixels, convention: Convention, rows: Tensor, out: Tensor, on_cpu: bool) -> None:
    """Write `out`."""
    space, eight_bit = _SPACES[str(convention.lab)]
    half_up = convention.lab == "cie 8 bit"  # OpenCV rounds
    if on_cpu:
        backends.extension().stain_lab_apply(
            pixels.describe(), space, eight_bit, address(rows), describe_output(out, half_up), num_threads()
        )
        return
    m = rows.double()[:, :, None]
    lab = to_lab(pixels.planes(), str(convention.lab)) * m[:, :3] + m[:, 3:6]
    values = torch.where(m[:, 24:25] > 0, pixels.planes().double(), from_lab(lab, str(convention.lab)))
    write_output(pixels, values.float(), rows[:, 6:24], rows[:, 25:26, None], out, half_up)
