"""Intervals against synthetic studies whose truth is known: they cover it as often as they say, and no oftener by much."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gakd.study.intervals import Values, difference, mean

PROMPTS, STUDIES = 60, 600


def study(random: np.random.Generator, seeds: int, of_seeds: float, of_prompts: float, noise: float, effect: float):
    """Two methods on shared prompts and seeds: what both share is large, and must not widen the difference."""
    shared = 10 * random.standard_normal((1, PROMPTS)) + 5 * random.standard_normal((seeds, 1))
    own = of_seeds * random.standard_normal((seeds, 1)) + of_prompts * random.standard_normal((1, PROMPTS))
    tables = [shared + noise * random.standard_normal((seeds, PROMPTS)) for _ in range(2)]
    ones = np.ones((seeds, PROMPTS))
    return Values(tables[0] + own + effect, ones), Values(tables[1], ones)


@pytest.mark.parametrize("seeds", [pytest.param(3, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_prompts", "noise"),
    [
        pytest.param(1.0, 0.3, 0.3, marks=pytest.mark.slow),
        pytest.param(0.1, 2.0, 0.3, marks=pytest.mark.slow),
        (0.5, 2.0, 1.0),
        pytest.param(0.1, 1.0, 3.0, marks=pytest.mark.slow),
        (0.0, 0.0, 1.0),
    ],
)
def test_intervals_cover_the_true_difference(seeds, of_seeds, of_prompts, noise):
    """As often as they say, and hardly oftener: an interval that is too wide hides what a study has found."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(STUDIES):
        interval = difference(*study(random, seeds, of_seeds, of_prompts, noise, effect=2.0))
        covered += interval.low <= 2.0 <= interval.high
    # The standard error of so many studies at 95% is 0.9%. Where seeds and prompts do nothing, that their parts are at least 0
    # makes it wider.
    assert 0.92 < covered / STUDIES < (0.99 if of_seeds else 0.999)


@pytest.mark.slow
def test_a_ratio_covers_the_true_one():
    """Sums over counts, with texts of unlike length, and a third of the prompts outside of what is measured."""
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(STUDIES):
        counts = random.integers(1, 40, (5, PROMPTS)) * (np.arange(PROMPTS) % 3 > 0)
        own = 0.2 * random.standard_normal((5, 1)) + random.standard_normal((1, PROMPTS))
        interval = mean(Values(counts * (3.0 + own + 0.5 * random.standard_normal((5, PROMPTS))), counts.astype(float)))
        covered += interval.low <= 3.0 <= interval.high
    assert 0.92 < covered / STUDIES < 0.99


def test_the_variance_is_that_of_a_two_way_table():
    """Against the components one by one: of seeds, of prompts, and of both, each counted once."""
    table = np.random.default_rng(3).standard_normal((4, 7)) + np.arange(4)[:, None] + 2 * np.arange(7)
    whole = sum(table[s, p] for s in range(4) for p in range(7)) / 28
    rows, columns = [sum(table[s]) / 7 for s in range(4)], [sum(table[:, p]) / 4 for p in range(7)]
    both = sum((table[s, p] - rows[s] - columns[p] + whole) ** 2 for s in range(4) for p in range(7)) / 18
    of_seeds = (7 * sum((row - whole) ** 2 for row in rows) / 3 - both) / 7
    of_prompts = (4 * sum((column - whole) ** 2 for column in columns) / 6 - both) / 4
    variance = of_seeds / 4 + of_prompts / 7 + both / 28
    interval = mean(Values(table, np.ones_like(table)))
    assert interval.estimate == pytest.approx(whole)
    freedom = variance**2 / (
        (of_seeds / 4 + both / 28) ** 2 / 3 + (of_prompts / 7 + both / 28) ** 2 / 6 + (both / 28) ** 2 / 18
    )
    assert (interval.high - interval.low) / 2 == pytest.approx(quantile(freedom) * variance**0.5)


# Student's two-sided quantiles as printed in tables, by degrees of freedom: at 95% and at 99%.
TABLE = {
    1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604), 5: (2.571, 4.032), 10: (2.228, 3.169),
    30: (2.042, 2.750), 120: (1.980, 2.617),
}  # fmt: skip


@pytest.mark.parametrize("freedom", TABLE)
def test_of_one_seed_the_quantile_is_that_of_the_table(freedom):
    """n prompts of one seed have n - 1 degrees of freedom, and nothing else that varies."""
    table = np.random.default_rng(freedom).standard_normal((1, freedom + 1))
    error = table.std(ddof=1) / (freedom + 1) ** 0.5
    for level, expected in zip((0.95, 0.99), TABLE[freedom], strict=True):
        interval = mean(Values(table, np.ones_like(table)), level)
        assert (interval.high - interval.low) / 2 / error == pytest.approx(expected, abs=6e-4)


def quantile(freedom: float, level: float = 0.95) -> float:
    """Of Student's distribution, found on its density: no table has fractions of a degree of freedom."""
    points = np.linspace(0, 60, 600_001)
    density = np.exp(
        math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - (freedom + 1) / 2 * np.log1p(points**2 / freedom)
    ) / math.sqrt(freedom * math.pi)
    inside = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1]) * (points[1] - points[0])])  # on both sides
    return float(np.interp(level, inside, points))


def test_one_seed_knows_its_prompts_alone():
    table = np.random.default_rng(4).standard_normal((1, 50))
    interval = mean(Values(table, np.ones_like(table)))
    assert (interval.high - interval.low) / 2 == pytest.approx(2.0096 * table.std(ddof=1) / 50**0.5, rel=1e-4)


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
    interval = difference(Values(table, np.ones_like(table)), Values(zeros, np.ones_like(table)))
    # Student's 97.5% quantile of one degree of freedom is 12.706.
    assert interval.estimate == 2.0
    assert (interval.high - interval.low) / 2 == pytest.approx(12.7062)


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
    corpus, other = (Values(np.full((1, 224), share), np.ones((1, 224))) for share in (0.731, 0.7))
    assert not difference(corpus, other).known
    assert not difference(corpus, other).excludes_zero


def test_unpaired_values_are_refused():
    with pytest.raises(ValueError, match=r"got shapes \[seeds, prompts\] \[\(2, 4\), \(3, 4\)\]"):
        difference(Values(np.ones((2, 4)), np.ones((2, 4))), Values(np.ones((3, 4)), np.ones((3, 4))))
