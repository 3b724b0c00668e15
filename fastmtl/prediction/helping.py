"""One slide on several ranks, if there are fewer slides than ranks.

The rank of the slide stitches and writes; its helpers run the network on their share of the slide's batches and send it
the outputs. Batches are whole, and stitched in their order: the files are those of one rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import data
from ..distributed import World
from .output_dir import rows_of
from .preparing import Prepared


class HelperError(Exception):
    """A helper could not read its share of a slide."""


class Outputs(NamedTuple):
    """The network's outputs for tiles, by task."""

    tiles: Sequence[str]
    of_tasks: Mapping[str, Any]


class _End(NamedTuple):
    """A helper's last message: the damaged tiles it left out, or None if it could not read its share."""

    quarantine: list[dict[str, Any]] | None


@torch.inference_mode()
def run(prepared: Prepared, model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> Iterator[Outputs]:
    """Run the network on the batches of a slide."""
    for batch in prepared.batches:
        batch = batch.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            outputs = model(batch)
        yield Outputs(batch.ids, outputs)


class Helpers:
    """The helpers of a slide, as its own rank sees them.

    Args:
        world: all ranks.
        ranks: of the helpers; none is the usual case.
        device: where outputs are wanted.

    Attributes:
        quarantine: the damaged tiles that they left out, complete after `merged`.
    """

    def __init__(self, world: World, ranks: Sequence[int], device: torch.device):
        self.ranks, self.quarantine = ranks, []
        self._world, self._device, self._running = world, device, set(ranks)

    def merged(self, own: Iterator[Outputs], tiles: Sequence[data.Tile]) -> Iterator[Outputs]:
        """This rank's outputs and those of the helpers, in the order of the slide's tiles.

        Raises:
            HelperError: a helper could not read its share.
        """
        order = {tile.id: number for number, tile in enumerate(tiles)} if self.ranks else {}
        parts = (own, *(self._received(rank) for rank in self.ranks))
        return heapq.merge(*parts, key=lambda part: order[part.tiles[0]]) if self.ranks else own

    def drain(self) -> None:
        """Receive what helpers still send, which would wait for ever otherwise."""
        for rank in sorted(self._running):
            while not isinstance(self._world.receive(rank), _End):
                pass
        self._running.clear()

    def _received(self, rank: int) -> Iterator[Outputs]:
        while not isinstance(message := self._world.receive(rank), _End):
            yield Outputs(message.tiles, {name: _moved(one, self._device) for name, one in message.of_tasks.items()})
        self._running.discard(rank)
        if message.quarantine is None:
            raise HelperError
        self.quarantine += message.quarantine


def help_with(
    prepare: Callable[[], Prepared], run_on: Callable[[Prepared], Iterator[Outputs]], send: Callable[[Any], None]
) -> None:
    """Be a helper: send the outputs for this rank's share of a slide.

    Args:
        prepare: opens it.
        run_on: runs the network on it.
        send: to the slide's own rank.
    """
    try:
        with prepare() as prepared:
            for outputs in run_on(prepared):
                plain = {name: _moved(one, torch.device("cpu")) for name, one in outputs.of_tasks.items()}
                send(Outputs(outputs.tiles, plain))
            end = _End(prepared.quarantine)
    except (data.SlideError, data.TileReadError):  # its own rank reads the slide alone, and says why it cannot
        end = _End(None)
    send(end)


def _moved(output: Any, device: torch.device) -> Any:
    whole = rows_of(output, slice(None))
    if isinstance(whole, Tensor):
        return whole.to(device)
    return whole._replace(class_logits=whole.class_logits.to(device), mask_logits=whole.mask_logits.to(device))
