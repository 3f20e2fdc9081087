"""A study's numbers as Markdown, and the short of it as a table for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from gakd.study.intervals import Interval
from gakd.study.results import KL_BY_BUCKET, MEASURES, ROUGE_BY_BUCKET, Measure, Results

_SHORT = ("rouge_l", "sequence_kl", "own_reverse_kl", "two_sample")
_ARROWS = {"higher": "↑", "lower": "↓", "nearer 1": "→1", "nearer 0.5": "→0.5", "as the teacher": ""}


def report(results: Results, tried: dict[str, dict[float, float]], settings: str) -> str:
    """All tables; `tried` has the validation ROUGE-L of each learning rate of each method."""
    reference = next(entry.label for entry in results.entries if entry.name == results.reference)
    intervals = (
        "± and [ ] are 95% intervals over test prompts and seeds together, of a single seed over prompts alone, of distinct-2, "
        "which is of all texts at once, over seeds alone; of two seeds they can be too narrow. **Bold** ones exclude 0. Each is "
        "for itself: of twenty that are chance alone, one excludes 0."
    )
    buckets = [results.measured(part) for part in (ROUGE_BY_BUCKET, KL_BY_BUCKET)]
    return (
        "\n\n".join(
            [
                "# Study",
                settings,
                intervals,
                f"## Differences to {reference}, paired by prompt and seed",
                *_in_parts(MEASURES, lambda part: _differences(results, part)),
                f"## By length of the reference: differences to {reference}",
                _bucket_sizes(results),
                *(_differences(results, part) for part in buckets),
                *_controls(results),
                "## Every measure",
                *_in_parts(MEASURES, lambda part: _values(results, part)),
                "## By length of the reference",
                *(_values(results, part) for part in buckets),
                "## Learning rates, by validation ROUGE-L",
                _learning_rates(results, tried),
                "## Cost of a run",
                _costs(results),
            ]
        )
        + "\n"
    )


def summary(results: Results) -> Table:
    """The headline measures: value, and difference to the reference."""
    table = Table(box=box.SIMPLE_HEAD, caption=f"Δ to {results.reference}, 95% intervals", caption_justify="left")
    table.add_column("method", no_wrap=True)
    measures = [measure for measure in MEASURES if measure.name in _SHORT]
    for measure in measures:
        table.add_column(Text(f"{measure.name}\n{_ARROWS[measure.better]}"), justify="right", no_wrap=True)
        table.add_column(Text("Δ [95%]"), justify="right", no_wrap=True)
    for entry in (*results.models, *results.entries):
        cells: list[Text] = []
        for measure in measures:
            cells.append(Text(f"{entry.interval(measure.name).estimate:.{measure.decimals}f}"))
            found = results.difference(entry, measure.name) if entry in results.compared else None
            style = "bold" if found is not None and found.excludes_zero else "dim"
            cells.append(Text("" if found is None else _range(found, measure.decimals), style=style))
        table.add_row(Text(entry.label), *cells)
    return table


def _in_parts(measures: Sequence[Measure], table: Callable[[Sequence[Measure]], str]) -> list[str]:
    """Tables of a width that can be read."""
    return [table(measures[start : start + 5]) for start in range(0, len(measures), 5)]


def _differences(results: Results, measures: Sequence[Measure]) -> str:
    rows = [
        [
            entry.label, str(len(entry.seeds)),
            *(marked(results.difference(entry, measure.name), measure.decimals) for measure in measures),
        ]
        for entry in results.compared
    ]  # fmt: skip
    return markdown(["method", "seeds", *map(heading, measures)], rows)


def _bucket_sizes(results: Results) -> str:
    entry = results.entries[0]
    sizes = [
        f"{measure.name.rpartition('/')[2]} {int(entry.values(measure.name, entry.seeds[:1]).counts_SP.sum())}"
        for measure in results.measured(ROUGE_BY_BUCKET)
    ]
    return f"Prompts: {', '.join(sizes)}."


def _controls(results: Results) -> list[str]:
    """Of methods that differ from the reference in more than one thing: what one thing does."""
    measures = results.measured([*(measure for measure in MEASURES if measure.name in _SHORT), *ROUGE_BY_BUCKET[-1:]])
    rows = [
        [
            entry.label, control.label,
            *(marked(results.difference(entry, measure.name, control), measure.decimals) for measure in measures),
        ]
        for entry, control in results.controlled
    ]  # fmt: skip
    if not rows:
        return []
    return [
        "## Differences to a method that differs in one thing",
        markdown(["method", "against", *map(heading, measures)], rows),
    ]


def _values(results: Results, measures: Sequence[Measure]) -> str:
    rows = [
        [entry.label, *(plus_minus(entry.interval(measure.name), measure.decimals) for measure in measures)]
        for entry in (*results.models, *results.entries)
    ]
    return markdown(["method", *map(heading, measures)], rows)


def _learning_rates(results: Results, tried: dict[str, dict[float, float]]) -> str:
    rates = sorted({rate for own in tried.values() for rate in own})
    rows = []
    for entry in results.entries:
        own = tried.get(entry.name, {})  # what is not there took the rate of the method that it varies
        cells = [f"{own[rate]:.2f}" if rate in own else "" for rate in rates]
        bold = [
            f"**{cell}**" if cell and rate == entry.learning_rate else cell
            for rate, cell in zip(rates, cells, strict=True)
        ]
        note = "at the edge" if own and entry.learning_rate in (rates[0], rates[-1]) else ""
        rows.append([entry.label, *bold, f"{entry.learning_rate:g}", note])
    return markdown(["method", *(f"{rate:g}" for rate in rates), "taken", ""], rows)


def _costs(results: Results) -> str:
    rows = [
        [entry.label, str(len(entry.seeds)), _number(entry.seconds, 1), _number(entry.megabytes, 0)]
        for entry in results.entries
    ]
    return markdown(["method", "seeds", "seconds", "peak memory, MB above imports"], rows)


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def heading(measure: Measure) -> str:
    """What a measure is, its unit, and which way is better."""
    return f"{measure.title} ({measure.unit}) {_ARROWS[measure.better]}".rstrip()


def plus_minus(interval: Interval, decimals: int) -> str:
    """The estimate and half the interval's width, where it is known."""
    if not interval.known:
        return f"{interval.estimate:.{decimals}f}"
    return f"{interval.estimate:.{decimals}f} ± {(interval.high - interval.low) / 2:.{decimals}f}"


def _range(interval: Interval, decimals: int) -> str:
    if not interval.known:
        return f"{interval.estimate:+.{decimals}f}"
    low, high = (f"{end:+.{decimals}f}" for end in (interval.low, interval.high))
    return f"{interval.estimate:+.{decimals}f} [{low}, {high}]"


def marked(interval: Interval, decimals: int) -> str:
    """`+0.57 [+0.03, +1.10]`, bold where the interval excludes 0."""
    return f"**{_range(interval, decimals)}**" if interval.excludes_zero else _range(interval, decimals)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is of names, the others of numbers."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
