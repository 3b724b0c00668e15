"""Budgets of the tests of hostile files."""

import pytest
from helpers.budget import limits


@pytest.fixture(autouse=True)
def _limited():
    with limits(seconds=120, megabytes=2000):
        yield
