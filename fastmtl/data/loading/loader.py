"""The loader of tile folders and slides: shuffled, sharded, augmented, and resumable at any batch on any ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ...protocols import Batch, Target
from ...utils.normalization import IMAGENET
from ..dataset import Tile
from ..slides.decoded_tiles import TileUse, decoded_tiles
from .augment import Augmentation
from .encoded_images import EncodedImages
from .epoch_tiles import EpochTiles
from .patches import TileStream
from .pipeline import Pipeline
from .position import check_pieces, identity, pieces_digest, samples_before, sizes
from .prefetch import EncodedBatch, Plan, Prefetcher
from .quarantine import Quarantine
from .samplers import Sampler
from .targets import Columns, ColumnValues
from .tile_sets import TileSets
from .transform_cpu import StainNormalization, TransformOptions

IMAGENET_MEAN, IMAGENET_STD = IMAGENET


class TileLoader:
    """Batches of augmented tiles: image files, regions of slides and drawn pictures, decoded by DALI.

    Each `iter` yields the rest of the current epoch and then moves to the next: leaving a loop early and iterating
    again continues. `set_epoch` starts an epoch from its beginning. Images are resampled once, bilinearly and without a
    low-pass filter: store tiles at most about twice as large as `size`. Pixels outside the tile become light grey
    (`dataset.BACKGROUND`) in the image and 0 in masks.

    Batches have `images` float32 [B, 3, size, size], a target per task (see `Target`), `has_label` bool [B, K], and
    `metadata`. Masks may have any resolution: they cover their image's field of view and get the same geometry. A box
    counts as absent if less than a tenth of it is inside the image.

    Args:
        tiles: the data set, or `RandomPatches` of it.
        targets: task name -> `Target` or its kind, in the order of the columns of `Batch.has_label`.
        size: output height and width, pixels.
        batch_size: samples in a batch, on this rank.
        metadata: name in `Batch.metadata` -> columns of numbers, float32 [B, M]; 0 for missing values.
        augmentation: see `Augmentation`; none by default.
        stain: normalises stains between geometry and colour; see `StainNormalization`. Tiles of one slide, and
            image files of one patient, share a key.
        shuffle: use a new order each epoch (training). All ranks share one order: each batch of R ranks is the next
            R * `batch_size` tiles. In a last batch, copies without labels give all ranks the same number of samples.
            Without shuffling ranks may differ by one tile.
        balanced: draw with replacement, each class equally often; the name of a column of labels, or True for the
            tiles' own. Requires labels and `shuffle`. With `open_slides` or `per_slide` each slide is balanced.
        balance_power: with `balanced`, a class of n tiles is drawn in proportion to n^(1 - balance_power): 1 draws the
            classes equally often, 0.5 by the square root of their sizes.
        pairs: columns (case, position): draw pairs of consecutive tiles of a case, at most one of a case in a batch of
            all ranks; they are neighbouring rows, and a "pair" target gives the partner's row. An epoch has n // 2
            pairs of each case of n tiles. With a third column (the patient, if cases are scans) a batch has at most one
            pair of each of its values.
        sets: of which data sets the tiles are. When shuffling, batches are drawn from the sets by their shares, see
            `set_order`; without, each batch is of one set, whose tiles must be together. `Batch.tasks` and `Batch.set`
            say which, unless the batches are mixed.
        open_slides: slides that batches are drawn from at a time; 0: from all. Each rank reads few of them.
        per_slide: tiles drawn from each slide in an epoch; 0: all.
        max_damaged: the largest accepted fraction of damaged tiles in an epoch; they are listed in `quarantine`. When
            shuffling, each is replaced by a tile of the same label, drawn by (seed, epoch, tile), which keeps batch
            sizes and class balance. Without shuffling (evaluation) they are skipped, because a replacement would count
            twice. With 0 the first damaged tile is an error.
        seed: of order and augmentation, 0 .. 2**63 - 1.
        drop_last: drop the last batch if it is not full.
        drop_single: avoid a batch of one sample on a rank: drop a last batch of a single sample, and fill a larger one
            up with copies until each rank has two. Without effect if `batch_size` is 1.
        rank: this process among `world_size`.
        world_size: processes that share the data set.
        device: "cpu" or "gpu" (torch's current CUDA device): for decoding, augmentation and the batches.
        num_threads: CPU threads that read, decode and augment.
        prefetch: batches decoded ahead; as many again are read ahead.
        tile_cache: bytes of decoded slide tiles that all loaders of this process keep together from now on, see
            `tile_use`; None leaves it as it is, at first 256 MiB.
        mean: per-channel mean that is subtracted, RGB in 0..1.
        std: per-channel divisor.
        mask_threshold: mask values above it are foreground, 0..255; class maps are unchanged.
        mask_sampling: "bilinear" interpolates masks before the threshold, "nearest" takes the nearest pixel, as class
            maps always do.
        pictures: finds the pieces of pictures; opens slides by `data.open_slide` by default.

    Raises:
        ValueError: an argument is out of range, or a column holds what its kind does not allow.
        TileReadError: while iterating; names the file. The position stays before the batch with the damaged file.
    """

    def __init__(
        self,
        tiles: Sequence[Tile] | TileStream,
        *,
        targets: Mapping[str, Target | str],
        size: int,
        batch_size: int,
        metadata: Mapping[str, Sequence[str]] | None = None,
        augmentation: Augmentation | None = None,
        stain: StainNormalization | None = None,
        shuffle: bool = False,
        balanced: bool | str = False,
        balance_power: float = 1.0,
        pairs: tuple[str, str] | tuple[str, str, str] | None = None,
        sets: TileSets | None = None,
        open_slides: int = 0,
        per_slide: int = 0,
        max_damaged: float = 0.0,
        seed: int = 0,
        drop_last: bool = False,
        drop_single: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: Literal["cpu", "gpu"] = "cpu",
        num_threads: int = 2,
        prefetch: int = 2,
        tile_cache: int | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        mask_threshold: int = 127,
        mask_sampling: Literal["bilinear", "nearest"] = "bilinear",
        pictures: EncodedImages | None = None,
    ):
        _check(num_threads=num_threads, prefetch=prefetch, tile_cache=tile_cache, device=device)
        if tile_cache is not None:
            decoded_tiles.most_bytes = tile_cache
        self._sampler = Sampler(
            batch_size,
            seed,
            shuffle,
            balanced,
            pairs,
            open_slides,
            per_slide,
            drop_last,
            rank,
            world_size,
            drop_single,
            balance_power,
            sets,
        )
        self._given = self._sampler  # with the shares of the first epoch
        self._pieces = ""  # of the current epoch, see `pieces_digest`
        self._columns = Columns(targets, metadata or {}, sets)
        self._of_epochs = EpochTiles(tiles, self._columns)
        self._epoch = self._batch = self._samples = self._iteration = 0
        self._resumed = False
        self._tiles, _ = self._of_epochs.read(0)
        self._sampler.check(self._tiles)
        self._length = self._whole = self._sampler.num_batches(self._tiles)
        self._quarantine = Quarantine(max_damaged, len(self._tiles))
        augmentation = augmentation or Augmentation.none()
        self._pictures = pictures or EncodedImages(decode_png=device == "cpu")
        self._prefetcher = Prefetcher(
            self._pictures,
            self._columns,
            augmentation,
            seed=seed,
            quarantine=self._quarantine,
            replace=shuffle,
            num_threads=num_threads,
            ahead=prefetch,
        )
        draws = stain is not None and not augmentation.is_none and getattr(stain, "augments", True)
        options = TransformOptions(
            size=size,
            mean=mean,
            std=std,
            mask_threshold=mask_threshold,
            mask_sampling=mask_sampling,
            maps=self._columns.maps,
            num_threads=num_threads,
            stain=stain,
            with_draws=draws,
        )
        self._pipeline = Pipeline(self._prefetcher, options, device=device, num_threads=num_threads, prefetch=prefetch)

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        """The tiles found damaged: tile, file, of slides x, y, width, height and level, reason, epoch; JSON types."""
        return [dict(entry) for entry in self._quarantine.entries]

    def __len__(self) -> int:
        """Batches of the current epoch, on this rank."""
        return self._length

    @property
    def tile_use(self) -> TileUse:
        """Tiles of slides, much larger than the regions read from them, that were reused and decoded in this process.
        With `open_slides` or `per_slide` the regions of such a tile follow each other."""
        return decoded_tiles.use

    @property
    def ends_with_one(self) -> bool:
        """Whether the last batch of an epoch has a single sample."""
        return self._sampler.ends_with_one(self._tiles)

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1
        iteration = self._iteration
        if self._batch >= len(self) and not self._resumed:  # the loop ended right after its last batch
            self._set_position(self._epoch + 1)
        self._resumed = False
        self._tiles, table = self._of_epochs.read(self._epoch)
        pieces = self._pictures.pieces_of(self._tiles) if self._sampler.by_slide else None
        self._pieces = pieces_digest(pieces or ())
        first, plans = self._batch, self._sampler.plans(self._tiles, self._epoch, self._samples, pieces)
        self._pipeline.start(self._epoch, self._tiles, plans)
        for number, plan in enumerate(plans, first + 1):
            self._check_current(iteration)
            batch, tensors = self._pipeline.next()
            self._batch, self._samples = number, plan.end
            if len(batch.tiles):
                yield self._assemble(table, batch, tensors, plan)
        self._check_current(iteration)
        self._pipeline.end_pass()
        self._set_position(self._epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`, with the current shares of sets; an iteration in progress ends with an error.

        Raises:
            ValueError: the shares of sets have changed since that epoch.
        """
        if (sets := self._sampler.sets) is not None and epoch < sets.since:
            raise ValueError(f"`epoch` must be {sets.since} or later, since `set_shares` was called there; got {epoch}")
        self._iteration += 1  # ends the iteration in progress, which is at the old position
        self._set_position(epoch)
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was returned, in samples of all ranks, the data and settings that it
        belongs to, and the quarantine; JSON types only, the same on all ranks except for the quarantine."""
        position: dict[str, Any] = {"epoch": self._epoch, "batch": self._batch, "samples": self._samples}
        if (sets := self._sampler.sets) is not None and sets.since:
            position["mixing"] = sets.mixing()
        if self._samples and self._pieces:
            position["pieces"] = self._pieces
        return {**position, "quarantine": self.quarantine, **self._identity, **sizes(self._sampler)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken: with the same batches of all ranks if their size (ranks * `batch_size`) is
        the same, bit for bit on as many ranks, and otherwise with the next samples of the same order.

        Raises:
            ValueError: the state is from other tiles, another seed or order; or within an epoch of `pairs` and with
                batches of another size, which the order of pairs depends on, or of slides that are stored in other
                large tiles.
        """
        samples = samples_before(state, self._sampler, self._identity)
        if samples and self._sampler.by_slide:
            tiles, _ = self._of_epochs.read(state["epoch"])
            self._pieces = pieces_digest(self._pictures.pieces_of(tiles))
            check_pieces(state, self._pieces)
        self._sampler = self._given.with_mixing(state.get("mixing"))
        self._iteration += 1
        self._set_position(state["epoch"], state["batch"], samples)
        self._quarantine.load(state.get("quarantine", []))
        self._resumed = True

    @property
    def global_batch(self) -> int:
        """Samples in a full batch of all ranks."""
        return self._sampler.global_batch

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each set in the current epoch; () without sets."""
        return () if self._sampler.sets is None else self._sampler.sets.shares

    def set_shares(self, shares: Sequence[float]) -> None:
        """Draw the sets by these shares from the current epoch on. Call it between epochs, on all ranks with the same
        shares; each set continues its passes where it is, and the length of an epoch stays.

        Raises:
            ValueError: within an epoch, without sets or shuffling, or `shares` are not one number above 0 for each.
        """
        if self._samples:
            raise ValueError(f"`set_shares` is for the beginning of an epoch; batch {self._batch} is reached")
        _ = self._identity  # which has the shares of the first epoch
        self._sampler = self._sampler.with_shares(shares, len(self._tiles), self._epoch)

    def close(self) -> None:
        """Free the pipeline with its threads and buffers; iterating again builds a new one. Also called by `with`."""
        self._iteration += 1
        self._pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_pipeline"):  # the constructor may have raised
            self._pipeline.close(wait=False)  # this may run in one of its own threads

    def _set_position(self, epoch: int, batch: int = 0, samples: int = 0) -> None:
        self._epoch, self._batch, self._samples = epoch, batch, samples
        self._length = batch + (self._sampler.num_batches(self._tiles, samples) if samples else self._whole)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return identity(self._sampler, self._of_epochs.first, self._columns.named)

    def _assemble(self, table: ColumnValues, batch: EncodedBatch, tensors: list[Tensor], plan: Plan) -> Batch:
        images, *maps = tensors
        targets, has_label, metadata = table.gather(batch.tiles, batch.partners, batch.drawn, maps)
        if not plan.counted.all():  # only when shuffling, which replaces damaged tiles: the rows are the plan's
            has_label &= torch.from_numpy(plan.counted)[:, None]
        tiles = [self._tiles[number] for number in batch.tiles.tolist()]
        ids, groups = [tile.id for tile in tiles], [tile.group for tile in tiles]
        whole = Batch(images, targets, has_label, metadata, ids, groups)
        if (sets := self._sampler.sets) is not None and self._sampler.one_set:
            whole = sets.name(whole, tiles[0], self._columns.targets)
        return self._pipeline.to_device(whole)

    def _check_current(self, iteration: int) -> None:
        if iteration != self._iteration:
            raise RuntimeError("this iteration was ended: by a newer one, close(), set_epoch() or load_state_dict()")


def _check(*, num_threads: int, prefetch: int, tile_cache: int | None, device: str) -> None:
    for name, value in (("num_threads", num_threads), ("prefetch", prefetch)):
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more; got {value}")
    if tile_cache is not None and tile_cache < 0:
        raise ValueError(f"`tile_cache` must be 0 bytes or more; got {tile_cache}")
    if device not in ("cpu", "gpu"):
        raise ValueError(f'`device` must be "cpu" or "gpu"; got {device!r}')
    if device == "gpu" and not torch.cuda.is_available():
        raise ValueError('`device` is "gpu" and torch sees no CUDA device; pass device="cpu"')
