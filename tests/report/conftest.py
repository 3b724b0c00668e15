"""The run that the tests of the page share."""

import pytest
from helpers.handmade_run import write_run


@pytest.fixture
def run(tmp_path):
    """A run folder made by hand, with everything in it."""
    return write_run(tmp_path / "run")
