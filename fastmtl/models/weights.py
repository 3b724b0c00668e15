"""Load weights from a file or the Hugging Face hub into a model: whole parts, with a report of what did not fit.

Files are safetensors or torch state dicts, read with `weights_only=True`: nothing in them is executed.
"""

from __future__ import annotations

import functools
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.normalization import IMAGENET, Normalization
from ..utils.optional_imports import require
from .hub import find_weights
from .published import normalization_of, published_weights

logger = logging.getLogger(__name__)
Weights = dict[str, Tensor]
_NORMS = (
    "hidden_states_norms."  # of transformers' Swin backbone; those that a classifier lacks keep their values 1 and 0
)
_COUNT = "num_batches_tracked"  # of BatchNorm; files from before torch 0.4.1 lack it, and it is not needed


@dataclass(frozen=True)
class WeightsReport:
    """The result of `load_weights`.

    Attributes:
        source: the file or name.
        loaded: the parts that now hold the file's weights, for example ["encoder"].
        missing: keys of the other parts that the file lacks; they keep their initial values.
        wrong_shape: keys whose shape differs in the file, with both shapes.
        unused: keys of the file that no loaded part has, for example those of a classifier.
        normalization: of the images that these weights were trained on; see `normalization_of`.
    """

    source: str
    loaded: list[str]
    missing: list[str]
    wrong_shape: list[str]
    unused: list[str]
    normalization: Normalization = IMAGENET

    def __str__(self) -> str:
        parts = [f"{self.source}: loaded {', '.join(self.loaded) or 'nothing'}"]
        for what, keys in (("missing", self.missing), ("another shape", self.wrong_shape), ("unused", self.unused)):
            if keys:
                parts.append(f"{len(keys)} {what} ({_some(keys)})")
        return "; ".join(parts)


def load_weights(model: nn.Module, source: str | Path) -> WeightsReport:
    """Load what fits of `source` into `model`: each part (encoder, decoders.TASK, heads.TASK, ...) whole or not at all.

    The file may hold the whole model, its encoder alone, or a published network that contains the encoder
    (torchvision's ResNets, timm's CoaT, transformers' Swin, SegFormer, PVTv2 and Mask2Former, smp's encoders): prefixes
    and older names of transformers are recognised.

    Args:
        model: a model from `create_model`; its attribute `weights_report` becomes the report.
        source: a .safetensors file, a torch state dict, a repository on the hub, for example
            "microsoft/swin-tiny-patch4-window7-224", or a name of the encoder's published weights, such as "imagenet"
            (see `published_weights`).

    Raises:
        ValueError: no such file, no state dict in it, or weights of another architecture: the encoder does not fit.
    """
    path = find_weights(model, source)
    found = _read(source, path)
    keys = _with_norms(_named_as_here(model, found), model.state_dict())
    own = model.state_dict()
    loaded: list[str] = []
    wanted: Weights = {}
    for name, part in _parts(model, own).items():
        needed = [key for key in part if not key.endswith(_COUNT) and (key in keys or _NORMS not in key)]
        if needed and all(key in keys and keys[key].shape == own[key].shape for key in needed):
            loaded.append(name)
            wanted.update((key, keys[key]) for key in part if key in keys)
    lacking = [key for key in own if key not in keys and not key.endswith(_COUNT)]
    report = WeightsReport(
        source=f"{source} ({path})" if str(source) in published_weights(model) else str(source),
        loaded=loaded,
        missing=lacking,
        wrong_shape=[
            f"{key} {list(keys[key].shape)} for {list(value.shape)}"
            for key, value in own.items()
            if key in keys and keys[key].shape != value.shape
        ],
        unused=[key for key in keys if key not in wanted],
        normalization=normalization_of(model, path, str(source)),
    )
    if not loaded or ("encoder" in getattr(model, "parts", {}) and "encoder" not in loaded):
        raise ValueError(f"`weights` are of another architecture than this {_name(model)}: {report}.")
    model.load_state_dict(wanted, strict=False)
    model.weights_report = report  # type: ignore[assignment]  # torch's annotation allows tensors and modules only
    logger.log(logging.WARNING if report.wrong_shape else logging.INFO, "%s", report)
    return report


