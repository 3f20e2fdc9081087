"""Error bars of a study with two sources of chance: which test prompts there are, and the seeds of the runs."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

DRAWS = 2000


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class Values(NamedTuple):
    """A measure that is a sum over a sum, of one method: `sums_SP.sum() / counts_SP.sum()`, S seeds and P prompts.

    A mean over prompts has counts of 1; one per token, tokens; one over some of the prompts, 0 for the others.
    """

    sums_SP: np.ndarray
    counts_SP: np.ndarray

    @property
    def value(self) -> float:
        return float(self.sums_SP.sum() / self.counts_SP.sum())

    def seeds(self, rows: list[int]) -> Values:
        return Values(self.sums_SP[rows], self.counts_SP[rows])


def difference(values: Values, reference: Values, level: float = 0.95, draws: int = DRAWS) -> Interval:
    """`values.value - reference.value` with its confidence interval, both paired by prompt and by seed.

    Prompts and seeds are resampled together, the same ones for both methods. Of S seeds S - 1 are drawn, which makes the
    bootstrap's variance that of a mean of S rather than (S - 1)/S of it (Rao and Wu, 1988). Few seeds also make that
    variance itself uncertain: the interval is the estimate -+ Student's quantile times its standard error, with
    Satterthwaite's degrees of freedom of the two sources. Of one seed the interval knows the prompts alone.
    """
    return _interval([(values, 1.0), (reference, -1.0)], level, draws)


def mean(values: Values, level: float = 0.95, draws: int = DRAWS) -> Interval:
    """`values.value` with its confidence interval."""
    return _interval([(values, 1.0)], level, draws)


def _interval(parts: list[tuple[Values, float]], level: float, draws: int) -> Interval:
    shapes = {values.sums_SP.shape for values, _ in parts} | {values.counts_SP.shape for values, _ in parts}
    if len(shapes) != 1:
        raise ValueError(f"paired values have the same seeds and prompts, got shapes [seeds, prompts] {sorted(shapes)}")
    seeds, prompts = shapes.pop()
    seeds_DS, prompts_DP = _weights(seeds, max(seeds - 1, 1), draws), _weights(prompts, prompts, draws)
    whole_S, whole_P = np.ones((1, seeds)), np.ones((1, prompts))
    estimate = sum(sign * values.value for values, sign in parts)
    variance = np.var(_resampled(parts, seeds_DS, prompts_DP))
    of_seeds, of_prompts = np.var(_resampled(parts, seeds_DS, whole_P)), np.var(_resampled(parts, whole_S, prompts_DP))
    if variance == 0:
        return Interval(estimate, estimate, estimate)
    freedom = variance**2 / (of_seeds**2 / max(seeds - 1, 1) + of_prompts**2 / max(prompts - 1, 1))
    margin = _quantile(round(max(float(freedom), 1.0), 1), level) * float(np.sqrt(variance))
    return Interval(estimate, estimate - margin, estimate + margin)


@lru_cache
def _quantile(freedom: float, level: float) -> float:
    """Of Student's distribution, for a two-sided interval. numpy has draws of it alone; so many give two digits."""
    return float(np.quantile(np.abs(np.random.default_rng(0).standard_t(freedom, 200_000)), level))


@lru_cache(maxsize=8)
def _weights(items: int, drawn: int, draws: int) -> np.ndarray:
    """How often each item is in a resample `[draws, items]`: the same resamples for every measure."""
    return np.random.default_rng((items, drawn)).multinomial(drawn, np.full(items, 1 / items), size=draws).astype(float)


def _resampled(parts: list[tuple[Values, float]], seeds_DS: np.ndarray, prompts_DP: np.ndarray) -> np.ndarray:
    """The statistic of each resample; those that hold none of what a measure is about are left out."""
    total_D = np.zeros(1)
    for values, sign in parts:
        sums_D, counts_D = ((seeds_DS * (prompts_DP @ table.T)).sum(1) for table in values)
        with np.errstate(invalid="ignore", divide="ignore"):
            total_D = total_D + sign * sums_D / counts_D
    return total_D[np.isfinite(total_D)]
