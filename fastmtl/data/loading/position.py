"""The position of a loader in its epochs, counted in samples of all ranks, and the data that it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from ..dataset import Tile, kind_of
from .samplers import Sampler

_PER_RANK = ("rank", "world_size", "batch_size", "drop_single")  # a position is valid with others of these
_ADDED = ("values", "balance_power")  # missing in older states
_CHANGED = {
    "tiles": "tiles were added or removed since, or their labels changed, or which of them have masks",
    "values": "labels or numbers in the columns of the tasks changed since",
}


def identity(sampler: Sampler, tiles: Iterable[Tile], columns: Sequence[str]) -> dict[str, Any]:
    """What must be equal for a position to be valid: tiles, their values in `columns`, and the order; JSON types."""
    names, values = hashlib.sha256(), hashlib.sha256()
    for tile in tiles:
        names.update(f"{tile.id}\0{tile.label}\0{tile.mask is not None}\n".encode())
        own = (tile.values.get(column) for column in columns)
        values.update(repr([one if one is None or kind_of(one) != "picture" else "" for one in own]).encode())
    order = {name: value for name, value in vars(sampler).items() if name not in _PER_RANK}
    order["pairs"] = None if order["pairs"] is None else list(order["pairs"])
    if (sets := order.pop("sets")) is not None:
        order["sets"] = sets.state()
    return {"tiles": names.hexdigest()[:16], "values": values.hexdigest()[:16], **order}


def sizes(sampler: Sampler) -> dict[str, int]:
    """The settings that may change between two parts of an epoch, the same on all ranks."""
    return {name: getattr(sampler, name) for name in _PER_RANK if name != "rank"}


def pieces_digest(pieces: Iterable[Hashable | None]) -> str:
    """Which tiles of an epoch are of one piece (see `order.slide_runs`), wherever their files are; "" if none is."""
    numbers: dict[Hashable, int] = {}
    found = [-1 if piece is None else numbers.setdefault(piece, len(numbers)) for piece in pieces]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16] if numbers else ""


def check_pieces(state: Mapping[str, Any], mine: str) -> None:
    """Raise ValueError if the order within the epoch of `state` was that of other pieces; `mine` is the digest here."""
    if state.get("pieces", "") != mine:
        raise ValueError(
            "the loader state was taken within an epoch whose order has changed since: the order follows how slides "
            "are stored in large tiles, and these are other ones, or were not followed by an earlier version; resume "
            "with that version and these slides, or from the end of an epoch"
        )


def samples_before(state: Mapping[str, Any], sampler: Sampler, mine: Mapping[str, Any]) -> int:
    """The samples of the epoch before the position of `state`, on all ranks; `mine` is the `identity` here.

    Raises:
        ValueError: the state is from other data or another order.
    """
    for name, value in mine.items():
        if state.get(name) != value and (name in state or name not in _ADDED):
            raise ValueError(
                f"the loader state was taken with {name}={state.get(name)!r}, this loader has {value!r}: "
                f"{_CHANGED.get(name, 'its position is not valid here')}; resume with the same data and settings"
            )
    ranks, now = state["world_size"], sampler.global_batch
    before = state["batch_size"] * ranks
    samples = state.get("samples")
    if samples is None:  # an earlier version counted batches, and each rank had its own order
        if state["batch"] and ranks > 1 and (sampler.by_slide or sampler.pairs):
            raise ValueError(
                f"the loader state was taken on {ranks} ranks by an earlier version, within an epoch whose order has "
                "changed since; resume with that version, or from the end of an epoch"
            )
        samples = state["batch"] * before
    if sampler.by_batch and samples and before != now:
        raise ValueError(
            f"the loader state was taken with {before} samples in a batch of all ranks, this loader has {now}, and the "
            f"order of {'pairs' if sampler.pairs else 'sets'} depends on it; resume with as many, or from the end of "
            "an epoch"
        )
    return samples
