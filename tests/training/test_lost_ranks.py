"""A rank that dies, hangs, fails or differs ends the others in time, with a message that names it."""

from __future__ import annotations

import pytest
from helpers.lost_ranks import TIMEOUT, run

from fastmtl.distributed import is_of_communication

pytestmark = pytest.mark.long


@pytest.mark.parametrize("bad", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_is_named(tmp_path, bad):
    found = run(tmp_path, "killed", bad=bad)
    assert found.keys() == {0, 1, 2} - {bad}
    for seconds, message in found.values():
        assert seconds < 15
        assert message.startswith(f"LostRank: rank {bad} has ended")


def test_a_hanging_rank_is_named_with_where_it_is(tmp_path):
    found = run(tmp_path, "hangs")
    for rank in (0, 2):
        seconds, message = found[rank]
        assert TIMEOUT - 1 < seconds < TIMEOUT + 10
        assert message.startswith("LostRank: no answer for 4 s from rank 1 (in lost_ranks.py, line ")
        assert message.endswith("_misbehave); if it is only slow, raise training.rank_timeout.")
    assert found[1][1].startswith("LostRank: ")  # it wakes up and ends too


def test_what_gloo_says_of_a_frozen_rank_is_no_error_of_this_one():
    assert is_of_communication(RuntimeError("Application timeout caused pair closure"))
    assert not is_of_communication(RuntimeError("tile 7 cannot be read"))


@pytest.mark.slow
def test_the_error_of_a_rank_reaches_the_others(tmp_path):
    found = run(tmp_path, "fails")
    assert found[1][1].startswith("ValueError: tile 7 cannot be read")
    for rank in (0, 2):
        assert found[rank][1] == "LostRank: rank 1 has ended: tile 7 cannot be read."


@pytest.mark.slow
def test_a_rank_on_other_code_is_refused_by_all(tmp_path):
    found = run(tmp_path, "differs", bad=2)
    for rank in range(3):
        assert found[rank][1] == (
            "UnequalRanks: rank 2 differs from rank 0: torch 2.12 (rank 0: 2.13). Give all ranks the same code, recipe "
            "and data."
        )
