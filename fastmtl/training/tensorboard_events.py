"""Scalars for TensorBoard. Its own writer is a thread, which would report a full disk by a traceback."""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4


def new_events_file(folder: Path) -> Path:
    """The path of another file that TensorBoard finds in `folder`."""
    started, unique = f"{time.time():010.0f}", uuid4().hex[:8]
    return folder / f"events.out.tfevents.{started}.{platform.node()}.{os.getpid()}.{unique}"


def file_header() -> bytes:
    """The first record of a file."""
    return _records([{"file_version": "brain.Event:2"}])


def scalar_events(values: Mapping[str, float], step: int) -> bytes:
    """Records of the `values` by name, to append to a file."""
    from torch.utils.tensorboard.summary import scalar

    return _records([{"step": step, "summary": scalar(name, value)} for name, value in values.items()])


def _records(events: list[dict]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(Event(wall_time=time.time(), **event).SerializeToString())
    return buffer.getvalue()
