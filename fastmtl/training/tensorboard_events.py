"""Scalars for TensorBoard. Its own writer is a thread, which would report a full disk by a traceback."""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path


def new_events_file(folder: Path) -> Path:
    """The path of another file in `folder`. TensorBoard reads the files in the order of their names."""
    return folder / f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}"


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
