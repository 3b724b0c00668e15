"""Checkpoints written beside the training: which are kept, which is read, and what a kill or damage leaves."""

import errno
import json
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from helpers.checkpoints import save_checkpoint
from helpers.runs import sealed

from fastmtl.training import checkpoint, checkpoint_store, disk_policy
from fastmtl.training.checkpoint_names import history
from fastmtl.training.checkpoint_store import CheckpointStore, damage, newest_sound
from fastmtl.training.disk_policy import DiskError, DiskPolicy
from fastmtl.training.errors import CheckpointError, DamagedCheckpoint


def _saved(folder, *saves, keep=2):
    """A store after these saves of (step, whether it is the best)."""
    store = CheckpointStore(folder, keep)
    for number, (step, best) in enumerate(saves):
        store.save({"x": torch.full((3,), float(number))}, step, best=best)
    store.wait()
    return store


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _x(path):
    return checkpoint.load(path)["x"][0].item()


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_last_n_steps_and_the_best_are_kept(tmp_path):
    _saved(tmp_path, (0, False), (4, True), (8, False), (12, False), (12, False), (16, False))
    assert _names(tmp_path) == ["step-00000004", "step-00000012-2", "step-00000016"]
    assert (_x(tmp_path / "best"), _x(tmp_path / "last")) == (1, 5)


def test_a_new_store_of_the_same_folder_knows_the_best(tmp_path):
    _saved(tmp_path, (4, True))
    _saved(tmp_path, (8, False), (12, False), (16, False))
    assert _names(tmp_path) == ["step-00000004", "step-00000012", "step-00000016"]
    assert _x(tmp_path / "best") == 0


def test_last_and_best_change_in_one_moment(tmp_path, monkeypatch):
    """The name of the complete checkpoint: before it both are the old ones, with it both are the new one."""
    _saved(tmp_path, (4, True))
    seen = []

    def stopped(folder, keep):
        seen.append((_x(folder / "last"), _x(folder / "best")))
        raise OSError(errno.EIO, "killed here")

    store = CheckpointStore(tmp_path)
    monkeypatch.setattr(checkpoint_store, "prune", stopped)
    store.save({"x": torch.full((3,), 7.0)}, 8, best=True)
    with pytest.raises(OSError, match="killed here"):
        store.wait()
    assert seen == [(7, 7)]


def test_what_is_saved_is_the_state_at_the_call(tmp_path, monkeypatch):
    """The training goes on while the thread writes, and the next save waits for it."""
    begun, write = threading.Event(), checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a, **k: (begun.wait(20), write(*a, **k)))
    store, x = CheckpointStore(tmp_path), torch.zeros(3)
    store.save({"x": x, "list": (numbers := [1])}, 1)
    x += 1
    numbers.append(2)
    assert not history(tmp_path), "it is not there before it is on the disk"
    begun.set()
    store.save({"x": x, "list": numbers}, 2)
    first = checkpoint.load(tmp_path / "step-00000001")
    assert (first["x"].tolist(), first["list"]) == ([0, 0, 0], [1])
    store.wait()
    assert _x(tmp_path / "last") == 1


def test_copies_use_the_same_memory_again(tmp_path):
    store = _saved(tmp_path, (1, False))
    before = store._buffers["x"] if "x" in store._buffers else store._buffers[".x"]
    store.save({"x": torch.ones(3)}, 2)
    store.wait()
    after = next(iter(store._buffers.values()))
    assert after.data_ptr() == before.data_ptr()
    store.save({"x": torch.ones(4, dtype=torch.int8)}, 3)
    store.wait()
    assert checkpoint.load(tmp_path / "last")["x"].dtype == torch.int8


def test_a_failed_save_is_told_once_and_leaves_the_one_before(tmp_path, monkeypatch):
    store = _saved(tmp_path, (4, True))

    def refuse(*_):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "sync", refuse)
        store.save({"x": torch.zeros(3)}, 8, best=True)
        with pytest.raises(CheckpointError, match=r"step-00000008 cannot be written .*continue with fastmtl train"):
            store.wait()
    store.save({"x": torch.ones(3)}, 12)
    store.wait()
    assert _names(tmp_path) == ["step-00000004", "step-00000012"]
    assert _x(tmp_path / "best") == 0, "the failed one is not the best"


