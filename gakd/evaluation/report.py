"""Evaluations and completions as tables for a terminal; nothing here computes a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from gakd.evaluation.evaluation import Evaluation
from gakd.evaluation.suite_results import SuiteResults
from gakd.evaluation.suites import Score

MAX_COMPLETION_CHARACTERS = 280
MAX_PROMPT_CHARACTERS = 180
_CAPTION = "↓ lower is better, ↑ higher is better"


class Metric(NamedTuple):
    field: str
    title: str
    short: str
    unit: str
    better: Literal["lower", "higher"] | None
    decimals: int

    @property
    def arrow(self) -> str:
        return {"lower": "↓", "higher": "↑", None: ""}[self.better]


METRICS = (
    Metric("cross_entropy", "cross-entropy", "CE", "nats", "lower", 3),
    Metric("forward_kl", "KL(teacher‖student)", "KL(t‖s)", "nats", "lower", 3),
    Metric("reverse_kl", "KL(student‖teacher)", "KL(s‖t)", "nats", "lower", 3),
    Metric("own_reverse_kl", "KL(student‖teacher), own text", "own KL(s‖t)", "nats", "lower", 3),
    Metric("rouge_l", "ROUGE-L", "ROUGE-L", "%", "higher", 2),
    Metric("exact_match", "exact match", "match", "%", "higher", 2),
    Metric("response_length", "response length", "length", "tokens", None, 1),
    Metric("finished", "finished", "finished", "share", "higher", 3),
)


def comparison_table(evaluations: Mapping[str, Evaluation], title: str | None = None) -> Table:
    """Metrics as rows, evaluations as columns; the change is the second's minus the first's.

    `{"before": ..., "after": ..., "teacher": ...}` is the usual call. Metrics that no evaluation has are left out; `±`
    is the standard deviation over seeds.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, caption=_CAPTION, caption_justify="left")
    table.add_column("metric", no_wrap=True)
    names = list(evaluations)
    for position, name in enumerate(names):
        table.add_column(Text(name), justify="right")
        if position == 1:
            table.add_column("change", justify="right")
    for metric in _present(evaluations):
        cells = [_cell(evaluation, metric) for evaluation in evaluations.values()]
        if len(names) > 1:
            cells.insert(2, _change(evaluations[names[0]], evaluations[names[1]], metric))
        table.add_row(Text(f"{metric.title} ({metric.unit}) {metric.arrow}".rstrip()), *cells)
    return table


def checkpoints_table(evaluations: Mapping[str, Evaluation], title: str | None = None) -> Table:
    """Evaluations as rows, metrics as columns: for more checkpoints than fit side by side. The best values are bold."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=_CAPTION, caption_justify="left")
    table.add_column("checkpoint", overflow="fold", min_width=8)
    metrics = _present(evaluations)
    for metric in metrics:
        header = Text(f"{metric.short}\n({metric.unit}) {metric.arrow}".rstrip())
        table.add_column(header, justify="right", no_wrap=True)
    for name, evaluation in evaluations.items():
        cells = [_cell(evaluation, metric, separator="\n") for metric in metrics]
        for cell, metric in zip(cells, metrics, strict=True):
            if len(evaluations) > 1 and _is_best(evaluation, evaluations, metric):
                cell.stylize("bold")
        table.add_row(Text(name), *cells)
    return table


def suite_table(results: SuiteResults, checkpoints: Sequence[str], title: str | None = None) -> Table:
    """Checkpoints as rows, ROUGE-L of each set, of their average and of the prompts with long answers as columns.

    `±` is the standard deviation over seeds. The best values are bold.
    """
    long_prompts, scores = sum(results.long_prompts().values()), results.scores()
    caption = (
        f"ROUGE-L in %, ↑ higher is better; (number of prompts). average: of the sets. long: prompts of all sets whose every "
        f"reference has {results.long_words} words or more."
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    table.add_column("checkpoint", overflow="fold", min_width=8)
    sets = [f"{name}\n({len(examples)})" for name, examples in results.sets.items()]
    for header in (*sets, "average", f"long\n({long_prompts})"):
        table.add_column(Text(header), justify="right", overflow="fold", min_width=6)
    rows = [[*scores[name].sets.values(), scores[name].average, scores[name].long] for name in checkpoints]
    best = [max((score.mean for score in column if score), default=None) for column in zip(*rows, strict=True)]
    for name, row in zip(checkpoints, rows, strict=True):
        cells = [_score_cell(score) for score in row]
        for cell, score, highest in zip(cells, row, best, strict=True):
            if len(rows) > 1 and score and score.mean == highest:
                cell.stylize("bold")
        table.add_row(Text(name), *cells)
    return table


def completions_table(prompts: Sequence[str], completions: Mapping[str, Sequence[str]]) -> Group:
    """For each prompt a table with one column a source: reference, teacher, student; long text is cut."""
    if wrong := {name: len(texts) for name, texts in completions.items() if len(texts) != len(prompts)}:
        raise ValueError(f"each source needs one text a prompt, got {wrong} for {len(prompts)} prompts")
    return Group(*(_completions(prompt, completions, index) for index, prompt in enumerate(prompts)))


def _completions(prompt: str, completions: Mapping[str, Sequence[str]], index: int) -> Table:
    title = Text(_cut(prompt, MAX_PROMPT_CHARACTERS), style="bold")
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS, expand=True)
    for name in completions:
        table.add_column(Text(name), ratio=1, overflow="fold")
    # Text, not str: a completion may hold square brackets, which rich would read as markup.
    table.add_row(*(Text(_cut(texts[index], MAX_COMPLETION_CHARACTERS) or "(empty)") for texts in completions.values()))
    return table


def _cut(text: str, length: int) -> str:
    """One paragraph of at most `length` characters, with an ellipsis where something is missing."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _present(evaluations: Mapping[str, Evaluation]) -> list[Metric]:
    if not evaluations:
        raise ValueError("a table needs at least one evaluation, got none")
    return [m for m in METRICS if any(getattr(evaluation, m.field) is not None for evaluation in evaluations.values())]


def _cell(evaluation: Evaluation, metric: Metric, separator: str = " ") -> Text:
    value = getattr(evaluation, metric.field)
    if value is None:
        return Text("–", style="dim")
    spread, decimals = evaluation.std.get(metric.field), metric.decimals
    return Text(rounded(value, decimals) + ("" if spread is None else f"{separator}±{spread:.{decimals}f}"))


def _score_cell(score: Score | None) -> Text:
    if score is None:
        return Text("–", style="dim")
    return Text(f"{score.mean:.2f}" + ("" if score.std is None else f"\n±{score.std:.2f}"))


def _change(before: Evaluation, after: Evaluation, metric: Metric) -> Text:
    first, second = getattr(before, metric.field), getattr(after, metric.field)
    if first is None or second is None:
        return Text("–", style="dim")
    shown = rounded(second - first, metric.decimals, sign="+")
    if metric.better is None or float(shown) == 0:
        return Text(shown)
    improved = (second < first) == (metric.better == "lower")
    return Text(f"{shown} {'better' if improved else 'worse'}", style="green" if improved else "red")


def rounded(value: float, decimals: int, sign: str = "") -> str:
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"  # adding 0 turns -0.0, as of a rounded KL, into 0.0


def _is_best(evaluation: Evaluation, evaluations: Mapping[str, Evaluation], metric: Metric) -> bool:
    values = [value for other in evaluations.values() if (value := getattr(other, metric.field)) is not None]
    if metric.better is None or not values:
        return False
    return getattr(evaluation, metric.field) == (min if metric.better == "lower" else max)(values)
