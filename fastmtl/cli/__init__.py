"""The command line: runs a command, and prints expected errors as one line with a non-zero exit code."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

from ..errors import UserError
from ..utils.cures import cure_of
from ..utils.optional_imports import install_command
from . import rank_lines

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command continues
_LONGEST = 2000  # characters of a message, which may quote a large file
USAGE = """fastmtl: train one network for several tasks on medical images

  fastmtl train RECIPE --data DIR --out RUN    train; RECIPE is a name that `fastmtl recipes` lists, or a TOML file;
                                               --scale tiny or small: on a machine without a GPU; run the same
                                               command again to continue a run that was stopped
  fastmtl train --resume --out RUN             the same, with the run's own recipe and data
  torchrun --nproc-per-node N -m fastmtl train ...       train or continue with N processes, one GPU each if present;
                                               `predict` likewise
  fastmtl eval RUN --data DIR                  metrics of a run as JSON on standard output
  fastmtl predict RUN INPUT --out DIR          masks and classes for images or whole slides without labels
  fastmtl report RUN [RUN ...]                 write the report of a run again, or one page that compares several
  fastmtl report RUN --analyse                 also recompute its saliency maps, feature maps and filters
  fastmtl prepare DIR [--out MANIFEST]         write a manifest of a folder of tiles or slides; index the slides
  fastmtl data check PATH                      open every file of a data set; print counts, oddities and damaged files
  fastmtl reproduce PAPER --data DIR           compare our results with a paper's tables: --scale tiny, small or full
  fastmtl recipes [PAPER]                      list the built-in recipes: papers, models, figures to reproduce
  fastmtl models                               list the networks, their papers, parameters and strides
  fastmtl bench                                benchmark fastmtl against other libraries
  fastmtl doctor                               print versions, devices, and the backend that each op uses
  fastmtl doctor --resume RECIPE --data DIR    kill a short training, resume it, and certify that nothing changed

`fastmtl COMMAND --help` lists every option.
"""


_COMMANDS = {
    "train": ".train:train",
    "eval": ".runs:evaluate",
    "predict": ".runs:predict",
    "report": ".runs:report",
    "prepare": ".data:prepare",
    "data": ".data:data_command",
    "reproduce": ".papers:reproduce",
    "recipes": ".papers:recipes",
    "models": ".models:list_models",
    "bench": "..benchmarks.run:main",
    "doctor": ".doctor:doctor",
}
"""Command -> the function that takes its arguments and returns the exit code; only the chosen one is imported."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 success, 1 failure, 2 wrong usage, 75 training stopped (the same
    command continues it), 130 stopped at once, 141 closed pipe."""
    if argv is None and not sys.warnoptions:  # Python would hide these warnings
        warnings.filterwarnings("default", ".* is now called ", DeprecationWarning)
        warnings.formatwarning = lambda message, *_: f"fastmtl: {message}\n"
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from .. import __version__

        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        print(f"fastmtl: unknown command {command!r}; the commands are {', '.join(_COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        module, _, function = _COMMANDS[command].partition(":")
        code = getattr(importlib.import_module(module, __package__), function)(rest)
        sys.stdout.flush()  # here a closed pipe or a full disk can still be reported
        return code
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fastmtl"):
            raise
        install = install_command(error.name or "")
        return _fail(f"{error.name} is not installed: {install}" if install else str(error))
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:  # such as `| head`
        with suppress(OSError, ValueError):  # standard output is not a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush would fail again
        return 141
    except Exception as error:
        message = _message(error)
        if not message or os.environ.get("FASTMTL_TRACEBACK"):
            raise
        if type(error).__name__ != "Interrupted":
            return _fail(message, getattr(error, "exit_code", 1), once=True)
        if argv is None:  # a repeated signal would change the exit code in the seconds in which Python ends
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        return _fail(message, STOPPED, once=True, of_all_ranks=getattr(error, "of_all_ranks", False))


def _message(error: Exception) -> str:
    """The message for an error that the input or the machine caused; "" for a bug in the program."""
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, UserError):
        place = f"{error.filename}: " if error.filename is not None else ""
        cure = f"; {cure}" if (cure := cure_of(error)) else ""
        return f"{place}{error.strerror}{cure}{', or choose another place' if error.errno in _ELSEWHERE else ''}"
    # ValueError is included because ops raise it for bad input, with messages for the user.
    if isinstance(error, (UserError, ValueError, OSError)):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        first = next(iter(str(error).splitlines()), "")
        return f"out of memory{f' ({first})' if first else ''}; lower data.batch_size or data.size"
    library = type(error).__module__.partition(".")[0]
    return f"{library}: {error}" if library in _LIBRARIES else ""


_ELSEWHERE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors that another place may not have."""
_LIBRARIES = ("safetensors", "_csv", "zipfile", "zlib", "tifffile", "h5py")
"""Packages whose errors mean a damaged file."""


def _fail(message: str, code: int = 1, *, once: bool = False, of_all_ranks: bool = False) -> int:
    """Print the message on one line; returns `code`. Of a message `of_all_ranks` only rank 0 prints it; with `once`
    another rank does only if rank 0 does not print the same."""
    message = " ".join(message.split())
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
    rank = os.environ.get("RANK", "0")  # as torchrun sets it
    with suppress(OSError):  # the log is on a full disk: a scheduler still needs the exit code
        if rank == "0":
            print(f"fastmtl: {message}", file=sys.stderr, flush=True)
            rank_lines.say_printed(message)
        elif not (of_all_ranks or (once and rank_lines.printed_by_rank_0(message))):
            print(f"fastmtl: rank {rank}: {message}", file=sys.stderr)
    return code
