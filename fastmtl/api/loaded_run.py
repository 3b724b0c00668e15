"""A trained run in memory, for predictions of single images from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import data
from ..builders import datasets
from ..config import Recipe
from ..prediction.images import predictions
from ..training.run_dir import RunError
from .ensembles import Trained
from .ensembles import load as load_trained

Image = str | Path | NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Pixels:
    """An image in memory; a `Drawn` that is equal to itself alone."""

    pixels: NDArray[np.uint8]

    def draw(self) -> NDArray[np.uint8]:
        return self.pixels


class LoadedRun:
    """A trained run; `fastmtl.load` makes one.

    Attributes:
        recipe: what it was trained with.
        tasks: their names.
    """

    def __init__(self, trained: Trained):
        self.recipe: Recipe = trained.recipe
        self.tasks: tuple[str, ...] = tuple(task.name for task in trained.tasks)
        trained.check_images_suffice()
        self._trained = trained
        self._number = count()
        self._lock = Lock()  # stains are estimated for the images of one call

    def predict(self, image: Image) -> dict[str, dict[str, Any]]:
        """`predict_all` of one image."""
        return self.predict_all([image])[0]

    def predict_all(self, images: Sequence[Image]) -> list[dict[str, dict[str, Any]]]:
        """What `fastmtl predict` writes, in memory; in batches of the recipe's size. Threads wait for each other.

        Args:
            images: files, or uint8 arrays [H, W, 3] in RGB or [H, W] in grey, of any sizes. Each counts as a patient of
                its own where stains are normalised per patient.

        Returns:
            For each image task -> its answer in the words of predictions.jsonl, with maps as uint8 tensors [H, W] of
            the image's size: `{"mask": 0 or 255, "foreground": its share}`, the same for each of several structures,
            `{"classes": class index, "shares": of each}`, or `{"class": its name, "probabilities": of each}`, ...
            Auxiliary tasks have none.

        Raises:
            RunError: a file cannot be read, or an array is not an image.

        >>> import fastmtl
        >>> run = fastmtl.load("runs/mine")  # doctest: +SKIP
        >>> run.predict("tile.png")["segmentation"]["mask"].shape  # doctest: +SKIP
        torch.Size([224, 224])
        """
        if not images:
            return []
        with self._lock:
            return self._predict_all(images)

    def _predict_all(self, images: Sequence[Image]) -> list[dict[str, dict[str, Any]]]:
        trained = self._trained
        tiles = [self._tile(image) for image in images]
        if self.recipe.data.preprocessing:
            given = data.Dataset(Path(), (), tuple(tiles))
            tiles = list(datasets.preprocessed(given, self.recipe.data.preprocessing).tiles)
        if problems := data.check_tiles(tiles):
            raise RunError(f"{problems[0]}. Nothing was predicted.")
        stains = dict(trained.stain.slides) if trained.stain is not None else {}
        found: dict[str, dict[str, dict[str, Any]]] = {}
        try:
            with trained.read(data.Dataset(Path(), tuple(trained.facts["class_names"]), tuple(tiles))) as loader:
                batches = (batch.to(trained.device) for batch in loader)
                for answers in predictions(trained.model, trained.tasks, batches, tiles):
                    found |= answers
                damaged = [f"{entry['tile']}: {entry['reason']}" for entry in loader.quarantine]
        finally:
            if trained.stain is not None:  # those of these images are not needed again
                trained.stain.slides = stains
        if damaged:
            raise RunError(f"{damaged[0]}. Nothing was predicted.")
        return [found[tile.id] for tile in tiles]

    def _tile(self, image: Image) -> data.Tile:
        number = next(self._number)
        if isinstance(image, str | Path):
            name, source = f"{number}:{image}", Path(image)
        else:
            name, source = f"{number}:array", _Pixels(self._checked(image))
        return data.Tile(name, source, mask=None, label=None, group=name)

    def _checked(self, image: object) -> NDArray[np.uint8]:
        if self.recipe.data.preprocessing:
            raise RunError(
                f"this run reads image files by data.preprocessing = {self.recipe.data.preprocessing!r}; pass files."
            )
        pixels = np.asarray(image)
        if (
            pixels.dtype != np.uint8
            or pixels.ndim not in (2, 3)
            or pixels.shape[2:] not in ((), (3,))
            or not pixels.size
        ):
            raise RunError(
                "an image in memory must be uint8 [H, W, 3] in RGB or [H, W] in grey; got "
                f"{pixels.dtype} {list(pixels.shape)}."
            )
        return np.ascontiguousarray(pixels)


def load(
    path: str | Path,
    *,
    which: Literal["best", "last"] | None = None,
    device: str = "auto",
    tta: Sequence[str] | None = None,
) -> LoadedRun:
    """The trained run in the folder `path`, ready to predict.

    Args:
        path: the run folder.
        which: the checkpoint; None uses the recipe's training.checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
        tta: views of test-time augmentation; None uses the recipe's.

    Raises:
        RunError: `path` is not a run, or its network reads metadata, which images alone lack.
        CheckpointError: the run has no such checkpoint.
        ConfigError: torch finds no such device, or `tta` names no view.
    """
    return LoadedRun(load_trained(Path(path), which, device, tta))
