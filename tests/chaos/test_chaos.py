"""Attacks on real trainings: what was promised holds. `make chaos` runs the same ones with many more kills."""

import pytest
from helpers.chaos import ATTACKS, Lab
from helpers.chaos.attack import Attack, Outcome
from helpers.chaos.table import BEGIN, END, render, rows, write
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
    table = render(found, 3)
    assert "1 of 3 promises held" in table
    assert "| one | a \\| b; bit-equal | holds |" in table
    assert "**BROKEN**: OSError: it broke in two lines" in table
    assert "| three |  | **BROKEN**: not bit equal |" in table


def test_the_table_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(page, render({"one": Outcome("seen"), "two": Outcome("", ("not told",))}, 3))
    assert page.read_text().startswith(f"before\n{BEGIN}\n1 of 2 promises held")
    assert page.read_text().endswith(f"\n{END}\nafter\n")
    assert rows(page) == {"one": "holds", "two": "**BROKEN**: not told"}


def test_the_page_has_every_attack_and_no_red_cell():
    found = rows(ROOT / "docs" / "reliability.md")
    assert found.keys() == {one.name for one in ATTACKS}
    assert not [name for name, verdict in found.items() if verdict.startswith("**BROKEN**")]
