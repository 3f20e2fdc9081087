"""How the games of adversarial runs went: the health of each discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from gakd.adversary.watch import GameWatch
from gakd.report.groups import Group, column_series

_RECENT = 50  # steps that "at the end" is a mean of


class Health(NamedTuple):
    """Of one run; None where the run has no such column."""

    name: str
    place: int  # of its group
    steps: int
    accuracy: float | None  # means over the last steps
    margin: float | None
    penalty: float | None
    always_right: float  # share of steps with accuracy 1
    guessing: float  # share of steps with accuracy 0.5
    lost: bool
    verdict: str


def healths(groups: Sequence[Group]) -> list[Health]:
    """Of each run that has a game."""
    return [
        _health(
            name, index, [column_series(run, f"discriminator_{what}") for what in ("accuracy", "margin", "penalty")]
        )
        for index, group in enumerate(groups)
        for name, run in zip(group.names, group.runs, strict=True)
        if "discriminator_accuracy" in run.metrics
    ]


def _health(name: str, index: int, series: Sequence[tuple[list[float], list[float]]]) -> Health:
    (steps, accuracies), (_, margins), (_, penalties) = series
    lost, verdict = verdict_of(steps, accuracies)
    ends = [fmean(values[-_RECENT:]) if values else None for values in (accuracies, margins, penalties)]
    shares = [sum(value == pinned for value in accuracies) / len(accuracies) for pinned in (1.0, 0.5)]
    return Health(name, index, len(steps), ends[0], ends[1], ends[2], shares[0], shares[1], lost, verdict)


def verdict_of(steps: Sequence[float], accuracies: Sequence[float]) -> tuple[bool, str]:
    """Whether the game was lost by the rule that a run warns by, and a sentence about it."""
    watch = GameWatch()
    said = [(step, words) for step, value in zip(steps, accuracies, strict=True) if (words := watch.observe(value))]
    if said:
        more = "" if len(said) == 1 else f" ({len(said)} such spells in all, the last at step {said[-1][0]:.0f})"
        return True, f"Lost. At step {said[0][0]:.0f}: {said[0][1]}{more}."
    if len(steps) < watch.patience:
        return False, f"Too short to judge: {len(steps)} steps of the game, and the rule needs {watch.patience}."
    return False, f"Alive: accuracy was never at 1 or at 0.5 for {watch.patience} steps on end."
