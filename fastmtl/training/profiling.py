"""A profile of a few training steps, by torch.profiler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ..protocols import Batch, Loader, MixingLoader
from ..utils.phases import not_timed

_WAIT, _WARMUP, _ACTIVE = 3, 2, 4  # steps that are not profiled, warm the profiler up, are recorded


class ProfiledLoader:
    """A loader that profiles 4 of the steps that its batches are used in, after 5 others.

    A step begins when its batch is requested, so that the profile shows the wait for it. The phases of a step are
    ranges in the trace.

    Args:
        loader: the training batches.
        folder: of the trace: trace.json, which chrome://tracing and https://ui.perfetto.dev open.
        log: called with one line: where the trace is, or why there is none.
    """

    def __init__(self, loader: Loader, folder: Path, log: Callable[[str], object]) -> None:
        self._loader, self._folder, self._log = loader, folder, log
        self._profile: profile | None = None
        self._done = False

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            yield batch
            with not_timed():  # not a wait for data
                self._step()

    def __len__(self) -> int:
        return len(self._loader)

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)

    @property
    def global_batch(self) -> int:
        return cast(MixingLoader, self._loader).global_batch

    @property
    def shares(self) -> tuple[float, ...]:
        return cast(MixingLoader, self._loader).shares

    def set_shares(self, shares: Sequence[float]) -> None:
        cast(MixingLoader, self._loader).set_shares(shares)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the profile if the training was shorter than that."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
        if not self._done:
            self._log(f"no profile: the training had fewer than {_WAIT + _WARMUP + _ACTIVE} steps")
        self._done = True

    def _step(self) -> None:
        if self._done:
            return
        if self._profile is None:
            # Otherwise Kineto prints "USDT:... profiler_start" on standard error; 6 is above all of its levels.
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=_WAIT - 1, warmup=_WARMUP, active=_ACTIVE, repeat=1),
                on_trace_ready=self._write,
            )
            self._profile.start()
            return
        self._profile.step()
        if self._done:
            self._profile.stop()
            self._profile = None

    def _write(self, found: profile) -> None:
        self._done = True
        path = self._folder / "trace.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            found.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:  # the training is worth more
            self._log(f"no profile: {path} cannot be written ({error})")
            return
        self._log(f"profile of {_ACTIVE} steps: {path} (open it in https://ui.perfetto.dev)")
