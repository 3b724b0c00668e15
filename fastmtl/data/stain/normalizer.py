"""A stateful stain normaliser: a target fitted once, stains per slide fitted from samples, one pass per batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops.stain.arguments import (
    LAB,
    MIN_TISSUE,
    ImageLike,
    TargetLike,
    check_augmentation,
    check_colour,
    check_draws,
    check_dtype,
    check_images,
    check_inside,
    check_key,
    check_method,
    check_policy,
    check_slides,
    check_statistics,
    is_interleaved,
)
from ...ops.stain.backends import passes_of
from ...ops.stain.fit import Estimate, Stains
from ...ops.stain.pixels import readable
from ...ops.stain.recipes import Output
from ...ops.stain.run import Normalised, Run
from ...ops.stain.target import default_target, resolve_target
from ...utils.normalization import IMAGENET
from .files import StainFileError, pack, read_arrays, unpack, write_arrays
from .image_forms import as_batch
from .statistics import StainStatistics, Tiles, collected

_KIND = "stain normalizer"


class StainNormalizer:
    """Normalise tiles to one target, with stains estimated per tile, per batch or per slide.

    Args:
        method, convention, target: as in `ops.stain_normalize`; `fit` sets the target later.
        per: source of an image's stains. "slide" (the default): the stains stored under the slide's key, or the tile's
            own if the slide is not stored. "tile": the tile's own. "batch": one estimate over the batch. Reinhard
            supports only "tile", its default.
        min_tissue: number of tissue pixels that an estimate needs.
        fallback: for "tile" and "slide", what to do with a tile that has less tissue or lacks two stains. "slide": use
            the slide's stored stains, or the target's if there are none; "reference": use the target's, so that the
            tile hardly changes; "pass": leave the tile unchanged.
        augmentation: sigma of alpha and of beta. Draws u in 0..1 become factors 1 + sigma_1 (2u - 1) and addends
            sigma_2 (2u - 1) of the target's concentrations of each stain. A loader that augments gives draws: (0, 0)
            for none. Reinhard has no stains and takes none.
        backend: as in `ops.stain_normalize`.

    Attributes:
        augments: whether draws have an effect; if not, a loader passes none.
        has_stains: False for Reinhard's methods, which move colours as a whole.
        slides: key -> `Stains` (vectors float64 [1, 3, 2], 99th percentiles [1, 2]).
        fell_back: bool [B] of the last call: tiles that needed their own estimate and had none.

    >>> normalizer = StainNormalizer(per="tile")
    >>> tiles = torch.randint(40, 220, (2, 3, 32, 32), dtype=torch.uint8)
    >>> normalizer(tiles, slides=["", ""]).shape, normalizer.fell_back.tolist()
    (torch.Size([2, 3, 32, 32]), [False, False])
    """

    def __init__(
        self,
        method: str = "macenko",
        *,
        convention: str = "torchstain",
        target: TargetLike = None,
        per: str | None = None,
        min_tissue: int = MIN_TISSUE,
        fallback: str = "slide",
        augmentation: tuple[float, float] = (0.2, 0.2),
        backend: str = "auto",
    ):
        self._convention = check_method(method, convention)
        check_policy(min_tissue, fallback, ("slide", "reference", "pass"))
        if per is None:
            per = "tile" if method in LAB else "slide"
        if per not in ("slide", "tile", "batch"):
            raise ValueError(f"`per` must be 'slide', 'tile' or 'batch'; got {per!r}.")
        if method in LAB and per != "tile":
            raise ValueError(f"`per` must be 'tile' for {method}, which has no stains to share; got {per!r}.")
        self.has_stains = method not in LAB
        sigmas = check_augmentation(augmentation)
        self.method, self.convention, self.per = method, convention, per
        self.min_tissue, self.fallback, self.backend = min_tissue, fallback, backend
        self.augmentation, self.augments = sigmas, self.has_stains and max(sigmas) > 0
        self.target: Stains | tuple[Tensor, Tensor] | None = None
        if target is not None or self.has_stains:
            self.target = resolve_target(target, method, self._convention, backend)
        self.slides: dict[str, Stains] = {}
        self.fell_back = torch.zeros(0, dtype=torch.bool)

    def __repr__(self) -> str:
        fitted = "not fitted" if self.target is None else f"{len(self.slides)} slides"
        return f"StainNormalizer({self.method!r}, convention={self.convention!r}, per={self.per!r}: {fitted})"

    def fit(self, image: TargetLike | StainStatistics) -> StainNormalizer:
        """Set the target from an image (uint8 [3, H, W] or [H, W, 3], an array or a PIL image), its numbers, or
        `StainStatistics` of many images, equivalent to a mosaic of them. Returns itself."""
        if isinstance(image, StainStatistics):
            found = self._estimate(image)
            if found is None:
                raise ValueError("`image` must have enough tissue with two stains to be a target. Choose other images.")
            self.target = found
        else:
            self.target = resolve_target(image, self.method, self._convention, self.backend)
        return self

    def fit_slide(self, key: str, tiles: Tiles | StainStatistics) -> bool:
        """Store the stains of a slide, from tiles [B, 3, H, W] or [B, H, W, 3], any number of batches or single tiles
        (tensors, arrays, PIL images), or from collected `StainStatistics`. Returns False and stores nothing if these do
        not contain two stains."""
        check_key(key)
        found = self._estimate(tiles if isinstance(tiles, StainStatistics) else collected(tiles, self.convention))
        if found is not None:
            self.slides[key] = found
        return found is not None

    def _estimate(self, statistics: StainStatistics) -> Stains | None:
        if not self.has_stains:
            raise ValueError(f"{self.method} has no stains to estimate. Use per='tile', and an image as target.")
        if statistics.convention != self.convention:
            raise ValueError(
                f"the statistics are of convention {statistics.convention!r}; this one has {self.convention!r}."
            )
        return statistics.estimate(self.method, self.min_tissue)

    def transform(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        slides: Sequence[str] | None = None,
        inside: Tensor | None = None,
        dtype: torch.dtype | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        draws: Tensor | None = None,
        return_stains: bool = False,
    ) -> Any:
        """Normalise images of any kind, as `ops.stain_normalize` does.

        Args:
            images: uint8 [B, 3, H, W] or [B, H, W, 3], or one image without B: a tensor, a NumPy array, a PIL image, or
                a list of images of one size.
            slides: keys of `slides`, one for each image; None for none.
            inside, dtype, mean, std, return_stains: as in `ops.stain_normalize`.
            draws: float32 [B, 4] uniform in 0..1 for stain augmentation: alpha and beta, each of hematoxylin and eosin.

        Returns:
            The images in their input layout: a tensor for a tensor, else an array; without B if the input had none.
            With `return_stains` a `Normalised` in this form.
        """
        batch, form = as_batch(images)
        planes, statistics = check_images(batch), check_statistics(mean, std)
        dtype = check_dtype(dtype, mean)
        if form.single and isinstance(inside, Tensor) and inside.dim() == 2:
            inside = inside[None]
        draws = check_draws(draws, planes)
        result = self._run(planes, slides, inside, Output(*statistics), dtype, draws, return_stains)
        result = result.interleaved() if is_interleaved(batch) else result
        return form.give_all(result) if return_stains else form.give(result.images)

    def __call__(
        self,
        images: Tensor,
        *,
        slides: Sequence[str],
        inside: Tensor | None = None,
        colour: Tensor | None = None,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        draws: Tensor | None = None,
    ) -> Tensor:
        """Normalise stains, change colours, subtract mean and divide by std in one pass; the loader calls it.

        Args:
            images: uint8 [B, 3, H, W].
            slides: B keys of `slides`; "" for none.
            inside: bool or uint8 [B, H, W], False for pixels filled in by rotation: excluded from estimates, then set
                to grey level 240.
            colour: float32 [B, 3, 4], RGB 0..255 and 1 -> RGB 0..255, applied and clipped after normalisation.
            mean, std: of RGB in 0..1.
            draws: float32 [B, 4] uniform in 0..1 for stain augmentation: alpha and beta, each of hematoxylin and eosin.

        Returns:
            float32 [B, 3, H, W], contiguous.
        """
        planes = check_images(images)
        colour = check_colour(colour, planes)
        draws = check_draws(draws, planes)
        output = Output(*check_statistics(mean, std), colour)
        return self._run(planes, slides, inside, output, torch.float32, draws, False).images.contiguous()

    @torch.no_grad()
    def _run(
        self,
        planes: Tensor,
        slides: Sequence[str] | None,
        inside: Tensor | None,
        output: Output,
        dtype: torch.dtype,
        draws: Tensor | None,
        separate: bool,
    ) -> Normalised:
        if self.target is None:
            raise ValueError(f"{self.method} has no target yet: call `fit` with an image first.")
        if draws is not None and not self.has_stains:
            raise ValueError(f"`draws` augment stains, and {self.method} has none. Leave them out.")
        slides = check_slides(slides, planes)
        pixels, passes = readable(planes, check_inside(inside, planes)), passes_of(planes, self.backend)
        policy = "reference" if self.fallback == "slide" else self.fallback
        run = Run(self.method, self._convention, self.target, self.min_tissue, policy, dtype)
        given, missing = None, None
        if self.has_stains:
            stored = self._stored(slides, planes.device)
            known = all(key in self.slides for key in slides)
            if self.per == "slide" and known:
                given = stored
            else:
                given = run.fit(passes, pixels, pooled=self.per == "batch")
                if self.per == "slide":
                    given, missing = _first(stored, given), ~(stored.valid | given.valid)
                elif self.per == "tile" and self.fallback == "slide":
                    given, missing = _first(given, stored), ~given.valid
        alpha, beta = (None, None) if draws is None else self._augmented(draws)
        result = run(passes, pixels, given, output, separate=separate, alpha=alpha, beta=beta)
        if missing is not None:
            result = result._replace(fell_back=missing)
        self.fell_back = result.fell_back
        return result

    def _stored(self, slides: Sequence[str], device: torch.device) -> Estimate:
        """The stored stains of each key; for unknown keys finite numbers marked as not valid."""
        nothing = default_target(self._convention)
        found = [self.slides.get(key) for key in slides]
        vectors = torch.cat([(one or nothing).vectors for one in found]).to(device, non_blocking=True)
        maxima = torch.cat([(one or nothing).maxima for one in found]).to(device, non_blocking=True)
        valid = torch.tensor([one is not None for one in found]).to(device, non_blocking=True)
        return Estimate(Stains(vectors, maxima), valid)

    def _augmented(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        centred = 2 * draws.double() - 1
        return 1 + self.augmentation[0] * centred[:, :2], self.augmentation[1] * centred[:, 2:]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write target, options and the slides' stains to one .npz file, without pickle."""
        options = {name: np.array(getattr(self, name)) for name in _OPTIONS}
        target = [] if self.target is None else [part.cpu().numpy() for part in self.target]
        parts = {f"target_{number}": part for number, part in enumerate(target)}
        write_arrays(path, {"kind": np.array(_KIND), **options, **pack(self.slides), **parts})

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str = "auto") -> StainNormalizer:
        """Read what `save` wrote; raises StainFileError for a missing or damaged file, or another kind or version."""
        arrays = read_arrays(path, _KIND)
        try:
            target = [torch.from_numpy(arrays[name]) for name in ("target_0", "target_1") if name in arrays]
            options = {name: arrays[name].tolist() for name in _OPTIONS}
            made = cls(**options, target=tuple(target) or None, backend=backend)
            made.slides = unpack(arrays)
        except (KeyError, ValueError, TypeError) as error:
            raise StainFileError(f"{path} is damaged ({error}). Fit again.") from error
        return made


_OPTIONS = ("method", "convention", "per", "min_tissue", "fallback", "augmentation")


def _first(one: Estimate, other: Estimate) -> Estimate:
    """The first valid estimate of each image."""
    vectors = torch.where(one.valid[:, None, None], one.stains.vectors, other.stains.vectors)
    maxima = torch.where(one.valid[:, None], one.stains.maxima, other.stains.maxima)
    return Estimate(Stains(vectors, maxima), one.valid | other.valid)
