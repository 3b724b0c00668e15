"""Attacks on real trainings: what was promised holds. `make chaos` runs the same ones with many more kills."""

import pytest
from helpers.chaos import ATTACKS, Lab
from helpers.chaos.attack import Attack, Outcome
from helpers.chaos.table import BEGIN, END, circumstances, lines, stored, stored_circumstances, write
from helpers.paths import ROOT

pytest.importorskip("nvidia.dali", reason="the loader needs DALI")


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("chaos"), kills=3)


@pytest.mark.parametrize(
    "one",
    [pytest.param(one, id=one.name, marks=pytest.mark.long if one.fast else pytest.mark.slow) for one in ATTACKS],
)
def test_the_promise_holds(one, lab):
    outcome = one(lab)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.problems, outcome.seen


def test_an_attack_that_fails_or_finds_a_problem_is_red():
    def failing(_lab):
        raise OSError("it broke\nin two lines")

    found = {
        "one": Attack("one", lambda _: Outcome("a | b", (), "bit-equal"), fast=True)(None),
        "two": Attack("two", failing, fast=True)(None),
        "three": Outcome("", ("not bit equal",), "bit-equal"),
    }
    table = lines(found)
    assert table["one"] == "| one | a \\| b; bit-equal | holds |"
    assert table["two"].endswith("| **BROKEN**: OSError: it broke in two lines |")
    assert table["three"] == "| three |  | **BROKEN**: not bit equal |"


def test_the_table_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    table = lines({"one": Outcome("seen"), "two": Outcome("", ("not told",))})
    write(page, table, circumstances(3))
    assert page.read_text().startswith(f"before\n{BEGIN}\n1 of 2 promises held")
    assert page.read_text().endswith(f"\n{END}\nafter\n")
    assert stored(page) == table
    assert stored_circumstances(page).endswith(", 3 kills for each attack by random kills")


def test_the_page_has_every_attack_and_no_red_cell():
    table = stored(ROOT / "docs" / "reliability.md")
    assert list(table) == [one.name for one in ATTACKS]
    assert not [line for line in table.values() if "**BROKEN**" in line]
