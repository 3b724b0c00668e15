"""A file is its old self or its new one, and nothing is left beside it, whatever happens while it is written."""

import errno
import io
import os

import pytest

from fastmtl.utils.atomic_io import append, replacing, truncate, write_whole


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


class Almost(io.FileIO):
    """A file on a disk that takes five more bytes."""

    left = 5

    def write(self, data):
        if not self.left:
            raise OSError(errno.ENOSPC, "full")
        written = super().write(bytes(data[: self.left]))
        self.left -= written
        return written


def test_a_line_that_does_not_fit_leaves_no_half_of_it(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append(path, "one\n")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdopen", lambda number, mode, **_: Almost(number, mode))
        with pytest.raises(OSError, match="full") as caught:
            append(path, "two and three\n")
    assert caught.value.filename == str(path)
    assert path.read_text() == "one\n"
    append(path, b"four\n")
    assert path.read_text() == "one\nfour\n"


def test_a_link_is_neither_appended_to_nor_cut(tmp_path):
    path = tmp_path / "mine"
    path.write_text("mine")
    (tmp_path / "link").symlink_to(path)
    for change in (lambda link: append(link, "x"), lambda link: truncate(link, 0)):
        with pytest.raises(OSError, match=r".*link"):
            change(tmp_path / "link")
    assert path.read_text() == "mine"
