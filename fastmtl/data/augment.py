"""Random geometry and colour as pure functions of (seed, epoch, tile): nothing is drawn from a running generator.

So an interrupted epoch resumes exactly, and a tile is augmented the same way whatever the batch size, the rank, the
number of threads or the device. Crop, zoom, flips and rotation are one affine matrix, hence one resampling, and the
image and its mask cannot be moved differently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_STREAM = 0x6175676D656E74  # keeps these draws apart from the sampling order's, which use the same seed
_NUM_DRAWS = 12


@dataclass(frozen=True)
class Parameters:
    """What is done to B tiles.

    Attributes:
        matrix: float32 [B, 2, 3], output -> source: with (u, v) in 0..1 across the output, source position
            (x, y) = matrix @ (u, v, 1), in 0..1 across the source.
        colour: float32 [B, 4], columns brightness, contrast, saturation (factors) and hue (degrees).
    """

    matrix: NDArray[np.float32]
    colour: NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """How far tiles may be changed. Every knob is drawn uniformly, zoom and aspect uniformly in their logarithm.

    Attributes:
        horizontal_flip: probability of a left-right flip.
        vertical_flip: probability of a top-bottom flip.
        quarter_turns: turn by 0, 90, 180 or 270 degrees: tissue has no upright.
        rotation: largest further rotation either way, degrees.
        zoom: range of the source window's side, as a fraction of the tile: below 1 a crop, above 1 the tile shrinks
            and is surrounded by background. The window lies anywhere in the tile (the tile anywhere in the window).
        aspect: largest ratio by which the window is stretched, 1 or more.
        brightness: factor range 1 - brightness .. 1 + brightness.
        contrast: factor range, likewise, about middle grey.
        saturation: factor range, likewise.
        hue: largest hue shift either way, degrees.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    quarter_turns: bool = True
    rotation: float = 10.0
    zoom: tuple[float, float] = (0.75, 1.1)
    aspect: float = 1.1
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.15
    hue: float = 8.0

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "vertical_flip"):
            _check(name, getattr(self, name), 0, 1)
        for name in ("brightness", "contrast", "saturation"):
            _check(name, getattr(self, name), 0, 0.999)
        _check("rotation", self.rotation, 0, 180)
        _check("hue", self.hue, 0, 180)
        _check("aspect", self.aspect, 1, 4)
        if len(self.zoom) != 2 or not 0.05 <= self.zoom[0] <= self.zoom[1] <= 4:
            raise ValueError(f"`zoom` must be (low, high) with 0.05 <= low <= high <= 4; got {self.zoom}")

    @classmethod
    def none(cls) -> Augmentation:
        """The whole tile, resized: for evaluation."""
        return cls(0.0, 0.0, False, 0.0, (1.0, 1.0), 1.0, 0.0, 0.0, 0.0, 0.0)

    @property
    def changes_colour(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def sample(self, seed: int, epoch: int, tiles: ArrayLike, repeats: ArrayLike = 0) -> Parameters:
        """The parameters for B tiles in `epoch`.

        Args:
            seed: 0 .. 2**63 - 1.
            epoch: counts from 0.
            tiles: int [B], positions in the data set.
            repeats: int [B], how often the tile came before in this epoch, so that a second draw differs.
        """
        tiles = np.atleast_1d(np.asarray(tiles))
        repeats = np.broadcast_to(np.asarray(repeats), tiles.shape)
        draws = np.empty((len(tiles), _NUM_DRAWS))
        if self == Augmentation.none():
            draws[:] = 0.5
        else:
            for row, (tile, repeat) in enumerate(zip(tiles.tolist(), repeats.tolist(), strict=True)):
                draws[row] = _uniform(seed, epoch, tile, repeat)
        return Parameters(self._matrix(draws), self._colour(draws))

    def _matrix(self, draws: NDArray[np.float64]) -> NDArray[np.float32]:
        turns = np.floor(4 * draws[:, 0]) if self.quarter_turns else 0.0
        angle = np.deg2rad(90 * turns + self.rotation * (2 * draws[:, 1] - 1))
        window = np.exp(_between(draws[:, 2], math.log(self.zoom[0]), math.log(self.zoom[1])))
        stretch = np.exp(np.log(self.aspect) * (draws[:, 3] - 0.5))
        sides = np.stack([window * stretch, window / stretch], 1)
        flips = np.where(draws[:, 4:6] < (self.horizontal_flip, self.vertical_flip), -1.0, 1.0)
        centre = 0.5 + np.abs(1 - sides) * (draws[:, 6:8] - 0.5)
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
        # Rows scale in the source, columns flip in the output: rotation is rigid there, whatever the tile's shape.
        linear = sides[:, :, None] * turned * flips[:, None, :]
        shift = centre - 0.5 * linear.sum(2)
        return np.concatenate([linear, shift[:, :, None]], 2).astype(np.float32)

    def _colour(self, draws: NDArray[np.float64]) -> NDArray[np.float32]:
        centred = 2 * draws[:, 8:12] - 1
        spread = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        return (np.array([1.0, 1.0, 1.0, 0.0]) + spread * centred).astype(np.float32)


def _uniform(seed: int, epoch: int, tile: int, repeat: int) -> NDArray[np.float64]:
    """[_NUM_DRAWS] in [0, 1): counter-based, so any tile of any epoch is reached directly; stable across NumPy."""
    raw = np.random.Philox(key=[seed, _STREAM], counter=[0, repeat, tile, epoch]).random_raw(_NUM_DRAWS)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _between(draw: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return low + (high - low) * draw


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be between {low} and {high}; got {value}")
