"""Error bars of a study with two sources of chance: which test prompts there are, and the seeds of the runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # scipy.stats has it as t.ppf, and takes seconds to import

ROUNDING = 1e-9  # of a measure: what varies by less does not vary


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Not where nothing varies: one seed of what is measured of a whole corpus."""
        return self.low < self.high

    @property
    def excludes_zero(self) -> bool:
        return self.known and (self.low > 0 or self.high < 0)


class Values(NamedTuple):
    """A measure that is a sum over a sum, of one method: `sums_SP.sum() / counts_SP.sum()`, S seeds and P prompts.

    A mean over prompts has counts of 1; one per token, tokens; one over some of the prompts, 0 for the others.
    """

    sums_SP: np.ndarray
    counts_SP: np.ndarray

    @property
    def value(self) -> float:
        return float(self.sums_SP.sum() / self.counts_SP.sum())

    @property
    def influence_SP(self) -> np.ndarray:
        """What each run on each prompt adds to `value`, times S P, less `value`: the measure's first-order expansion."""
        return (self.sums_SP - self.value * self.counts_SP) * self.counts_SP.size / self.counts_SP.sum()


def difference(values: Values, reference: Values, level: float = 0.95) -> Interval:
    """`values.value - reference.value` with its confidence interval, both paired by prompt and by seed.

    Chance has three parts: seeds, prompts, and what a run does on a prompt besides, as the drawing of a text. Of the mean squares
    of a two-way table (seeds, prompts, both), which count the last part once each, the variance of the mean is
    `(MS_seeds + MS_prompts - MS_both) / (S P)`; where a part comes out below 0, it is 0. Resampling seeds and prompts together
    would count the last part three times (Owen, The pigeonhole bootstrap, 2007), and most of a sampled text's ROUGE-L is that.
    The interval is the estimate -+ Student's quantile times the standard error, with Satterthwaite's degrees of freedom of the
    three mean squares. Of one seed it knows the prompts alone; of two it can be too narrow where seeds differ much.
    """
    return _interval(values.value - reference.value, values, reference, level)


def mean(values: Values, level: float = 0.95) -> Interval:
    """`values.value` with its confidence interval."""
    return _interval(values.value, values, None, level)


def _interval(estimate: float, values: Values, reference: Values | None, level: float) -> Interval:
    others = () if reference is None else (reference,)
    shapes = {table.shape for part in (values, *others) for table in part}
    if len(shapes) != 1:
        raise ValueError(f"paired values have the same seeds and prompts, got shapes [seeds, prompts] {sorted(shapes)}")
    table_SP = values.influence_SP
    if reference is not None:
        table_SP = table_SP - reference.influence_SP
    squares, freedoms = _mean_squares(table_SP)
    of_seeds, of_prompts, of_both = squares
    total = max(of_seeds + of_prompts - of_both, of_seeds, of_prompts)
    if total <= (ROUNDING * values.value) ** 2:
        return Interval(estimate, estimate, estimate)
    freedom = total**2 / sum(square**2 / freedom for square, freedom in zip(squares, freedoms, strict=True))
    margin = float(stdtrit(max(freedom, 1.0), (1 + level) / 2)) * (total / table_SP.size) ** 0.5
    return Interval(estimate, estimate - margin, estimate + margin)


def _mean_squares(table_SP: np.ndarray) -> tuple[tuple[float, float, float], tuple[int, int, int]]:
    """Of seeds, of prompts, and of both together; 0 where there is one of a kind. With the degrees of freedom of each."""
    seeds, prompts = table_SP.shape
    of_seed_S1, of_prompt_1P = table_SP.mean(1, keepdims=True), table_SP.mean(0, keepdims=True)
    whole = table_SP.mean()
    rest_SP = table_SP - of_seed_S1 - of_prompt_1P + whole
    freedoms = (max(seeds - 1, 1), max(prompts - 1, 1), max((seeds - 1) * (prompts - 1), 1))
    sums = (
        prompts * float(((of_seed_S1 - whole) ** 2).sum()), seeds * float(((of_prompt_1P - whole) ** 2).sum()),
        float((rest_SP**2).sum()),
    )  # fmt: skip
    of_seeds, of_prompts, of_both = (total / freedom for total, freedom in zip(sums, freedoms, strict=True))
    return (of_seeds, of_prompts, of_both), freedoms
