"""Files that were found sound are not decoded again until they change; what was damaged is reported each time."""

import json
import os

import numpy as np
import pytest
from helpers.tiles import write_folder, write_image

from fastmtl.cli import main
from fastmtl.data import CheckedFiles, DamagedTilesError, read_tile_folder, usable_tiles
from fastmtl.data.checks import checked_files, damaged_tiles, mask_facts


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded from now on; each test begins as a new process would."""
    monkeypatch.setattr(mask_facts, "_known", {})
    names, read = [], damaged_tiles.read_encoded
    monkeypatch.setattr(damaged_tiles, "read_encoded", lambda path: (names.append(path.name), read(path))[1])
    return names


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "tiles", {"a": 2, "b": 1}, size=24)


def _check(folder, record, **options):
    """Check as a new process does; returns what is known of the masks."""
    mask_facts._known.clear()
    checked = CheckedFiles(record)
    usable_tiles(read_tile_folder(folder.root), checked=checked, **options)
    checked.save()
    return [mask_facts.recall(tile.mask) for tile in folder.tiles]


def test_sound_files_are_decoded_once_and_their_masks_stay_known(folder, tmp_path, decoded):
    before = _check(folder, tmp_path / "record.json")
    assert len(decoded) == 6
    decoded.clear()
    after = _check(folder, tmp_path / "record.json")
    assert decoded == []
    for one, other in zip(before, after, strict=True):
        for name in ("values", "pixels", "solid"):
            assert getattr(one, name).dtype == getattr(other, name).dtype
            assert np.array_equal(getattr(one, name), getattr(other, name))
        assert (one.channels, one.is_lossy, one.is_sample) == (other.channels, other.is_lossy, other.is_sample)


def test_a_file_that_changed_is_checked_again_also_where_its_size_and_time_did_not(folder, tmp_path, decoded):
    _check(folder, tmp_path / "record.json")
    image = folder.tiles[0].image
    state, content = image.stat(), bytearray(image.read_bytes())
    content[len(content) // 2] ^= 255
    image.write_bytes(content)
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    decoded.clear()
    with pytest.raises(DamagedTilesError, match=image.name):
        _check(folder, tmp_path / "record.json")
    assert decoded == [image.name]


def test_a_problem_is_reported_at_every_start(folder, tmp_path, decoded):
    damaged = folder.tiles[1].image
    damaged.write_bytes(b"no image")
    record = tmp_path / "record.json"
    for _ in range(2):
        decoded.clear()
        checked = CheckedFiles(record)
        mask_facts._known.clear()
        _, problems = usable_tiles(read_tile_folder(folder.root), "skip", max_damaged=1, checked=checked)
        checked.save()
        assert [problem.path for problem in problems] == [damaged]
    assert decoded == [damaged.name]


def test_sizes_are_compared_and_the_limit_of_pixels_counts_for_recorded_files(folder, tmp_path, decoded):
    record = tmp_path / "record.json"
    _check(folder, record)
    write_image(folder.tiles[0].mask, np.zeros((12, 12), np.uint8))
    with pytest.raises(DamagedTilesError, match="the mask is 12x12 pixels, its image 24x24"):
        _check(folder, record)
    checked = CheckedFiles(record, max_pixels=100)
    with pytest.raises(DamagedTilesError, match="more than 100"):
        usable_tiles(folder, max_pixels=100, checked=checked)


def _entries(change):
    """A record with other entries."""

    def spoil(record):
        found = json.loads(record.read_text())
        found["files"] = {key: change(entry) for key, entry in found["files"].items()}
        record.write_text(json.dumps(found))

    return spoil


def _with(place, value):
    return lambda entry: [*entry[:place], value, *entry[place + 1 :]] if len(entry) > place else entry


HOSTILE = {
    "cut": lambda record: record.write_bytes(record.read_bytes()[:200]),
    "no JSON": lambda record: record.write_bytes(b"\xff\xfe"),
    "a list": lambda record: record.write_text("[]"),
    "deep": lambda record: record.write_text("[" * 100_000),
    "another version": lambda record: record.write_text(record.read_text().replace('"format": 1', '"format": 2')),
    "no files": lambda record: record.write_text('{"files": []}'),
    "a folder": lambda record: (record.unlink(), record.mkdir()),
    "a pipe": lambda record: (record.unlink(), os.mkfifo(record)),
    "entries that are text": _entries(lambda entry: "x"),
    "empty entries": _entries(lambda entry: []),
    "sizes of text": _entries(_with(3, "24")),
    "negative sizes": _entries(_with(3, -24)),
    "bombs": _entries(_with(3, 10**12)),
    "other times": _entries(_with(1, 0)),
}
HOSTILE_MASKS = {
    "no contents": _entries(lambda entry: entry[:5]),
    "values that are no bytes": _entries(_with(5, [0, 300])),
    "values out of order": _entries(_with(5, [255, 0])),
    "as many values as fit": _entries(_with(5, list(range(600)))),
    "other counts": _entries(_with(6, [1, 2])),
    "huge counts": _entries(_with(6, [10**30, 0])),
    "fractions": _entries(_with(7, [0.5, 0.5])),
    "nothing": _entries(_with(7, None)),
    "many channels": _entries(_with(8, 10**9)),
    "no boolean": _entries(_with(9, "yes")),
}


@pytest.mark.parametrize("what", [*HOSTILE, *HOSTILE_MASKS])
def test_a_damaged_or_hostile_record_is_ignored(what, folder, tmp_path, decoded):
    record = tmp_path / "record.json"
    before = _check(folder, record)
    (HOSTILE | HOSTILE_MASKS)[what](record)
    decoded.clear()
    after = _check(folder, record)
    assert len(decoded) == (6 if what in HOSTILE else 3), "all files, or all masks"
    assert [one.values.tolist() for one in after] == [one.values.tolist() for one in before]


def test_a_record_stays_small_enough_to_be_read(folder, tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(checked_files, "_MOST_BYTES", 600)
    _check(folder, tmp_path / "record.json")
    assert 0 < len(json.loads((tmp_path / "record.json").read_text())["files"]) < 6


def test_runs_of_parts_of_the_data_share_a_record(tmp_path, decoded):
    record, one, other = tmp_path / "record.json", tmp_path / "one", tmp_path / "other"
    folders = [write_folder(place, {"a": 2}, size=24) for place in (one, other)]
    for folder in folders:
        _check(folder, record)
    decoded.clear()
    for folder in folders:
        _check(folder, record)
    assert decoded == []


OPTIONS = ["--epochs", "1", "--size", "32", "--batch-size", "2", "--precision", "float32"]
OPTIONS += ["--set", "model.base_channels=2"]


@pytest.mark.long
@pytest.mark.parametrize("shared", [False, True])
def test_a_restart_and_with_an_index_folder_another_run_decodes_nothing(shared, tmp_path, decoded):
    tiles, run = write_folder(tmp_path / "tiles", {"a": 6, "b": 4}, size=32).root, tmp_path / "run"
    more = ["--set", f"data.index_folder={tmp_path / 'index'}"] if shared else []
    command = ["train", "demo", "--data", str(tiles), *OPTIONS, *more]
    assert main([*command, "--out", str(run)]) == 0
    assert len(decoded) == 20
    (record,) = (tmp_path / "index").glob("*") if shared else [run / "checked_files.json"]
    assert record.is_file()
    assert (run / "checked_files.json").exists() != shared
    decoded.clear()
    mask_facts._known.clear()
    (run / "summary.json").unlink()
    assert main([*command, "--out", str(run)]) == 0
    assert decoded == []
    mask_facts._known.clear()
    assert main([*command, "--out", str(tmp_path / "second")]) == 0
    assert len(decoded) == (0 if shared else 20)
