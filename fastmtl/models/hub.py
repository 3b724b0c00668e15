"""Finds the file of weights: on this machine, or on the Hugging Face hub, whose downloads are cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..utils.optional_imports import require
from ..utils.suggestions import nearest
from .published import CONFIGURATIONS, Published, published_weights

_FILES = ("model.safetensors", "pytorch_model.bin")


def find_weights(model: nn.Module, source: str | Path) -> Path:
    """The file of `source`: a file, one of the model's `published_weights`, or OWNER/NAME on the hub.

    Raises:
        ValueError: there is none, or it cannot be downloaded; the message says which file to fetch and how to pass it.
    """
    if not isinstance(source, (str, Path)) or "\0" in str(source):
        raise ValueError(f"`weights` must be a file, or OWNER/NAME on the Hugging Face hub; got {source!r}.")
    path, name, known = Path(source), str(source), published_weights(model)
    if path.is_file():
        return path
    if name in known:
        return _download(known[name], f"`weights` {name!r} are {known[name].repository} and")
    files = (".pt", ".pth", ".bin", ".safetensors")
    if name.count("/") != 1 or name.startswith(("/", ".", "~")) or path.suffix in files:
        hint = f" or one of its published weights; {nearest(name, list(known))}" if known else "."
        raise ValueError(
            f"`weights` must be a file, or OWNER/NAME on the Hugging Face hub{hint.rstrip('.')}; there is no file "
            f"{name}."
        )
    return _download(Published(name), f"`weights` {name} is not a local file and")


def _download(wanted: Published, what: str) -> Path:
    """The weights file of a repository, with its configurations beside it."""
    name, at = wanted.repository, {} if wanted.revision is None else {"revision": wanted.revision}
    hub: Any = require("huggingface_hub", f"downloading {name}", extra="models")
    try:
        # Queried first because it fails at once without a network: the download retries six times, for 20 seconds.
        file = next((file for file in _FILES if hub.file_exists(name, file, **at)), None)
        if file is not None:
            for beside in CONFIGURATIONS:
                if hub.file_exists(name, beside, **at):
                    hub.hf_hub_download(name, beside, **at)
            return Path(hub.hf_hub_download(name, file, **at))
        reason = f"it has no such public repository, or the repository lacks {' and '.join(_FILES)}"
    except Exception as error:  # the network, the hub and the repository raise many types; none has the file
        for cached in (hub.try_to_load_from_cache(name, file, **at) for file in _FILES):
            if isinstance(cached, str):
                return Path(cached)
        reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(
        f"{what} cannot be downloaded from the Hugging Face hub: {reason.rstrip('.')}. Fetch {_FILES[0]} from "
        f"https://huggingface.co/{name}/tree/{wanted.revision or 'main'} on another machine and pass the file: "
        f"--set model.weights=FILE; or copy that machine's cache, models--{name.replace('/', '--')}, into "
        f"{hub.constants.HF_HUB_CACHE}."
    )