def _full_above(most):
    """`checkpoint.write` on a disk that holds this many checkpoints."""
    write = checkpoint.write

    def limited(directory, tree, tensors, *, best):
        if len(history(directory.parent)) >= most:
            raise checkpoint.refused(directory, OSError(errno.ENOSPC, "full"), tensors)
        write(directory, tree, tensors, best=best)

    return limited


def test_a_full_disk_gives_up_what_the_next_checkpoint_replaces(tmp_path, monkeypatch):
    _saved(tmp_path, (4, True), (8, False), (12, False))
    monkeypatch.setattr(checkpoint, "write", _full_above(2 + 1))
    _saved(tmp_path, (16, False))
    assert _names(tmp_path) == ["step-00000004", "step-00000012", "step-00000016"]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_sound_checkpoint_and_the_best_make_no_room(tmp_path, monkeypatch, keep):
    _saved(tmp_path, (4, True), (8, False), (12, False), keep=keep)
    monkeypatch.setattr(checkpoint, "write", _full_above(0))
    with pytest.raises(CheckpointError, match=r"No space left on device: it needs 0.0 MB, and .* MB are free"):
        _saved(tmp_path, (16, False), keep=keep)
    assert _names(tmp_path) == ["step-00000004", "step-00000012"]


def test_no_room_is_made_while_the_newest_checkpoint_is_damaged(tmp_path, monkeypatch):
    _saved(tmp_path, (4, True), (8, False), (12, False))
    _flip(tmp_path / "step-00000012" / "tensors.safetensors")
    monkeypatch.setattr(checkpoint, "write", _full_above(3))
    with pytest.raises(CheckpointError):
        _saved(tmp_path, (16, False))
    assert _names(tmp_path) == ["step-00000004", "step-00000008", "step-00000012"]


def test_a_failed_save_is_no_error_where_the_training_continues(tmp_path, monkeypatch):
    noted = []
    store = CheckpointStore(tmp_path, disk=DiskPolicy("continue", noted.append))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write", _full_above(0))
        for step in (4, 8):
            store.save({"x": torch.zeros(3)}, step, best=step == 8)
        store.wait()
    assert (store.missed_best, store.failed is None) == (True, False)
    assert len(noted) == 1, "told once"
    assert "step-00000004 cannot be written (No space left on device: it needs 0.0 MB" in noted[0]
    store.save({"x": torch.zeros(3)}, 12)
    store.wait()
    assert noted[1:] == ["note: the disk can be written again; the newest checkpoint is saved."]
    assert store.failed is None
    assert store.disk.notices()[0].startswith("2 writes failed during the training, first: checkpoint ")


def test_other_errors_stop_also_where_the_training_continues(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, disk=DiskPolicy("continue"))
    monkeypatch.setattr(checkpoint, "sync", lambda _: (_ for _ in ()).throw(PermissionError(13, "not yours")))
    store.save({"x": torch.zeros(3)}, 4)
    with pytest.raises(CheckpointError, match="not yours"):
        store.wait()


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [_flip, lambda path: path.unlink()], ids=["flipped", "missing"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, file, damage):
    _saved(tmp_path, (4, True), (8, False))
    damage(tmp_path / "step-00000008" / file)
    path, state, note = newest_sound(tmp_path)
    assert (path.name, state["x"][0].item()) == ("step-00000004", 0)
    assert "step-00000008" in note
    assert "continues from step-00000004" in note
    assert "\n" not in note
    assert _names(tmp_path) == ["step-00000004", "step-00000008.damaged"]
    _saved(tmp_path, (6, False))
    assert newest_sound(tmp_path)[0].name == "step-00000006", "not the damaged one, although its step is higher"


def test_nothing_is_renamed_where_nothing_is_whole(tmp_path):
    _saved(tmp_path, (4, True), (8, False))
    for name in _names(tmp_path):
        _flip(tmp_path / name / "tensors.safetensors")
    with pytest.raises(DamagedCheckpoint, match=r"No earlier checkpoint is whole: remove .* to train from the start"):
        newest_sound(tmp_path)
    assert _names(tmp_path) == ["step-00000004", "step-00000008"]


def test_a_checkpoint_of_a_later_version_is_not_damaged(tmp_path):
    _saved(tmp_path, (4, True), (8, False))
    manifest = tmp_path / "step-00000008" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        newest_sound(tmp_path)
    assert _names(tmp_path) == ["step-00000004", "step-00000008"]


