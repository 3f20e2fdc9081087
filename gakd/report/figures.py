"""Which charts a report has, and what each says in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from gakd.evaluation.plots import LABELS, NOT_DRAWN, PANELS, VALID, own_panels
from gakd.report.charts import Line, line_chart
from gakd.report.groups import Curve, Group, curve

GAME = ("adversarial", "discriminator")  # what the game's columns start with
_LAST = ("gradient_norm", "learning_rate", "tokens_per_second")


class Row(NamedTuple):
    """Of the table beside a chart."""

    label: str
    place: int
    first: str
    last: str
    lowest: str
    highest: str


class Chart(NamedTuple):
    title: str
    unit: str
    svg: Markup
    rows: list[Row]
    stride: int  # consecutive steps that a point is the mean of, at most
    guide: str  # what the dashed line stands for


def charts(groups: Sequence[Group], kind: str) -> list[Chart]:
    """`kind`: "validation", "training" or "game"; a chart for each column that any group has."""
    columns = dict.fromkeys(column for group in groups for run in group.drawn for column in run.metrics)
    chosen = [column for column in columns if _kind(column) == kind and column not in NOT_DRAWN]
    order = [name for panel in [*PANELS, *own_panels(columns)] for name in panel.series]
    chosen.sort(key=lambda column: (column in _LAST, order.index(column.removeprefix(VALID))))
    drawn = [_chart(groups, column, f"{kind}-{index}") for index, column in enumerate(chosen)]
    return [chart for chart in drawn if chart is not None]


def _kind(column: str) -> str:
    if column.startswith(VALID):
        return "validation"
    return "game" if column.startswith(GAME) else "training"


def _chart(groups: Sequence[Group], column: str, key: str) -> Chart | None:
    found = [(index, curve(group, column)) for index, group in enumerate(groups)]
    lines = [Line(index, one) for index, one in found if one is not None]
    if not lines:
        return None
    name = column.removeprefix(VALID)
    panel = next(panel for panel in [*PANELS, *own_panels([column])] if name in panel.series)
    title = panel.title if len(panel.series) == 1 else f"{panel.title}: {LABELS[name]}"
    rows = [_row(groups[line.place].label, line) for line in lines]
    ends = "; ".join(f"{row.label} from {row.first} to {row.last}" for row in rows)
    alt = f"{title}{f' in {panel.unit}' if panel.unit else ''} over optimizer steps: {ends}."
    stride = max(line.curve.stride for line in lines)
    svg = Markup(line_chart(panel, lines, column.startswith(VALID), key, alt))
    return Chart(title, panel.unit, svg, rows, stride, "" if panel.line is None else panel.line[1])


def _row(label: str, line: Line) -> Row:
    one: Curve = line.curve
    numbers = (one.mean[0], one.mean[-1], min(one.low), max(one.high))
    return Row(label, line.place, *(f"{value:.4g}" for value in numbers))
