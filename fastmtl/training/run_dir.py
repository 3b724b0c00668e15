"""The folder of a run: config.toml, environment.json, run.json, metrics.jsonl, balance.jsonl, summary.json,
TensorBoard, resumes.jsonl if it was continued, and quarantine.jsonl if tiles were damaged; `evaluation`, `analyses` and
`report` add their files.

Every file is complete at any moment: written to a temporary file and renamed, or appended line by line.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..config import Recipe, as_dict, load_run_recipe
from ..errors import UserError
from ..utils.atomic_io import truncate, write_whole
from ..utils.json_toml import JsonMapping, JsonObject, parse_json, read_json
from .disk_policy import DiskPolicy
from .tensorboard_events import file_header, new_events_file, scalar_events


class RunError(UserError, RuntimeError):
    """A run folder that cannot be used; the message is one line."""


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_resume(record: JsonObject) -> bool:
    changes = record.get("changes")
    return (
        isinstance(record.get("step"), int)
        and isinstance(changes, dict)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in changes.values())
    )


_MOST_RANKS = 2**20
_FACTS: Mapping[str, Callable[[Any], bool]] = {
    "data": lambda value: isinstance(value, str) and "\0" not in value,
    "split_file": lambda value: value is None or (isinstance(value, str) and "\0" not in value),
    "split": lambda value: isinstance(value, str),
    "class_names": _is_texts,
    "classes": lambda value: isinstance(value, dict) and all(map(_is_texts, value.values())),
    "training_patients": _is_texts,
    "validation_patients": _is_texts,
    "inner_patients": _is_texts,
    "ranks": lambda value: type(value) is int and 0 < value <= _MOST_RANKS,
}
"""The keys of run.json that fastmtl reads again -> whether a value is valid."""
_SINCE: Mapping[str, Any] = {"classes": {}, "inner_patients": [], "ranks": 1}  # keys that runs of earlier versions lack


_CHANGED_IN_PLACE = ("checkpoints", "tensorboard", "nonfinite", "profile", "metrics.jsonl", "balance.jsonl")
_CHANGED_IN_PLACE += ("resumes.jsonl",)


class RunFolder:
    """Writes a run's files; an observer of the trainer.

    Args:
        path: the folder.
        disk: what happens if a line of a record cannot be written; None raises.
    """

    def __init__(self, path: Path, disk: DiskPolicy | None = None):
        self.path, self.disk = path, disk or DiskPolicy()
        self._events: Path | None = None

    def refuse_links(self) -> None:
        """Raise RunError for a link in the folder through which training would write or remove files elsewhere."""
        for name in _CHANGED_IN_PLACE:
            if (path := self.path / name).is_symlink():
                raise RunError(
                    f"{path} is a link to {path.readlink()}, and training changes no files outside of its run folder. "
                    "Put what it leads to in its place. --out itself may be a link, to another disk for example."
                )

    @property
    def exists(self) -> bool:
        """Whether a run has been created here: `create` writes config.toml last."""
        return (self.path / "config.toml").is_file()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def split_file(self) -> Path:
        """The patients and tiles of each side."""
        return self.path / "split.json"

    def create(self, recipe: Recipe, extra: JsonMapping) -> None:
        """Start a run: write `extra` (data folder, split, classes) in run.json, the environment, and the resolved
        recipe in config.toml."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "run.json", json.dumps(extra, indent=1))
        started = datetime.now().astimezone().isoformat(" ", "seconds")
        write_whole(self.path / "environment.json", json.dumps(environment() | {"started": started}, indent=1))
        self._write_recipe(recipe)

    def recipe(self) -> Recipe:
        """The recipe of this run."""
        if not self.exists:
            raise RunError(f"{self.path} is not a run folder: it has no config.toml.")
        return load_run_recipe(self.path / "config.toml")

    def extra(self) -> JsonObject:
        """The `extra` passed to `create`."""
        path = self.path / "run.json"
        if not path.is_file():
            raise RunError(f"{self.path} is not a run folder: it has no run.json.")
        try:
            facts = read_json(path)
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}.") from error
        if not isinstance(facts, dict):
            raise RunError(f"{path} is damaged: it is not a JSON object.")
        for name, fits in _FACTS.items():
            if name not in facts and name not in _SINCE:
                raise RunError(f"{path} is damaged: it has no {name!r}.")
            if not fits(facts.get(name, _SINCE.get(name))):
                raise RunError(f"{path} is damaged: {name!r} is not as fastmtl writes it; got {facts[name]!r}.")
        return facts

    def records(self) -> list[JsonObject]:
        """The readable records of metrics.jsonl."""
        return read_lines(self.path / "metrics.jsonl")[0]

    def reopen(
        self, recipe: Recipe, root: str, epochs: int, steps: int, *, ranks: int, changes: Mapping[str, Any]
    ) -> None:
        """Continue the run: record it in resumes.jsonl with its changes, write the recipe and data folder if they are
        among them, drop the records after `epochs` complete epochs and `steps` steps, and the old summary."""
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        record = {"time": now, "epoch": epochs, "step": steps, "ranks": ranks, "fastmtl": __version__}
        # Not by this run's policy: without this line, the new recipe would seem to be the first.
        DiskPolicy().append(self.path / "resumes.jsonl", json.dumps(record | {"changes": dict(changes)}) + "\n")
        if "data" in changes:
            write_whole(self.path / "run.json", json.dumps(self.extra() | {"data": root}, indent=1))
        if changes.keys() - {"data"}:
            self._write_recipe(recipe)
        self.trim(epochs, steps)
        (self.path / "summary.json").unlink(missing_ok=True)

    def resumes(self) -> list[JsonObject]:
        """The readable records of resumes.jsonl: "step", and "changes", key -> before, now."""
        return [record for record in read_lines(self.path / "resumes.jsonl")[0] if _is_resume(record)]

    def trim(self, epochs: int, steps: int) -> None:
        """Drop records after `epochs` complete epochs and `steps` steps: a resumed run writes them again."""
        for file, key, last in (("metrics.jsonl", "epoch", epochs), ("balance.jsonl", "step", steps)):
            path = self.path / file
            there = path.read_bytes() if path.is_file() else b""
            numbered = [(record.get(key), record) for record in parse_lines(there + self.disk.take(path), path)[0]]
            kept = [json.dumps(record) + "\n" for at, record in numbered if isinstance(at, int) and at <= last]
            text = "".join(kept).encode()
            if not there.startswith(text[: len(there)]):
                write_whole(path, text.decode())
            elif len(text) < len(there):
                truncate(path, len(text))  # works on a full disk, too
            elif held := text[len(there) :]:
                self.disk.append(path, held)

    def on_step(self, step: int, epoch: int, batch: int, num_batches: int, record: JsonMapping) -> None:
        look = {"step": step, "epoch": epoch + 1, "loss": record["loss"]} | record["balance"]
        self.disk.append(self.path / "balance.jsonl", json.dumps(look) + "\n")
        values = {f"loss/{name}": value for name, value in record["loss"].items()}
        weights = zip(record["loss"], record["balance"].get("weights", []), strict=False)
        self._show(values | {f"weight/{name}": weight for name, weight in weights}, step)

    def on_epoch(self, record: JsonMapping) -> None:
        self.disk.append(self.path / "metrics.jsonl", json.dumps(record) + "\n")
        tasks = record.get("validation", {}).get("tasks", {})
        values = {
            f"validation/{task}/{name}": value
            for task, found in tasks.items()
            for name, value in found.items()
            if isinstance(value, float)
        }
        self._show(values, record["epoch"])

    def on_restore(self, step: int, epoch: int, why: str) -> None:
        """Drop the records after the checkpoint that the training went back to."""
        self.trim(epoch, step)

    def write_summary(self, summary: JsonMapping) -> None:
        """Write summary.json: final metrics, in the structure that `fastmtl eval` prints."""
        write_whole(self.path / "summary.json", json.dumps(summary, indent=1))

    def write_quarantine(self, entries: Sequence[JsonMapping], rank: int = 0) -> Path | None:
        """Write the tiles that a rank found damaged, one per line, to quarantine.jsonl (quarantine-1.jsonl for rank 1);
        None without entries."""
        if not entries:
            return None
        name = f"quarantine-{rank}.jsonl" if rank else "quarantine.jsonl"
        write_whole(self.path / name, "".join(json.dumps(entry) + "\n" for entry in entries))
        return self.path / name

    def write_report(self, html: str) -> None:
        write_whole(self.path / "report.html", html)

    def _write_recipe(self, recipe: Recipe) -> None:
        import tomli_w

        write_whole(self.path / "config.toml", tomli_w.dumps(as_dict(recipe)))

    def _show(self, values: Mapping[str, float], step: int) -> None:
        """Add points to the curves in TensorBoard, in a new file for each process."""
        begins = self._events is None
        self._events = self._events or new_events_file(self.path / "tensorboard")
        self.disk.append(self._events, file_header() * begins + scalar_events(values, step))


