"""Slides opened ahead: the next one is cut, its stains are fitted and its first batch is decoded, all while the network
runs on this one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import torch

from .. import data
from ..protocols import Batch


class Prepared:
    """A slide that was cut, and its batches; `with` frees the threads and buffers of its loader.

    Args:
        cut: the slide.
        loader: of its tiles; None if it has none.
    """

    def __init__(self, cut: data.SlideCut, loader: data.TileLoader | None):
        self.cut, self._loader = cut, loader
        rest = iter(loader or ())
        self.batches: Iterator[Batch] = itertools.chain(list(itertools.islice(rest, 1)), rest)

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        """The tiles found damaged so far."""
        return self._loader.quarantine if self._loader is not None else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the loader's threads and buffers."""
        self.batches = iter(())
        if self._loader is not None:
            self._loader.close()


def open_slide_tiles(
    cut: data.SlideCut, read: Callable[[data.Dataset], data.TileLoader], own: Sequence[data.Tile]
) -> Prepared:
    """Start reading the tiles `own` of a slide.

    Raises:
        TileReadError: tiles are damaged, more than `read` allows.
    """
    if len(own) < len(cut.tiles):
        read(data.Dataset(cut.path, (), cut.tiles)).close()  # fits the stains to the whole slide
    loader = read(data.Dataset(cut.path, (), tuple(own))) if own else None
    try:
        return Prepared(cut, loader)
    except BaseException:
        if loader is not None:
            loader.close()
        raise


def prepared_ahead(
    names: Sequence[str], prepare: Callable[[str], Prepared], device: torch.device
) -> Generator[tuple[str, Future[Prepared]]]:
    """Each name with what `prepare` returns for it, computed in a thread, one slide ahead of the caller."""

    def in_thread(name: str) -> Prepared:
        if device.type == "cuda" and device.index is not None:  # a thread has a current device of its own
            torch.cuda.set_device(device)
        return prepare(name)

    with ThreadPoolExecutor(1, "fastmtl-slide") as pool:
        begun = [pool.submit(in_thread, name) for name in names[:1]]
        try:
            for number, name in enumerate(names):
                begun += [pool.submit(in_thread, following) for following in names[number + 1 : number + 2]]
                yield name, begun.pop(0)
        finally:
            for one in begun:  # the caller ended early
                if not one.cancel() and one.exception() is None:
                    one.result().close()