def _parts(model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The smallest named parts -> their keys; keys outside all parts form "the rest"."""
    named: dict[str, nn.Module] = getattr(model, "parts", {})
    names = {id(module): name for name, module in model.named_modules()}
    paths = {name: names[id(part)] for name, part in named.items() if id(part) in names}
    whole = {name for name in paths if any(other.startswith(f"{name}.") for other in paths)}
    found = {
        name: [key for key in own if key.startswith(f"{path}.")] for name, path in paths.items() if name not in whole
    }
    taken = {key for keys in found.values() for key in keys}
    rest = [key for key in own if key not in taken]
    return found | ({"the rest" if found else "the model": rest} if rest else {})


def _named_as_here(model: nn.Module, found: Weights) -> Weights:
    """`found` under the names of `model`: the renaming with the most matching keys."""
    own = model.state_dict()

    def fits(keys: Weights) -> int:
        return sum(key in own and own[key].shape == value.shape for key, value in keys.items())

    best = found
    for rename in (_realigned, _converted):  # transformers' conversion builds a second network, so it is tried last
        for place in _places(model):
            prefix = f"{place}." if place else ""
            inner = {key for key in own if key.startswith(prefix)}
            if fits(best) < len(inner):
                best = max(best, rename(model.get_submodule(place), found, prefix), key=fits)
    return _with_trunk(model, best, found)


def _with_trunk(model: nn.Module, keys: Weights, found: Weights) -> Weights:
    """`keys`, with those of an encoder's last layers, which only some heads read, under the names of the trunk."""
    trunk = getattr(model, "trunk", None)
    own = {key: value.shape for key, value in model.state_dict().items() if key.startswith("trunk.")}
    if trunk is None or own.keys() <= keys.keys():
        return keys
    read = _realigned(trunk, found, "trunk.")
    moved = {key: read[key] for key, shape in own.items() if key in read and read[key].shape == shape}
    if any(key not in moved and not key.endswith(_COUNT) for key in own):
        return keys
    taken = {id(value) for value in moved.values()}
    return {key: value for key, value in keys.items() if id(value) not in taken} | moved


def _with_norms(keys: Weights, own: Mapping[str, Tensor]) -> Weights:
    """`keys`, with the norm of the last stage of transformers' Swin backbone, which its classifier calls layernorm."""
    for key in own:
        other = key.replace(f"{_NORMS}stage4", "swin.layernorm")
        if key not in keys and other != key and other in keys:
            keys = {name: value for name, value in keys.items() if name != other or other in own} | {key: keys[other]}
    return keys


def _places(model: nn.Module) -> list[str]:
    """The model, its encoder, and the library's network inside."""
    names = {module: name for name, module in model.named_modules()}
    parts: dict[str, nn.Module] = getattr(model, "parts", {})
    own = [names[parts["encoder"]]] if parts.get("encoder") in names else []
    return list(dict.fromkeys(name for name in ("", *own, "encoder.net", "net") if name in names.values()))


def _realigned(module: nn.Module, found: Weights, prefix: str) -> Weights:
    """`found` with the keys' common prefix removed, or a missing one added, so that they match `module`."""
    inner = module.state_dict()

    def fits(keys: Weights) -> int:
        return sum(key in inner and inner[key].shape == value.shape for key, value in keys.items())

    best: Weights = {}
    for anchor in sorted(inner)[:1]:
        for head in sorted({key.removesuffix(anchor) for key in found if key.endswith(anchor)}):
            renamed = {key.removeprefix(head): value for key, value in found.items() if key.startswith(head)}
            best = max(best, renamed, key=fits)
        for key in found:
            if anchor.endswith(f".{key}"):
                lacked = anchor.removesuffix(key)
                best = max(best, {lacked + name: value for name, value in found.items()}, key=fits)
    return {prefix + key: value for key, value in best.items()}


def _converted(module: nn.Module, found: Weights, prefix: str) -> Weights:
    """`found` as converted by transformers for its own `module`: keys of older files are renamed."""
    if not hasattr(module, "from_pretrained"):
        return {}
    logging_of = require("transformers", "these weights", extra="models").utils.logging
    level, bars = logging_of.get_verbosity(), logging_of.is_progress_bar_enabled()
    logging_of.set_verbosity_error()
    logging_of.disable_progress_bar()
    try:
        made, info = module.from_pretrained(  # type: ignore[operator]
            None,
            config=module.config,
            state_dict=dict(found),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        logging_of.set_verbosity(level)
        if bars:
            logging_of.enable_progress_bar()
    absent = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    return {prefix + key: value for key, value in made.state_dict().items() if key not in absent}


def _read(source: str | Path, path: Path) -> Weights:
    if path.suffix == ".safetensors":
        read: Any = require("safetensors.torch", "reading safetensors", extra="train").load_file
    else:
        read = functools.partial(torch.load, map_location="cpu", weights_only=True)
    try:
        _check_stored(path)
        found = read(path)
    except Exception as error:  # both raise many types for bytes that are not such a file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"`weights` {source} cannot be read as safetensors or a torch state dict: {reason}") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise ValueError(f"`weights` {source} holds no state dict: it has no named tensors.")
    return tensors


def _check_stored(path: Path) -> None:
    """Raise ValueError for a compressed zip file: it could fill the memory, and torch stores tensors uncompressed."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                raise ValueError("it is compressed, and torch saves state dicts uncompressed")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _name(model: nn.Module) -> str:
    return str(getattr(model, "name", type(model).__name__))
