"""Random geometry, colour and noise as pure functions of (seed, epoch, tile), without generator state.

An interrupted epoch therefore resumes exactly, and a tile's augmentation does not depend on batch size, rank, number of
threads or device. Crop, zoom, flips and rotation form one affine matrix; elastic and grid distortion form one field,
applied before it. Images are resampled once, and image and mask always have the same geometry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_STREAM = 0x6175676D656E74  # separates these draws from the sampling order's, which use the same seed
_NUM_DRAWS = 12
_PIXEL_STREAM = 0x706978656C  # separates newer parameters from the first ones, whose draws must not change
_NUM_PIXEL_DRAWS = 8
_FIELD_STREAM = 0x6669656C64
_MAX_SHIFT = 0.4  # of a cell: larger shifts of a cubic B-spline's control points may fold the image over itself


@dataclass(frozen=True)
class Parameters:
    """The augmentation of B tiles.

    Attributes:
        matrix: float32 [B, 2, 3], output -> source: with (u, v) in 0..1 across the output, source position
            (x, y) = matrix @ (u, v, 1), in 0..1 across the source.
        colour: float32 [B, 4], columns brightness, contrast, saturation (factors) and hue (degrees).
        field: float32 [B, 2, n + 3, n + 3], control points of a uniform cubic B-spline over the output, n cells a side:
            (u, v) is moved by it (x shift, y shift; fractions of the output) before `matrix`; [B, 2, 0, 0] without.
        noise: float32 [B], standard deviation of the noise, grey levels.
        keys: uint32 [B], of the noise.
        stain: float32 [B, 4], uniform in 0..1, for a stain normaliser's own augmentation.
    """

    matrix: NDArray[np.float32]
    colour: NDArray[np.float32]
    field: NDArray[np.float32]
    noise: NDArray[np.float32]
    keys: NDArray[np.uint32]
    stain: NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the augmentation. Every parameter is drawn uniformly; zoom and aspect on a logarithmic scale.

    Attributes:
        horizontal_flip: probability of a left-right flip.
        vertical_flip: probability of a top-bottom flip.
        quarter_turns: whether to rotate by 0, 90, 180 or 270 degrees: tissue has no orientation.
        rotation: largest further rotation in both directions, degrees.
        zoom: range of the source window's side, as a fraction of the tile: below 1 crops; above 1 shrinks the tile and
            surrounds it with background. The window's position in the tile (or the tile's in the window) is random.
        aspect: largest ratio by which the window is stretched, 1 or more.
        brightness: factor range 1 - brightness .. 1 + brightness.
        contrast: factor range, likewise, about middle grey.
        saturation: factor range, likewise.
        hue: largest hue shift in both directions, degrees.
        elastic: largest shift of a control point, each drawn independently; fraction of a cell, 0 .. 0.4.
        grid: largest shift of a line of control points, likewise; 0 .. 0.4 together with `elastic`.
        cells: cells per side of the grid of control points; few give global, many local distortion.
        noise: largest standard deviation of Gaussian noise, grey levels; drawn from 0.
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
    elastic: float = 0.0
    grid: float = 0.0
    cells: int = 5
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "vertical_flip"):
            _check(name, getattr(self, name), 0, 1)
        for name in ("brightness", "contrast", "saturation"):
            _check(name, getattr(self, name), 0, 0.999)
        _check("rotation", self.rotation, 0, 180)
        _check("hue", self.hue, 0, 180)
        _check("aspect", self.aspect, 1, 4)
        _check("elastic", self.elastic, 0, _MAX_SHIFT)
        _check("grid", self.grid, 0, _MAX_SHIFT - self.elastic)
        _check("cells", self.cells, 1, 64)
        _check("noise", self.noise, 0, 255)
        if len(self.zoom) != 2 or not 0.05 <= self.zoom[0] <= self.zoom[1] <= 4:
            raise ValueError(f"`zoom` must be (low, high) with 0.05 <= low <= high <= 4; got {self.zoom}")

    @classmethod
    def none(cls) -> Augmentation:
        """The whole tile, resized: for evaluation."""
        return cls(0.0, 0.0, False, 0.0, (1.0, 1.0), 1.0, 0.0, 0.0, 0.0, 0.0)

    @property
    def is_none(self) -> bool:
        """Whether the tile is only resized."""
        return replace(self, cells=Augmentation.cells) == Augmentation.none()

    def sample(self, seed: int, epoch: int, tiles: ArrayLike, repeats: ArrayLike = 0) -> Parameters:
        """The parameters for B tiles in `epoch`.

        Args:
            seed: 0 .. 2**63 - 1.
            epoch: counts from 0.
            tiles: int [B], positions in the data set.
            repeats: int [B], earlier occurrences of the tile in this epoch, so that a second draw differs.
        """
        tiles = np.atleast_1d(np.asarray(tiles))
        repeats = np.broadcast_to(np.asarray(repeats), tiles.shape)
        if self.is_none:
            draws, pixel_draws = np.full((len(tiles), _NUM_DRAWS), 0.5), np.zeros((len(tiles), _NUM_PIXEL_DRAWS))
        else:
            draws = _uniform(_STREAM, seed, epoch, tiles, repeats, _NUM_DRAWS)
            pixel_draws = _uniform(_PIXEL_STREAM, seed, epoch, tiles, repeats, _NUM_PIXEL_DRAWS)
        return Parameters(
            matrix=self._matrix(draws),
            colour=self._colour(draws),
            field=self._field(seed, epoch, tiles, repeats),
            noise=(self.noise * pixel_draws[:, 0]).astype(np.float32),
            keys=(pixel_draws[:, 1] * 2.0**32).astype(np.uint32),
            stain=pixel_draws[:, 4:8].astype(np.float32),
        )

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
        # Rows scale in the source, columns flip in the output: the rotation is rigid for any tile shape.
        linear = sides[:, :, None] * turned * flips[:, None, :]
        shift = centre - 0.5 * linear.sum(2)
        return np.concatenate([linear, shift[:, :, None]], 2).astype(np.float32)

    def _colour(self, draws: NDArray[np.float64]) -> NDArray[np.float32]:
        centred = 2 * draws[:, 8:12] - 1
        spread = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        return (np.array([1.0, 1.0, 1.0, 0.0]) + spread * centred).astype(np.float32)

    def _field(
        self, seed: int, epoch: int, tiles: NDArray[np.int64], repeats: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if not self.elastic and not self.grid:
            return np.zeros((len(tiles), 2, 0, 0), np.float32)
        side = self.cells + 3
        draws = 2 * _uniform(_FIELD_STREAM, seed, epoch, tiles, repeats, 2 * side * side + 2 * side) - 1
        field = self.elastic * draws[:, : 2 * side * side].reshape(-1, 2, side, side)
        lines = self.grid * draws[:, 2 * side * side :].reshape(-1, 2, side)
        field[:, 0] += lines[:, 0, None, :]  # vertical lines move in x, horizontal ones in y
        field[:, 1] += lines[:, 1, :, None]
        return (field / self.cells).astype(np.float32)


def _uniform(
    stream: int, seed: int, epoch: int, tiles: NDArray[np.int64], repeats: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """[B, count] in [0, 1): counter-based, for direct access to any tile and epoch; stable across NumPy versions."""
    raw = np.empty((len(tiles), count), np.uint64)
    bits = np.random.Philox(key=[seed, stream])
    state: Any = bits.state  # reused: making a generator asks the system for entropy
    for row, (tile, repeat) in enumerate(zip(tiles.tolist(), repeats.tolist(), strict=True)):
        state["state"]["counter"][:] = 0, repeat, tile, epoch
        bits.state = state
        raw[row] = bits.random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def displacement(field: NDArray[np.float32], u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [2, ...]: how far one tile's `field` [2, n + 3, n + 3] moves the output positions (u, v), 0..1.

    Positions outside the output move like the nearest one inside.
    """
    cells = field.shape[-1] - 3
    if cells <= 0:
        return np.zeros((2, *np.shape(u)))
    (column, across), (row, down) = _around(u, cells), _around(v, cells)
    steps = np.arange(4)
    points = field[:, (row[..., None] + steps)[..., :, None], (column[..., None] + steps)[..., None, :]]
    return np.einsum("a...ij,...i,...j->a...", points.astype(np.float64), down, across)


def _around(position: NDArray[np.float64], cells: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The first of the four control points around each position, and their weights."""
    at = np.clip(position, 0, 1) * cells
    first = np.minimum(at.astype(np.int64), cells - 1)
    t = at - first
    weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3]
    return first, np.stack(weights, -1) / 6


def _between(draw: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return low + (high - low) * draw


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be between {low} and {high}; got {value}")
