"""The generator of test cases covers all pairs."""

from itertools import combinations, product

from helpers.pairwise import pairwise, singles

OPTIONS = {"a": (1, 2, 3), "b": "xy", "c": ([], [0]), "d": range(4), "e": (None,)}


def test_every_pair_of_values_meets():
    rows = pairwise(OPTIONS)
    for first, second in combinations(OPTIONS, 2):
        for pair in product(OPTIONS[first], OPTIONS[second]):
            assert any((row[first], row[second]) == pair for row in rows)
    assert len(rows) <= 16, "the two longest options need 12"
    assert rows == pairwise(OPTIONS), "the same every time"


def test_singles_are_one_option_each():
    assert singles(OPTIONS) == [{}, {"a": 2}, {"a": 3}, {"b": "y"}, {"c": [0]}, {"d": 1}, {"d": 2}, {"d": 3}]
