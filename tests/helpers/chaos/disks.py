"""Disks that are full, limited or read-only while a training writes."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from fastmtl.training.fingerprint import fingerprint

from .attack import Outcome, attack, problems
from .lab import USUAL, Ended, Lab


def no_space_at(folder: str, number: int, code: int) -> None:
    """A hook: every attempt from the `number`-th on to create a file or folder in `folder` fails with `code`."""
    done = 0

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        opened = event == "open" and arguments[2] & os.O_CREAT
        if (opened or event == "os.mkdir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.fsdecode(arguments[0])
            if Path(path).is_relative_to(folder):
                done += 1
                if done >= number:
                    raise OSError(code, os.strerror(code), path)

    sys.addaudithook(heard)


def _refusing(lab: Lab, code: int, word: str) -> Outcome:
    """From each of some operations on, then the same command where there is space again."""
    ends: list[Ended] = []
    found: tuple[str, ...] = ()
    for number in (1, 2, 5, 9, 14, 20, 30, 45):
        out = lab.out()
        ended = lab.run(USUAL, out, hook=partial(no_space_at, str(out), number, code))
        ends.append(ended)
        again = lab.run(USUAL, out)
        found += problems(
            **{
                f"in_one_line_(operation_{number})": ended.code == 0 or word in ended.said,
                f"without_a_traceback_(operation_{number})": "Traceback" not in ended.messages,
                f"bit_equal_(operation_{number})": again.code == 0 and lab.equal(out, USUAL),
            }
        )
    said = next((one.said for one in reversed(ends) if one.code), "")
    return Outcome(f"“{said}”", found, "bit-equal once there is space")


attack("the disk is full from a certain write on (ENOSPC)")(
    partial(_refusing, code=errno.ENOSPC, word="No space left on device")
)
attack("the run folder becomes read-only (EROFS)")(partial(_refusing, code=errno.EROFS, word="Read-only file system"))


def _largest(size: int) -> None:
    """A hook: no file may become larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@attack("a limit on the size of files (ulimit -f), too low for a checkpoint")
def limited(lab: Lab) -> Outcome:
    out = lab.out()
    ended = lab.run(USUAL, out, hook=partial(_largest, 20_000))
    again = lab.run(USUAL, out)
    return Outcome(
        f"“{ended.said}”",
        problems(
            told="File too large" in ended.said and "Traceback" not in ended.messages,
            bit_equal=again.code == 0 and lab.equal(out, USUAL),
        ),
        "bit-equal once it is raised",
    )


def _on_a_small_disk(folder: str, arguments: list[str], size: str, first: str, last: str) -> None:
    """A hook: trains on a file system of this size, which this process alone sees, until it is full; then on a larger
    one. Writes the first exit code and messages to `first`, and the checksums of the finished run to `last`."""
    from fastmtl.cli import main

    quiet = {"check": False, "capture_output": True}
    if ctypes.CDLL(None).unshare(0x00020000):  # CLONE_NEWNS: mounts of its own
        sys.exit(_NOT_PERMITTED)
    subprocess.run(["mount", "--make-rprivate", "/"], **quiet)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], **quiet).returncode:
        sys.exit(_NOT_PERMITTED)
    code = main(arguments)
    sys.stderr.flush()
    Path(first).write_text(f"{code}\n{Path('/proc/self/fd/2').resolve().read_text()}")
    subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
    code = main(arguments)
    if not code:
        Path(last).write_text(json.dumps(fingerprint(Path(folder, "run"))))
    sys.exit(code)


_NOT_PERMITTED = 99


@attack("a file system that is too small for the run")
def small(lab: Lab) -> Outcome:
    """Of several sizes, so that it is full at several writes."""
    ends, found = [], ()
    for size in ("16k", "200k", "700k", "1200k"):
        home = lab.out()
        home.mkdir()
        first, last = home.with_suffix(".txt"), home.with_suffix(".json")
        hook = partial(_on_a_small_disk, str(home), lab.arguments(USUAL, home / "run"), size, str(first), str(last))
        ended = lab.run(USUAL, home, hook=hook)
        if ended.code == _NOT_PERMITTED:
            return Outcome("", skipped="no permission to mount a file system")
        code, _, messages = first.read_text().partition("\n")
        said = messages.splitlines()[-1].removeprefix("fastmtl: ") if messages else ""
        ends.append((code, lab.shown(said, home / "run")))
        found += problems(
            **{
                f"told_({size})": code == "0" or ("No space left on device" in said and "Traceback" not in messages),
                f"bit_equal_({size})": ended.code == 0
                and json.loads(last.read_text()) == fingerprint(lab.whole(USUAL)),
            }
        )
    said = next((said for code, said in reversed(ends) if code != "0"), "")
    full = sum(code != "0" for code, _ in ends)
    return Outcome(
        f"“{said}” ({full} of {len(ends)} sizes are too small)",
        found + problems(some_size_is_too_small=full > 0),
        "bit-equal once there is space",
    )
