"""Damaged and foreign run folders, and a second writer."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fastmtl.training.checkpoint_names import history
from helpers.paths import GOLDEN
from helpers.tiles import write_folder

from .attack import Outcome, attack, problems
from .lab import USUAL, Lab


def _flip(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _damaged(lab: Lab, damage: Callable[[Path], None]) -> Outcome:
    """Of the newest checkpoint of a run that was killed; the same command."""
    out = lab.killed()
    newest = history(out / "checkpoints")[-1].path
    damage(newest)
    ended = lab.run(USUAL, out)
    note = next((line for line in ended.messages.splitlines() if " is damaged" in line), "")
    return Outcome(
        f"“{lab.shown(note, out)}”",
        problems(
            told=newest.name in note,
            bit_equal=ended.code == 0 and lab.equal(out, USUAL),
            kept_for_a_look=newest.with_name(f"{newest.name}.damaged").exists(),
        ),
        "bit-equal at the end",
    )


attack("a flipped bit in the newest checkpoint", fast=True)(partial(_damaged, damage=_flip))
attack("a missing tensor file")(partial(_damaged, damage=lambda folder: (folder / "tensors.safetensors").unlink()))
attack("a missing manifest")(partial(_damaged, damage=lambda folder: (folder / "manifest.json").unlink()))


def _contents(folder: Path) -> dict[str, str]:
    """Every file of a run -> its checksum, without the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _refused(lab: Lab, out: Path, *more: str, message: str) -> Outcome:
    """The same command is refused by one line, and no file of the run changes."""
    before = _contents(out)
    ended = lab.run(USUAL, out, *more)
    return Outcome(
        f"“{ended.said}”; exit code {ended.code}",
        problems(
            exit_code_1=ended.code == 1,
            told=message in ended.said,
            without_a_traceback="Traceback" not in ended.messages,
            unchanged=_contents(out) == before,
        ),
        "the run is unchanged",
    )


@attack("damage to all checkpoints")
def all_damaged(lab: Lab) -> Outcome:
    out = lab.killed()
    for one in history(out / "checkpoints"):
        _flip(one.path)
    return _refused(lab, out, message="No earlier checkpoint is whole")


@attack("code (a pickle) in place of the tensors, with a checksum that fits")
def pickled(lab: Lab) -> Outcome:
    out, made = lab.killed(), lab.folder / "executed"
    for one in history(out / "checkpoints"):
        torch.save({"model": _Payload(made)}, one.path / "tensors.safetensors")
        manifest = json.loads((one.path / "manifest.json").read_text())
        content = (one.path / "tensors.safetensors").read_bytes()
        manifest["sha256"]["tensors.safetensors"] = hashlib.sha256(content).hexdigest()
        (one.path / "manifest.json").write_text(json.dumps(manifest))
    found = _refused(lab, out, message="has a state that does not decode")
    return Outcome(found.seen, (*found.problems, *problems(safe_from_the_code=not made.exists())), found.promise)


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@attack("a checkpoint of a format from the future")
def future(lab: Lab) -> Outcome:
    out = lab.killed()
    for one in history(out / "checkpoints"):
        manifest = json.loads((one.path / "manifest.json").read_text())
        (one.path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    return _refused(lab, out, message="has format 99; this fastmtl reads format 1")


@attack("another recipe for the same run folder")
def other_recipe(lab: Lab) -> Outcome:
    return _refused(lab, lab.killed(), "--batch-size", "4", message="data.batch_size = 2, and now it is 4")


@attack("a run folder of an earlier version")
def earlier(lab: Lab) -> Outcome:
    out, data = lab.out(), lab.folder / "earlier-tiles"
    write_folder(data, {"a": 4, "b": 4}, size=32)
    shutil.copytree(GOLDEN / "run_2a154ea" / "run", out)
    shutil.copytree(out / "checkpoints" / "last", out / "checkpoints" / "best")
    facts = out / "run.json"
    facts.write_text(facts.read_text().replace("DATA", str(data)))
    ended = lab.command(["train", "--resume", "--out", str(out)], out)
    expected = json.loads((GOLDEN / "run_2a154ea" / "expected.json").read_text())["last_epoch"]
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    near = all(abs(last["loss"][task] - loss) < 1e-4 * abs(loss) for task, loss in expected["loss"].items())
    return Outcome(
        "",
        problems(finished=ended.code == 0, the_same_losses=near and last["step"] == expected["step"]),
        "it continues, with the losses of the earlier version",
    )


@attack("two trainings in one run folder", fast=True)
def two_writers(lab: Lab) -> Outcome:
    out = lab.out()
    first = lab.reach(USUAL, out, "in training")
    first.send(signal.SIGSTOP)  # it would end before the second one has begun
    second = lab.ended(lab.begin(lab.arguments(USUAL, out), out, ".second.log"), out)
    first.send(signal.SIGCONT)
    ended = lab.ended(first, out)
    return Outcome(
        f"“{second.said}”; exit code {second.code}",
        problems(
            refused=second.code == 1 and "another process trains in" in second.said,
            bit_equal=ended.code == 0 and lab.equal(out, USUAL),
        ),
        "the first one ends bit-equal",
    )
