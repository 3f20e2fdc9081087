"""Runs that differ in nothing but the seed, and their curves as means and bands."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from gakd.evaluation.evaluation import Evaluation
from gakd.evaluation.plots import Series
from gakd.report.read import RunData

# No result depends on these.
_FREE = {
    "run.output_dir", "run.resume", "run.keep_checkpoints", "run.save_every", "run.on_nonfinite", "run.log_to",
    "run.export_dtype", "run.push_to_hub",
}  # fmt: skip
_POINTS = 150  # of a curve; more would be closer than a screen can show


@dataclass(frozen=True)
class Group:
    label: str
    runs: list[RunData]
    names: list[str]  # of the runs

    @property
    def drawn(self) -> list[RunData]:
        """Runs of the curves: those that finished, where any did, since a mean over fewer and fewer seeds would jump."""
        return [run for run in self.runs if run.finished] or self.runs

    def scores(self, of: Callable[[RunData], Evaluation | None], measure: str) -> list[float]:
        """A measure of each run that has it."""
        found = [of(run) for run in self.runs]
        return [value for one in found if one is not None and (value := getattr(one, measure)) is not None]


class Curve(NamedTuple):
    """Mean, lowest and highest over seeds at each step; `stride` steps were averaged into one."""

    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int
    stride: int


def grouped(runs: Sequence[RunData]) -> list[Group]:
    """In the order of each group's first run."""
    found: dict[Any, list[RunData]] = {}
    for index, run in enumerate(runs):
        found.setdefault(_identity(run) or index, []).append(run)
    names = _names(runs)
    labels = [_label(members, [names[run.folder] for run in members]) for members in found.values()]
    taken = Counter(labels)
    groups = []
    for label, members in zip(labels, found.values(), strict=True):
        own = [names[run.folder] for run in members]
        groups.append(Group(label if taken[label] == 1 else ", ".join(own), members, own))
    return groups


def group_warnings(groups: Sequence[Group]) -> list[str]:
    """A line for each group whose bands are not what they seem."""
    found = []
    for group in groups:
        twice = sorted(str(seed) for seed, count in Counter(str(run.seed) for run in group.runs).items() if count > 1)
        if twice:
            found.append(
                f"{', '.join(group.names)}: same settings and same seed {', '.join(twice)}, so no measure of chance"
            )
        left_out = [name for name, run in zip(group.names, group.runs, strict=True) if run not in group.drawn]
        if left_out:
            found.append(f"{', '.join(left_out)}: not in the curves of {group.label}, which has runs that finished")
    return found


def curve(group: Group, column: str) -> Curve | None:
    """Over the steps that all the group's runs have; None where there is none."""
    each = [dict(zip(*run.metrics[column], strict=True)) for run in group.drawn if column in run.metrics]
    steps = sorted(set.intersection(*(set(one) for one in each))) if each else []
    if not steps:
        return None
    stride = -(-len(steps) // _POINTS)
    places = [steps[start : start + stride] for start in range(0, len(steps), stride)]
    values = [[fmean(one[step] for step in place) for one in each] for place in places]
    return Curve(
        [fmean(place) for place in places], [fmean(point) for point in values], [min(point) for point in values],
        [max(point) for point in values], len(each), stride,
    )  # fmt: skip


def settings(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Settings that differ between groups: name -> each group's value, None where it has no such setting."""
    firsts = [group.runs[0] for group in groups]
    rows = {"recipe": [run.recipe for run in firsts]}
    rows |= {
        name: [run.config.get(name) for run in firsts]
        for name in dict.fromkeys(name for run in firsts for name in run.config)
        if name not in _FREE | {"run.seed"}
    }
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def column_series(run: RunData, column: str) -> Series:
    return run.metrics.get(column, ([], []))


def _identity(run: RunData) -> str | None:
    """What runs of one group share; None for a run whose settings are not known."""
    if not run.config:
        return None
    kept = sorted((name, repr(value)) for name, value in run.config.items() if name not in _FREE | {"run.seed"})
    return repr((run.recipe or run.losses, kept))


def _names(runs: Sequence[RunData]) -> dict[Path, str]:
    """Folders without what they share."""
    folders = {run.folder: run.folder.resolve() for run in runs}
    shared = Path(os.path.commonpath([path.parent for path in folders.values()]))
    return {folder: path.relative_to(shared).as_posix() for folder, path in folders.items()}


def _label(runs: Sequence[RunData], names: Sequence[str]) -> str:
    """What the names of a group's runs begin with, without a word for the seed; else their recipe, else all names."""
    if len(names) == 1:
        return names[0]
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    start = "".join(letters[0] for letters in shared)
    return re.sub(r"[-_./ ]*(?:\b|_)(?:seed|s)?[-_=./ ]*\d*[-_./ ]*$", "", start) or runs[0].recipe or ", ".join(names)
