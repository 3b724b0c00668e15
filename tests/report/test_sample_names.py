"""The names given to `fastmtl reproduce --samples`."""

from __future__ import annotations

import pytest

from fastmtl.reproduce.samples import choose


def _row(*ids):
    return [{"id": name, "tasks": {}} for name in ids]


def test_a_whole_id_comes_before_the_end_of_another():
    assert choose([_row("a/x", "x", "a/y")], ["x", "y.png"]) == ["x", "a/y"]


def test_an_end_of_several_ids_is_refused():
    with pytest.raises(ValueError, match="'x' is the name of 2 images; write a/x or b/x"):
        choose([_row("a/x", "b/x")], ["x"])
