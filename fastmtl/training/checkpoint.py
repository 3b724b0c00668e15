"""Crash-safe checkpoints without pickle: tensors in safetensors, everything else in JSON.

A checkpoint is a directory. It is written under a temporary name, every file is synced, a manifest of sha256 sums is
added last, and the directory is renamed: a name without `.tmp` is always a complete checkpoint. Loading never executes
code from a file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.atomic_io import sync
from ..utils.json_toml import read_json
from ..utils.words import megabytes
from .checkpoint_names import MANIFEST, best_of, located
from .disk_policy import advice, disk_reason, is_full
from .errors import CheckpointError as CheckpointError
from .errors import DamagedCheckpoint
from .sharding import is_sharded, model_like
from .state_checks import StateDict, model_problem
from .weight_averaging import averaged_weights

FORMAT = 1
_TENSORS, _STATE = "tensors.safetensors", "state.json"


def encode(state: StateDict) -> tuple[Any, dict[str, Tensor]]:
    """The JSON part of `state`, a copy, and its tensors by name, which are not copied.

    Args:
        state: nested dicts, lists and tuples of tensors, numbers, text, bools and None.

    Raises:
        TypeError: a value of another kind; the message names its position.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(state, tensors, ""), tensors


def write(directory: Path, tree: Any, tensors: dict[str, Tensor], *, best: str) -> None:
    """Write an encoded state to a new `directory`.

    Args:
        directory: the checkpoint; it appears there when it is complete and on the disk.
        tree: the JSON part.
        tensors: contiguous and on the CPU; they share no memory, because safetensors refuses that (tied weights).
        best: name of the best checkpoint beside it, recorded in the manifest; "" if there is none.

    Raises:
        CheckpointError: the disk is full, or the folder is not writable.
    """
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(temporary, tree, tensors, best)
        temporary.rename(directory)
        sync(directory.parent)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)  # frees the space on a full disk
        raise refused(directory, error, tensors) from error


def refused(directory: Path, error: Exception, tensors: Mapping[str, Tensor]) -> CheckpointError:
    """The error for a checkpoint that cannot be written; on a full disk it names the space that is needed and free."""
    said = disk_reason(error) or " ".join(str(error).split())
    if is_full(error):
        with suppress(OSError):
            needed, free = sum(one.nbytes for one in tensors.values()), shutil.disk_usage(directory.parent).free
            said += f": it needs {megabytes(needed)}, and {megabytes(free)} are free"
    found = CheckpointError(f"checkpoint {directory} cannot be written ({said}). {advice(error)}")
    found.__cause__ = error
    return found


def load(directory: Path, device: torch.device | str = "cpu") -> StateDict:
    """The state that was encoded and written; checksums are verified first.

    Raises:
        DamagedCheckpoint: a file is missing or damaged.
        CheckpointError: no checkpoint, or one of another format.
    """
    from safetensors.torch import load_file

    directory = verified(directory)
    try:
        tree = read_json(directory / _STATE)
        state = _decode(tree, load_file(directory / _TENSORS, device=str(device)))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the same, and safetensors has its own error type
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"checkpoint {directory} has a state that does not decode ({said}).") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {directory} has a state that is not a dict.")
    return state


def verified(directory: Path) -> Path:
    """Where the checkpoint is that `directory` names (`checkpoint_names.located`), after a look at its checksums and
    at the name of the best one.

    Raises:
        DamagedCheckpoint, CheckpointError: see `load`.
    """
    directory = located(directory)
    if not directory.is_dir():
        raise CheckpointError(f"no checkpoint at {directory}.")
    try:
        manifest = read_json(directory / MANIFEST)
        sums, version = dict(manifest["sha256"]), manifest["format"]
    except FileNotFoundError:
        raise DamagedCheckpoint(f"checkpoint {directory} is damaged: it has no {MANIFEST}.") from None
    except OSError:
        raise  # its message names the file
    except Exception as error:  # a damaged or edited file can raise any error
        raise DamagedCheckpoint(f"checkpoint {directory} has an unreadable manifest ({error}).") from error
    if version != FORMAT:
        raise CheckpointError(f"checkpoint {directory} has format {version}; this fastmtl reads format {FORMAT}.")
    for name in (_TENSORS, _STATE):
        path = directory / name
        if not path.is_file() or _digest(path) != sums.get(name):
            raise DamagedCheckpoint(f"checkpoint {directory} is damaged: {name} does not match its checksum.")
    best_of(directory)
    return directory


def load_model(directory: Path, model: torch.nn.Module, device: torch.device | str = "cpu") -> None:
    """Load the weights of a trainer's checkpoint into `model`: the averaged weights if it has them.

    Raises:
        CheckpointError: as `load`, or the weights do not fit the network.
    """
    try:
        state = load(directory, "cpu" if is_sharded(model) else device)
    except DamagedCheckpoint as error:
        raise DamagedCheckpoint(f"{error} Move this folder away to use the checkpoint before it.") from error
    average = state.get("average")
    sound = average is None or (isinstance(average, dict) and isinstance(average.get("n_averaged"), Tensor))
    weights = (averaged_weights(average) if sound else None) or state.get("model")
    if weights is None:
        raise CheckpointError(f"checkpoint {directory} holds no model.")
    if problem := model_problem(model, weights) if sound else "its average counts nothing":
        raise CheckpointError(
            f"checkpoint {directory} does not fit the network of the run's config.toml (was it edited?): {problem}."
        )
    model.load_state_dict(model_like(model, weights))


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """JSON has no tensors, tuples or integer keys: these become one-key dicts tagged with a leading `$`."""
    if isinstance(value, Tensor):
        name, number = where, 1
        while name in tensors:  # {"a.b": x} and {"a": {"b": y}}, 7 and "7"
            name, number = f"{where}#{number}", number + 1
        tensors[name] = value.detach()
        return {"$tensor": name}
    if isinstance(value, dict):
        items = [[_encode(k, tensors, f"{where}.key"), _encode(v, tensors, f"{where}.{k}")] for k, v in value.items()]
        return {"$dict": items}
    if isinstance(value, list | tuple):
        items = [_encode(item, tensors, f"{where}.{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a checkpoint holds tensors, numbers, text, lists and dicts; {where or 'the state'} is {type(value)}."
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, dict):
        ((tag, content),) = value.items()
        if tag == "$tensor":
            return tensors[content]
        if tag == "$tuple":
            return tuple(_decode(item, tensors) for item in content)
        return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    return value


def _write(folder: Path, tree: Any, tensors: dict[str, Tensor], best: str) -> None:
    """Write the three files of a checkpoint and sync them to disk."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(tensors, folder / _TENSORS)
    (folder / _STATE).write_text(json.dumps(tree), encoding="utf-8")
    sums = {name: _digest(folder / name) for name in (_TENSORS, _STATE)}
    manifest = {"format": FORMAT, "best": best, "sha256": sums}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for name in (_TENSORS, _STATE, MANIFEST):
        sync(folder / name)
    sync(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
