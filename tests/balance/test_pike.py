"""The update of sampling shares by PiKE against the paper's lines, and what the floor promises."""

import numpy as np
import pytest

from fastmtl.balance.pike import pike_shares

SHARES = [0.5, 0.3, 0.2]


def _algorithm_1(w, squares, variances, zeta_1, zeta_2, b):
    """Lines 6 and 7 of Algorithm 1 of arXiv:2502.06244, as they are written."""
    w, squares, variances = (np.array(one, np.float64) for one in (w, squares, variances))
    w = w * np.exp(zeta_1 * squares - zeta_2 / (2 * b) * variances)
    return w / np.abs(w).sum()


def test_an_update_is_that_of_the_paper():
    rng, found, wanted = np.random.default_rng(0), SHARES, SHARES
    for _ in range(20):
        squares, variances = rng.exponential(1, 3), rng.exponential(30, 3)
        found = pike_shares(found, squares, variances, zeta=(0.3, 0.7), batch=16)
        wanted = _algorithm_1(wanted, squares, variances, 0.3, 0.7, 16)
        assert found == pytest.approx(wanted, rel=1e-12)
    assert sum(found) == pytest.approx(1)


def test_a_larger_gradient_raises_a_share_and_noise_lowers_it():
    equal = [1 / 3] * 3
    a, b, c = pike_shares(equal, [2.0, 1.0, 1.0], [0.0, 0.0, 5.0], zeta=(1.0, 1.0), batch=4)
    assert a > 1 / 3 > b > c
    assert pike_shares(equal, [2.0, 1.0, 1.0], [0.0, 0.0, 5.0], zeta=(0.0, 0.0), batch=4) == pytest.approx(equal)


def test_no_share_falls_below_the_floor_and_a_set_returns_from_it():
    shares = SHARES
    for _ in range(50):
        shares = pike_shares(shares, [9.0, 0.0, 0.0], [0.0] * 3, zeta=(1.0, 1.0), batch=4, floor=0.05)
    assert shares == pytest.approx([0.9, 0.05, 0.05])
    assert min(shares) >= 0.05
    assert pike_shares(shares, [0.0] * 3, [0.0] * 3, zeta=(1.0, 1.0), batch=4, floor=0.05) == pytest.approx(shares)
    shares = pike_shares(shares, [0.0, 9.0, 0.0], [0.0] * 3, zeta=(1.0, 1.0), batch=4, floor=0.05)
    assert shares[1] > 0.8
    assert pike_shares(SHARES, [9.0, 0.0, 0.0], [0.0] * 3, zeta=(1.0, 1.0), batch=4, floor=1 / 3) == pytest.approx(
        [1 / 3] * 3
    )
    for seed in range(100):
        rng = np.random.default_rng(seed)
        squares, variances = rng.exponential(5, 6), rng.exponential(50, 6)
        found = pike_shares([1 / 6] * 6, squares, variances, zeta=(1.0, 1.0), batch=8, floor=0.1)
        plain = pike_shares([1 / 6] * 6, squares, variances, zeta=(1.0, 1.0), batch=8)
        assert min(found) >= 0.1
        assert sum(found) == pytest.approx(1)
        above = [(one, other) for one, other in zip(found, plain, strict=True) if one > 0.1]
        assert [one / above[0][0] for one, _ in above] == pytest.approx([other / above[0][1] for _, other in above])


def test_very_large_gradients_keep_shares_finite():
    shares = pike_shares(SHARES, [1e6, 1.0, 0.0], [0.0, 1e9, 0.0], zeta=(1.0, 1.0), batch=4, floor=0.01)
    assert shares == pytest.approx([0.98, 0.01, 0.01])