def test_a_best_checkpoint_of_a_later_version_is_no_damage_but_a_missing_one_is(tmp_path):
    _saved(tmp_path, (4, True), (8, False), (12, False))
    assert damage(tmp_path) == ""
    manifest = tmp_path / "step-00000004" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        damage(tmp_path)
    shutil.rmtree(tmp_path / "step-00000004")
    assert damage(tmp_path) == f"the best checkpoint {tmp_path / 'step-00000004'} is missing."


def test_records_whose_sync_failed_are_synced_with_the_next_checkpoint(tmp_path, monkeypatch):
    disk, record = DiskPolicy(), tmp_path / "metrics.jsonl"
    disk.append(record, "{}\n")
    with monkeypatch.context() as patched:
        patched.setattr(disk_policy, "sync", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "failing")))
        with pytest.raises(DiskError, match=r"metrics\.jsonl cannot be written \(failing\)"):
            disk.sync(disk.flush())
    assert disk.flush() == [record]
    assert disk.flush() == []


@pytest.mark.parametrize("name", ["../other", "/etc", "best", 3, ["step-00000004"]])
def test_a_manifest_names_a_checkpoint_beside_it_as_the_best(tmp_path, name):
    _saved(tmp_path, (4, True))
    manifest = tmp_path / "step-00000004" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"best": name}))
    with pytest.raises(CheckpointError, match="as the best checkpoint"):
        checkpoint.load(tmp_path / "best")


def test_a_checkpoint_whose_manifest_names_no_checkpoint_gives_way_to_the_one_before(tmp_path):
    _saved(tmp_path, (4, True), (8, False))
    manifest = tmp_path / "step-00000008" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"best": "../other"}))
    path, _, note = newest_sound(tmp_path)
    assert path.name == "step-00000004"
    assert "names '../other' as the best checkpoint. Training continues from step-00000004" in note


def test_folders_of_earlier_versions_are_read_and_give_way(tmp_path):
    save_checkpoint(tmp_path / "best", {"x": torch.full((3,), 5.0)})
    save_checkpoint(tmp_path / "last.old", {"x": torch.full((3,), 6.0)})  # a crash between two renames
    assert (_x(tmp_path / "best"), _x(tmp_path / "last")) == (5, 6)
    assert newest_sound(tmp_path)[1]["x"][0] == 6
    store = _saved(tmp_path, (4, False))
    assert (_x(tmp_path / "best"), _x(tmp_path / "last")) == (5, 0)
    for step in (8, 12):
        store.save({"x": torch.zeros(3)}, step, best=step == 8)
    store.wait()
    assert _names(tmp_path) == ["step-00000008", "step-00000012"]


def test_a_checkpoint_is_never_replaced(tmp_path):
    save_checkpoint(tmp_path / "step-00000001", {"x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "step-00000001", {"x": torch.ones(1)})
    assert _x(tmp_path / "step-00000001") == 0
    assert _names(tmp_path) == ["step-00000001"]


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    _saved(tmp_path, (1, False))
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000002.tmp")
    sealed(tmp_path / "step-00000002.tmp", {"state.json": b"{}"})
    _saved(tmp_path, (3, False))
    assert _names(tmp_path) == ["step-00000001", "step-00000003"]


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from fastmtl.training.checkpoint_names import history
from fastmtl.training.checkpoint_store import CheckpointStore, newest_sound
from fastmtl.training import checkpoint

folder = Path(sys.argv[1])
for delay in (0.03, 0.11, 0.17):
    saving = os.fork()
    if saving == 0:
        store, i = CheckpointStore(folder), (history(folder) or [(0,)])[-1][0]
        while True:
            i += 1
            store.save({"i": i, "x": torch.full((100_000,), float(i))}, i, best=i % 3 == 0)
    while len(history(folder)) < 2 and os.waitpid(saving, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(saving, signal.SIGKILL)
    os.waitpid(saving, 0)
    path, state, damaged = newest_sound(folder)
    assert not damaged and bool((state["x"] == state["i"]).all())
    if state["i"] >= 3:
        assert checkpoint.load(folder / "best")["i"] == state["i"] // 3 * 3
"""


@pytest.mark.long
def test_kill_while_saving_leaves_whole_checkpoints(tmp_path):
    """SIGKILL at different moments of a loop of saves: the newest and the best always load, and belong together."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True, timeout=120)