def read_lines(path: Path) -> tuple[list[JsonObject], list[str]]:
    """The JSON objects of a .jsonl file, and the problems of the other lines; both empty if there is no file."""
    return parse_lines(path.read_bytes() if path.is_file() else b"", path)


def parse_lines(content: bytes, path: Path) -> tuple[list[JsonObject], list[str]]:
    """As `read_lines`, of the `content` of `path`."""
    records: list[JsonObject] = []
    problems = []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            record = parse_json(line) if line.strip() else None
        except ValueError:  # not JSON, or not UTF-8
            record = ()
        if isinstance(record, dict):
            records.append(record)
        elif record is not None:
            problems.append(f"{path}, line {number}: not a JSON object, left out (a crash while it was written?).")
    return records, problems


def environment() -> JsonObject:
    """Versions, device, commit and command of this process."""
    packages = {}
    for name in ("torch", "triton", "numpy", "nvidia-dali-cuda130", "torchmetrics", "cupy-cuda13x", "numba"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "fastmtl": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "packages": packages,
        "command": " ".join(["fastmtl", *sys.argv[1:]]),
    }


def processor_name() -> str:
    """The processor's name, for example "AMD EPYC"; its architecture if torch does not report the name."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities.get("cpu_name") or platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the source tree this package runs from, `+` when it has changes; None outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        # Without locks: git would write its index, and leave a lock if it is interrupted or the disk is full.
        status = ["git", "--no-optional-locks", "status", "--porcelain"]
        changes = subprocess.run(status, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
