"""Checkpoints survive crashes and damage, and never execute anything."""

import json
import os
import pickle

import pytest
import torch
from helpers.checkpoints import save_checkpoint

from fastmtl.training import checkpoint
from fastmtl.training.checkpoint_store import CheckpointStore


def _state():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "mixed": {
            "tuple": (1, None, [True, "x"]),
            7: torch.arange(3, dtype=torch.uint8),
            "empty": {},
            "inf": float("inf"),
        },
    }


def _equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    return a == b and type(a) is type(b)


def test_round_trip_keeps_every_type(tmp_path):
    state = _state()
    save_checkpoint(tmp_path / "last", state)
    assert _equal(dict(state, model=dict(state["model"])), checkpoint.load(tmp_path / "last"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_tied_and_strided_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    store = CheckpointStore(tmp_path)
    store.save({"a": base, "b": base, "t": base.t()}, 1)
    store.wait()
    loaded = checkpoint.load(tmp_path / "last")
    assert torch.equal(loaded["b"], base)
    assert torch.equal(loaded["t"], base.t())


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_flipped_bit_is_found(tmp_path, name):
    save_checkpoint(tmp_path / "c", _state())
    path = tmp_path / "c" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=name):
        checkpoint.load(tmp_path / "c")


def test_other_format_and_missing(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.load(tmp_path / "nothing")
    save_checkpoint(tmp_path / "c", {"x": 1})
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(checkpoint.CheckpointError, match="format 99"):
        checkpoint.load(tmp_path / "c")


def test_unknown_values_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"optimizer\.bad"):
        save_checkpoint(tmp_path / "c", {"optimizer": {"bad": object()}})
    assert not (tmp_path / "c").exists()


def test_a_pickle_in_disguise_is_refused(tmp_path):
    """No load path reaches pickle: a payload under any of the names is an error, and does not run."""
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    save_checkpoint(tmp_path / "c", {"x": torch.ones(1)})
    for name in ("tensors.safetensors", "state.json", "manifest.json"):
        content = (tmp_path / "c" / name).read_bytes()
        (tmp_path / "c" / name).write_bytes(pickle.dumps(Payload()))
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load(tmp_path / "c")
        (tmp_path / "c" / name).write_bytes(content)
    assert not marker.exists()
