"""A Zarr store on a server, as the zarr library wants it: chunks are read as slides are, with the same retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import NoReturn

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from ..remote.files import RemoteFile


class ServerStore(Store):
    """The files below a URL; nothing can be written or listed."""

    def __init__(self, url: str):
        super().__init__(read_only=True)
        self.url = url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServerStore) and other.url == self.url

    @property
    def supports_writes(self) -> bool:
        return False

    @property
    def supports_deletes(self) -> bool:
        return False

    @property
    def supports_listing(self) -> bool:
        return False

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        data = await asyncio.to_thread(self._read, key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, asked) for key, asked in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._read, key, RangeByteRequest(0, 1)) is not None

    async def set(self, key: str, value: Buffer) -> None:
        self._refuse()

    async def delete(self, key: str) -> None:
        self._refuse()

    def list(self) -> AsyncIterator[str]:
        self._refuse()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        self._refuse()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotImplementedError("a store on a server is only read, file by file")

    def _read(self, key: str, asked: ByteRequest | None) -> bytes | None:
        """The bytes of a file, or a part; None if there is none. OSError if it cannot be read."""
        try:
            file = RemoteFile(f"{self.url}/{key}")
        except FileNotFoundError:
            return None
        size = file.state()[0]
        if isinstance(asked, RangeByteRequest):
            return file.read(asked.start, asked.end)
        if isinstance(asked, OffsetByteRequest):
            return file.read(asked.offset, size)
        return file.read(max(0, size - asked.suffix) if isinstance(asked, SuffixByteRequest) else 0, size)
