"""Where the frames of a DICOM file lie: from its offset table, or from the lengths of its items.

Source: DICOM PS3.5 A.4 (encapsulated pixel data). An item is eight bytes, its tag and its length, and its content; a
frame is one item or several, and an offset is that of its first item.
"""

from __future__ import annotations

import os
from pathlib import Path
from struct import unpack

import numpy as np
from numpy.typing import NDArray

from ..joined_files import PART
from .instances import Instance

_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
ITEM_HEAD = 8  # bytes of an item before its content
_PIXELS = b"\xe0\x7f\x10\x00"
_UNDEFINED = 2**32 - 1
_IMPLICIT = "1.2.840.10008.1.2"

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Where each frame begins, and its bytes; of encapsulated frames with the heads of their items."""


def frames_of(path: Path, instance: Instance, *, is_raw: bool) -> Places:
    """The places of all frames of a file, some beyond its end if it is truncated.

    Raises:
        ValueError: it has another number of frames than its header says, or its offset table is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return _Frames(path.name, file.fileno(), instance).found(is_raw)


class _Frames:
    def __init__(self, name: str, file: int, instance: Instance):
        self._name, self._file, self._of = name, file, instance
        self._wanted, self._size = instance.num_frames, instance.file.size

    def found(self, is_raw: bool) -> Places:
        at = self._of.pixels_at
        head = self._read(at, 12)
        if head[:4] != _PIXELS:
            raise ValueError(f"{self._name} has no pixels: truncated")
        is_implicit = self._of.syntax == _IMPLICIT
        length = unpack("<I", head[4:8] if is_implicit else head[8:])[0]
        begin = at + (8 if is_implicit else 12)
        if is_raw:
            return self._raw(begin, length)
        if length != _UNDEFINED:
            raise ValueError(f"{self._name} holds compressed frames that are not in items")
        table = self._item(begin)
        if table is None:
            raise ValueError(f"{self._name} has no pixels: truncated")
        first = begin + ITEM_HEAD + table
        if self._of.offset_table:
            return self._by_extended_table(first)
        return self._by_table(self._read(begin + ITEM_HEAD, table), first) if table else self._by_items(first)

    def _raw(self, begin: int, length: int) -> Places:
        frame = self._of.tile_width * self._of.tile_height * self._of.samples
        if length // frame != self._wanted:
            raise self._wrong_number(length // frame)
        offsets = begin + frame * np.arange(self._wanted, dtype=np.int64)
        return offsets, np.full(self._wanted, frame, np.int64)

    def _by_extended_table(self, first: int) -> Places:
        offsets, lengths = (np.frombuffer(table, "<u8") for table in (self._of.offset_table, self._of.length_table))
        if len(offsets) != self._wanted or len(lengths) != self._wanted:
            raise self._wrong_number(min(len(offsets), len(lengths)))
        if max(int(offsets.max()), int(lengths.max())) >= PART // 2:
            raise self._damaged()
        lengths = lengths.astype(np.int64)
        return first + offsets.astype(np.int64), ITEM_HEAD + lengths + lengths % 2  # items have even lengths

    def _by_table(self, table: bytes, first: int) -> Places:
        if len(table) // 4 != self._wanted:
            raise self._wrong_number(len(table) // 4)
        offsets = first + np.frombuffer(table[: 4 * self._wanted], "<u4").astype(np.int64)
        if offsets[0] != first or (np.diff(offsets) <= ITEM_HEAD).any():  # beyond 4 GB some writers begin again at 0
            raise self._damaged()
        end = self._end(int(offsets[-1]))
        return offsets, np.diff(offsets, append=end)

    def _by_items(self, at: int) -> Places:
        """Without a table: each item is a frame."""
        offsets, counts = [], []
        while (length := self._item(at)) is not None:
            offsets.append(at)
            counts.append(ITEM_HEAD + length)
            at += ITEM_HEAD + length
            if len(offsets) > self._wanted:
                raise ValueError(
                    f"{self._name} has no offset table, and more items than its {self._wanted} frames; write it again "
                    "with a table"
                )
        missing = self._wanted - len(offsets)
        if missing and self._read(at, 4) == _DELIMITER:
            raise self._wrong_number(len(offsets))
        offsets += [self._size] * missing  # beyond the end, as the file is truncated
        counts += [ITEM_HEAD] * missing
        return np.array(offsets, np.int64), np.array(counts, np.int64)

    def _end(self, at: int) -> int:
        """Where the last frame ends, which begins at `at`."""
        end = at
        while (length := self._item(end)) is not None:
            end += ITEM_HEAD + length
        return max(end, at + ITEM_HEAD)

    def _item(self, at: int) -> int | None:
        """The length of the item at `at`; None where there is none."""
        head = self._read(at, ITEM_HEAD)
        return unpack("<I", head[4:])[0] if len(head) == ITEM_HEAD and head[:4] == _ITEM else None

    def _read(self, at: int, count: int) -> bytes:
        return os.pread(self._file, min(count, max(self._size - at, 0)), at)

    def _wrong_number(self, found: int) -> ValueError:
        return ValueError(f"{self._name} holds {found} frames, and its header says {self._wanted}: damaged")

    def _damaged(self) -> ValueError:
        return ValueError(f"{self._name} has a damaged offset table; write it again with an extended one")


def content_of(buffer: bytearray, start: int) -> tuple[bytearray, int]:
    """The content of the items from `start` to the end of `buffer`, and where it begins: one item's stays in place,
    with the bytes before it.

    Raises:
        ValueError: there are none: the offset table is wrong, or the items are overwritten.
    """
    contents, at = [], start
    while at + ITEM_HEAD <= len(buffer):
        length = int.from_bytes(buffer[at + 4 : at + ITEM_HEAD], "little")
        if buffer[at : at + 4] != _ITEM or at + ITEM_HEAD + length > len(buffer):
            break
        contents.append((at + ITEM_HEAD, at + ITEM_HEAD + length))
        at += ITEM_HEAD + length
    if not contents or at != len(buffer):
        raise ValueError("no DICOM item where the offset table says that a frame begins: damaged")
    if len(contents) == 1:
        return buffer, contents[0][0]
    return buffer[:start] + b"".join(buffer[begin:end] for begin, end in contents), start
