"""A small run that the tests of whole commands share."""

import pytest
from helpers.small_runs import command_of
from helpers.tiles import write_folder

from fastmtl.cli import main


@pytest.fixture(scope="session")
def tiles(tmp_path_factory):
    """Six tiles to train: three steps in an epoch."""
    root = tmp_path_factory.mktemp("data") / "tiles"
    write_folder(root, {"a": 6, "b": 4}, size=32)
    return root


@pytest.fixture(scope="session")
def whole(tiles, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(command_of(tiles, out)) == 0
    return out
