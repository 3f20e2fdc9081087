"""The report's tables as cells of text: scores, settings, runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from urllib.parse import quote

from gakd.evaluation.evaluation import Evaluation
from gakd.evaluation.report import METRICS, Metric, rounded
from gakd.report.groups import Group, column_series, settings
from gakd.report.read import RunData

_NONE = "–"


class Score(NamedTuple):
    value: str
    spread: str = ""  # lowest to highest over seeds
    change: str = ""  # from the first group
    verdict: str = ""  # of the change: better, worse, overlaps
    best: bool = False


class ScoreRow(NamedTuple):
    label: str
    place: int | None  # of its group; None for what is compared with
    note: str
    cells: list[Score]


def scores(groups: Sequence[Group]) -> tuple[list[Metric], list[ScoreRow]]:
    """Columns and rows: teachers, students before training, then each group after it."""
    sources: list[Callable[[RunData], Evaluation | None]] = [_teacher, _before, _after]
    shown = [m for m in METRICS if any(group.scores(of, m.field) for of in sources for group in groups)]
    rows = [*_fixed("teacher", groups, shown, _teacher), *_fixed("before training", groups, shown, _before)]
    each = [[group.scores(_after, metric.field) for metric in shown] for group in groups]
    for index, group in enumerate(groups):
        if not (count := len(group.scores(_after, "cross_entropy"))):
            continue
        cells = [
            _after_cell(metric, each[index][column], each[0][column] if index else [], [row[column] for row in each])
            for column, metric in enumerate(shown)
        ]
        rows.append(ScoreRow(group.label, index, f"after training, {count} run{'s' * (count > 1)}", cells))
    return shown, rows


def setting_rows(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Settings that differ between groups, with their values as text."""
    return [(name, [_text(value) for value in values]) for name, values in settings(groups).items()]


class RunRow(NamedTuple):
    name: str
    place: int
    seed: str
    status: str
    steps: str
    tokens: str
    read: str
    padding: str
    pace: str
    wall: str
    card: str  # where it is, from the page; empty where there is none


def run_rows(groups: Sequence[Group], beside: Path) -> list[RunRow]:
    """`beside`: the folder of the page, from which links lead."""
    return [
        _run_row(name, index, run, beside)
        for index, group in enumerate(groups)
        for name, run in zip(group.names, group.runs, strict=True)
    ]


def duration(seconds: float) -> str:
    """3723.4 -> 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _teacher(run: RunData) -> Evaluation | None:
    return run.teacher


def _before(run: RunData) -> Evaluation | None:
    return run.before


def _after(run: RunData) -> Evaluation | None:
    return run.after


def _fixed(
    label: str, groups: Sequence[Group], shown: Sequence[Metric], of: Callable[[RunData], Evaluation | None]
) -> list[ScoreRow]:
    """Rows of what training does not change: one for all groups that have the same numbers."""
    found: list[tuple[list[str], list[str]]] = []
    for group in groups:
        cells = [_shown(_mean(group.scores(of, metric.field)), metric) for metric in shown]
        if set(cells) == {_NONE}:
            continue
        # A run without a teacher measures less of the same student.
        same = next(
            (
                row
                for row, _ in found
                if all(_NONE in pair or len({*pair}) == 1 for pair in zip(row, cells, strict=True))
            ),
            None,
        )
        if same is None:
            found.append((cells, [group.label]))
            continue
        same[:] = [new if old == _NONE else old for old, new in zip(same, cells, strict=True)]
        next(labels for row, labels in found if row is same).append(group.label)
    notes = ["" if len(found) == 1 else f"of {', '.join(labels)}" for _, labels in found]
    return [
        ScoreRow(label, None, note, [Score(cell) for cell in row]) for (row, _), note in zip(found, notes, strict=True)
    ]


def _after_cell(metric: Metric, own: list[float], first: list[float], everyone: list[list[float]]) -> Score:
    """`own`, `first` and `everyone`: a measure of this group's runs, of the first group's, and of each group's."""
    if not own:
        return Score(_NONE)
    spread = f"{_shown(min(own), metric)} to {_shown(max(own), metric)}" if len(own) > 1 else ""
    change, verdict = _change(metric, own, first) if first else ("", "")
    # By what is shown: a lead in a digit that nobody sees is none.
    shown = _shown(fmean(own), metric)
    means = [_shown(fmean(values), metric) for values in everyone if values]
    ideal = {"lower": min, "higher": max, None: None}[metric.better]
    best = ideal is not None and len(set(means)) > 1 and shown == ideal(means, key=float)
    return Score(shown, spread, change, verdict, best)


def _change(metric: Metric, own: list[float], first: list[float]) -> tuple[str, str]:
    """The difference of means, and what it is worth; of ranges over several seeds that overlap: nothing sure."""
    change = rounded(fmean(own) - fmean(first), metric.decimals, sign="+")
    if float(change) == 0:
        return "same", ""
    if metric.better is None:
        return change, ""
    if min(len(own), len(first)) > 1 and min(own) <= max(first) and min(first) <= max(own):
        return change, "overlaps"
    return change, "better" if (fmean(own) < fmean(first)) == (metric.better == "lower") else "worse"


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _shown(value: float | None, metric: Metric) -> str:
    return _NONE if value is None else rounded(value, metric.decimals)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def objective_rows(groups: Sequence[Group]) -> list[tuple[int, str, str]]:
    """Place, label and formula of each group that has kept one: of its first run, since its runs have the same settings."""
    formulas = [next((run.objective for run in group.runs if run.objective), None) for group in groups]
    return [
        (index, group.label, formula)
        for index, (group, formula) in enumerate(zip(groups, formulas, strict=True))
        if formula is not None
    ]


def _run_row(name: str, index: int, run: RunData, beside: Path) -> RunRow:
    tokens, padding = column_series(run, "tokens")[1], column_series(run, "padding")[1]
    read = column_series(run, "tokens_read")[1]
    pace = column_series(run, "tokens_per_second")[1]
    of = "" if run.planned_steps is None else f" of {run.planned_steps}"
    return RunRow(
        name, index, _text(run.seed), "finished" if run.finished else "unfinished", f"{run.step}{of}",
        f"{sum(tokens):,.0f}" if tokens else "–", f"{sum(read):,.0f}" if read else "–",
        f"{100 * fmean(padding):.1f} %" if padding else "–",
        f"{pace[-1]:,.0f}" if pace else "–", "–" if run.wall_seconds is None else duration(run.wall_seconds),
        "" if run.card is None else quote(Path(os.path.relpath(run.card.resolve(), beside.resolve())).as_posix()),
    )  # fmt: skip
