"""Intervals against synthetic studies whose truth is known: they cover it as often as they say, and no oftener by much."""

from __future__ import annotations

import numpy as np
import pytest

from gakd.study.bootstrap import Values, difference, mean

PROMPTS, STUDIES = 60, 300


def study(random: np.random.Generator, seeds: int, of_seeds: float, of_prompts: float, noise: float, effect: float):
    """Two methods on shared prompts and seeds: what both share is large, and must not widen the difference."""
    shared = 10 * random.standard_normal((1, PROMPTS)) + 5 * random.standard_normal((seeds, 1))
    own = of_seeds * random.standard_normal((seeds, 1)) + of_prompts * random.standard_normal((1, PROMPTS))
    tables = [shared + noise * random.standard_normal((seeds, PROMPTS)) for _ in range(2)]
    ones = np.ones((seeds, PROMPTS))
    return Values(tables[0] + own + effect, ones), Values(tables[1], ones)


@pytest.mark.parametrize(
    ("of_seeds", "of_prompts", "noise"), [(1.0, 0.3, 0.3), (0.1, 2.0, 0.3), (0.5, 2.0, 1.0), (0.0, 0.0, 1.0)]
)
def test_intervals_cover_the_true_difference(of_seeds, of_prompts, noise):
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(STUDIES):
        interval = difference(*study(random, 5, of_seeds, of_prompts, noise, effect=2.0), draws=400)
        covered += interval.low <= 2.0 <= interval.high
    # The standard error of so many studies at 95% is 1.3%. What prompts and seeds do together is counted twice, so noise alone
    # makes intervals wide, never narrow.
    assert covered / STUDIES > 0.91
    if noise < max(of_seeds, of_prompts) / 2:
        assert covered / STUDIES < 0.99


def test_pairing_takes_out_what_both_share():
    values, reference = study(np.random.default_rng(1), 5, 0.1, 0.2, 0.1, effect=1.0)
    paired = difference(values, reference)
    alone = mean(values)
    assert paired.estimate == pytest.approx(1.0, abs=0.2)
    assert paired.excludes_zero
    assert alone.high - alone.low > 10 * (paired.high - paired.low)


def test_seeds_that_disagree_widen_the_interval():
    """Prompts without end tell nothing of seeds: with two that differ by 2, the mean is known to sqrt(2)/sqrt(2) = 1."""
    table = np.concatenate([np.full((1, 4000), 1.0), np.full((1, 4000), 3.0)])
    zeros = np.zeros_like(table)
    interval = difference(Values(table, np.ones_like(table)), Values(zeros, np.ones_like(table)), draws=4000)
    # Student's 97.5% quantile of one degree of freedom is 12.706.
    assert interval.estimate == 2.0
    assert (interval.high - interval.low) / 2 == pytest.approx(12.706, rel=0.1)


def test_a_ratio_is_the_ratio_of_sums():
    sums, counts = np.array([[2.0, 30.0]]), np.array([[1.0, 10.0]])
    assert Values(sums, counts).value == 32 / 11
    bucket = Values(np.array([[4.0, 0.0, 8.0]]), np.array([[1.0, 0.0, 1.0]]))
    assert mean(bucket).estimate == 6.0
    assert np.isfinite([mean(bucket).low, mean(bucket).high]).all()


def test_what_does_not_vary_has_no_interval():
    same = Values(np.full((3, 7), 2.0), np.ones((3, 7)))
    assert difference(same, same) == (0.0, 0.0, 0.0)
    assert not difference(same, same).excludes_zero


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match=r"got shapes \[seeds, prompts\] \[\(2, 4\), \(3, 4\)\]"):
        difference(Values(np.ones((2, 4)), np.ones((2, 4))), Values(np.ones((3, 4)), np.ones((3, 4))))
