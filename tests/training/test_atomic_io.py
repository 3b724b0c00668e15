"""A file is its old self or its new one, and nothing is left beside it, whatever happens while it is written."""

import os

import pytest

from fastmtl.utils.atomic_io import replacing, write_whole


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "facts.json"
    write_whole(path, "old")
    with pytest.raises(RuntimeError, match="the disk is full"):
        _half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _half(path):
    with replacing(path) as partial:
        partial.write_text("ne")
        raise RuntimeError("the disk is full")


def test_two_that_write_at_once_do_not_share_a_name(tmp_path):
    path = tmp_path / "facts.json"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # whose block ended last
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_name_and_the_usual_permissions(tmp_path):
    path = tmp_path / ("é" * 127)  # 254 of the 255 bytes that file systems have
    write_whole(path, "µm")
    assert path.read_text(encoding="utf-8") == "µm"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert os.stat(path).st_mode == os.stat(plain).st_mode
