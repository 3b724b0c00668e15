"""Estimate stains that are not given, fall back if that is impossible, apply: shared by the op and the loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference import stain_normalize as exact
from ...reference.stain_conventions import Convention
from ...reference.stain_vectors import tissue
from ..core.constants import on_device
from . import lab
from .arguments import LAB
from .coefficients import Output, coefficients_of
from .fit import LEAST_CONCENTRATION, LEAST_SPREAD, Estimate, Stains, are_apart, are_two, estimate, maxima, table
from .passes import Passes, TorchPasses
from .pixels import Pixels, new_output

_EXACT = TorchPasses()  # densities and stains in float64 come first; what is left is the table and the output


class Normalised(NamedTuple):
    """The result of a normalisation.

    Attributes:
        images: the normalised images, in their input layout.
        hematoxylin: images of that stain alone, or None.
        eosin: likewise.
        stain_matrix: the matrix each image was unmixed with, float64 [B, 3, 2]: columns hematoxylin, eosin. None for
            Reinhard.
        max_concentration: the 99th percentiles of the concentrations, float64 [B, 2]. None for Reinhard.
        fell_back: bool [B]: images with too little tissue, or without two stains, for an estimate.
    """

    images: Tensor
    hematoxylin: Tensor | None
    eosin: Tensor | None
    stain_matrix: Tensor | None
    max_concentration: Tensor | None
    fell_back: Tensor

    def interleaved(self) -> Normalised:
        """With the images as [B, H, W, 3], on the same memory."""
        hematoxylin, eosin = (part if part is None else part.permute(0, 2, 3, 1) for part in self[1:3])
        return self._replace(images=self.images.permute(0, 2, 3, 1), hematoxylin=hematoxylin, eosin=eosin)


@dataclass(frozen=True)
class Run:
    """The settings that are the same for all batches.

    Attributes:
        method: one of `METHODS`.
        convention: how to go from grey levels to stains and back.
        target: the target stains; for Reinhard's methods means and standard deviations, float64 [1, 3] each.
        min_tissue: least number of tissue pixels for an estimate.
        fallback: "reference": an image without an estimate is unmixed with the target's stains, and so keeps its look;
            "pass": it is returned unchanged.
        dtype: of the output.
    """

    method: str
    convention: Convention
    target: Stains | tuple[Tensor, Tensor]
    min_tissue: int
    fallback: str
    dtype: torch.dtype

    def __call__(
        self,
        passes: Passes | None,
        pixels: Pixels,
        given: Estimate | None,
        output: Output,
        *,
        separate: bool = False,
        alpha: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> Normalised:
        """given: known stains, where `valid`; images that are not valid fall back without an estimate."""
        if self.method in LAB:
            return self._transfer(passes, pixels, output)
        found = given or self.fit(passes, pixels)
        target = Stains(*(on_device(part, found.valid.device) for part in self.target))
        wrong, convention = ~found.valid, self.convention
        source = Stains(
            torch.where(wrong[:, None, None], target.vectors, found.stains.vectors).expand(pixels.batch, 3, 2),
            torch.where(wrong[:, None], target.maxima, found.stains.maxima).expand(pixels.batch, 2),
        )
        wrong = wrong.expand(pixels.batch)
        as_is = wrong if self.fallback == "pass" else None
        made: list[Tensor] = []
        for only in (None, 0, 1) if separate else (None,):
            coefficients = coefficients_of(
                passes or _EXACT,
                convention,
                source,
                target,
                output,
                as_is=as_is if only is None else None,
                only=only,
                alpha=alpha,
                beta=beta,
            )
            out = new_output(pixels.images, self.dtype)
            lasso, densities = convention.solver == "lasso", table(convention, pixels.images.device)
            (passes or _EXACT).apply(pixels, densities, coefficients, lasso, out, convention.half_up)
            made.append(out)
        hematoxylin, eosin = made[1:] if separate else (None, None)
        return Normalised(made[0], hematoxylin, eosin, source.vectors, source.maxima, wrong)

    def fit(self, passes: Passes | None, pixels: Pixels, pooled: bool = False) -> Estimate:
        """The stains of each image, or of all together."""
        if passes is None:
            return _exact_estimate(pixels, self.method, self.convention, self.min_tissue, pooled)
        return estimate(passes, pixels, self.method, self.convention, min_tissue=self.min_tissue, pooled=pooled)

    def measure(self, passes: Passes | None, pixels: Pixels, vectors: Tensor) -> Estimate:
        """The concentrations of each image under known vectors [B, 3, 2]; not valid if these are not two stains."""
        apart = are_apart(vectors)
        vectors = torch.where(
            apart[:, None, None], vectors, on_device(self.target[0], vectors.device)
        )  # else none to solve
        if passes is None:
            rows = [
                exact.concentrations(self.convention.densities()[rgb.cpu().long()], matrix.cpu(), self.convention)[:2]
                for rgb, matrix in zip(_inside(pixels), vectors, strict=True)
            ]
            found = torch.stack(
                [torch.stack([exact.quantile(c, 0.99, self.convention.nearest) for c in row]) for row in rows]
            )
        else:
            found = maxima(passes, pixels, vectors, self.convention)
        found = found.to(vectors.device)
        return Estimate(Stains(vectors, found), apart & (found > LEAST_CONCENTRATION).all(1))

    def _transfer(self, passes: Passes | None, pixels: Pixels, output: Output) -> Normalised:
        on_cpu = passes is not None and pixels.images.device.type == "cpu"
        source = lab.statistics(pixels, self.convention, on_cpu)
        mean, deviation = self.target
        target = on_device(mean, source[0].device), on_device(deviation, source[0].device)
        wrong = ~lab.valid(source[1])
        rows = lab.coefficients(source, target, self.method == "modified_reinhard", output, wrong)
        out = new_output(pixels.images, self.dtype)
        lab.apply(pixels, self.convention, rows, out, on_cpu)
        return Normalised(out, None, None, None, None, wrong)


def _inside(pixels: Pixels) -> list[Tensor]:
    kept = pixels.kept()
    planes = list(pixels.planes())
    return planes if kept is None else [rgb[:, mask] for rgb, mask in zip(planes, kept, strict=True)]


def _exact_estimate(pixels: Pixels, method: str, convention: Convention, min_tissue: int, pooled: bool) -> Estimate:
    """As `fit.estimate`, pixel by pixel in float64."""
    groups = [pixels.planes().transpose(0, 1).flatten(1)] if pooled else list(pixels.planes())
    kept = pixels.kept()
    insides = [None] * len(groups) if kept is None else [kept.flatten()] if pooled else list(kept)
    found = [_exact(*pair, method, convention, min_tissue) for pair in zip(groups, insides, strict=True)]
    vectors, maxima, valid = (torch.stack(part).to(pixels.images.device) for part in zip(*found, strict=True))
    return Estimate(Stains(vectors, maxima), valid)


def _exact(
    rgb: Tensor, inside: Tensor | None, method: str, convention: Convention, min_tissue: int
) -> tuple[Tensor, Tensor, Tensor]:
    rgb = (rgb if inside is None else rgb[:, inside]).cpu()
    nothing = torch.eye(3, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), torch.tensor(False)
    if rgb.shape[1] == 0:
        return nothing
    density = convention.densities()[rgb[:, tissue(rgb, convention)].long()]
    if density.shape[1] < min_tissue:
        return nothing
    if method != "ruifrok" and density.var(1, correction=0).sum() <= LEAST_SPREAD:
        return nothing
    vectors, maxima = exact.estimate(rgb, method, convention)
    two = are_two(Stains(vectors[None], maxima[None]))[0]
    return (vectors, maxima, two) if two else nothing
