"""What a study found: every measure of every method, as arrays of seeds and prompts, and their differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from gakd.study.intervals import Interval, Values, difference, mean
from gakd.study.scoring import PromptValues
from gakd.study.text_measures import BUCKETS

Better = Literal["higher", "lower", "nearer 1", "nearer 0.5", "as the teacher"]


class Measure(NamedTuple):
    """How a measure is named and read."""

    name: str
    title: str
    unit: str
    better: Better
    decimals: int


MEASURES = (
    Measure("rouge_l", "ROUGE-L", "%", "higher", 2),
    Measure("sequence_kl", "KL(student‖teacher) of whole texts", "nats / text", "lower", 1),
    Measure("own_reverse_kl", "KL(student‖teacher), own text", "nats / token", "lower", 3),
    Measure("own_forward_kl", "KL(teacher‖student), own text", "nats / token", "lower", 3),
    Measure("reverse_kl", "KL(student‖teacher), references", "nats / token", "lower", 3),
    Measure("forward_kl", "KL(teacher‖student), references", "nats / token", "lower", 3),
    Measure("cross_entropy", "cross entropy, references", "nats / token", "lower", 3),
    Measure("teacher_log_likelihood", "teacher's log-likelihood of own text", "nats / token", "as the teacher", 3),
    Measure("own_entropy", "entropy of own text", "nats / token", "as the teacher", 3),
    Measure("two_sample", "told apart from the teacher's text", "share", "nearer 0.5", 3),
    Measure("distinct_2", "distinct-2", "share", "as the teacher", 3),
    Measure("repetition", "repeated 4-grams", "share", "as the teacher", 3),
    Measure("length_ratio", "length over the reference's", "ratio", "nearer 1", 3),
    Measure("finished", "finished", "share", "as the teacher", 3),
)
ROUGE_BY_BUCKET = tuple(Measure(f"rouge_l/{bucket}", f"ROUGE-L, {bucket}", "%", "higher", 2) for bucket in BUCKETS)
KL_BY_BUCKET = tuple(
    Measure(f"own_reverse_kl/{bucket}", f"own KL(s‖t), {bucket}", "nats / token", "lower", 3) for bucket in BUCKETS
)
ALL = (*MEASURES, *ROUGE_BY_BUCKET, *KL_BY_BUCKET)


class Entry(NamedTuple):
    """A row of the study: a method with its runs, or a model that is only measured."""

    name: str
    label: str
    scores: Mapping[int, PromptValues]  # seed -> what that run's student measured
    learning_rate: float | None = None
    seconds: float | None = None  # mean wall time of a run
    megabytes: float | None = None  # mean peak memory of a run

    @property
    def seeds(self) -> list[int]:
        return sorted(self.scores)

    def values(self, measure: str, seeds: Sequence[int]) -> Values:
        """Of the runs of these seeds."""
        parts = [[self.scores[seed][measure][part] for seed in seeds] for part in ("sums", "counts")]
        return Values(*map(np.asarray, parts))

    def interval(self, measure: str) -> Interval:
        return mean(self.values(measure, self.seeds))


class Results(NamedTuple):
    """All of it; `reference` is the method that the others are compared with, `models` start and teacher.

    `controls` name, for methods that differ from the reference in more than one thing, the method that they differ from in one.
    """

    entries: tuple[Entry, ...]
    models: tuple[Entry, ...]
    reference: str
    controls: Mapping[str, str] = {}

    def measured(self, measures: Sequence[Measure]) -> list[Measure]:
        """Those that every run has: of texts that are all short, none is about long ones."""
        runs = [scores for entry in (*self.entries, *self.models) for scores in entry.scores.values()]
        return [measure for measure in measures if all(measure.name in scores for scores in runs)]

    @property
    def compared(self) -> list[Entry]:
        """Every method but the one they are compared with."""
        return [entry for entry in self.entries if entry.name != self.reference]

    @property
    def controlled(self) -> list[tuple[Entry, Entry]]:
        """Methods with a control of their own, and that control, where both have run."""
        named = {entry.name: entry for entry in self.entries}
        pairs = [(entry, named.get(self.controls.get(entry.name, ""))) for entry in self.entries]
        return [(entry, control) for entry, control in pairs if control is not None]

    def difference(self, entry: Entry, measure: str, reference: Entry | None = None) -> Interval:
        """To the reference, or to another method, over the seeds that both have run."""
        if reference is None:
            (reference,) = (other for other in self.entries if other.name == self.reference)
        shared = sorted({*entry.seeds} & {*reference.seeds})
        return difference(entry.values(measure, shared), reference.values(measure, shared))


def as_json(results: Results) -> dict[str, object]:
    """Every number of the tables: estimates with the ends of their intervals."""
    entries = {}
    measures = results.measured(ALL)
    controls = {own.name: other for own, other in results.controlled}
    for entry in (*results.entries, *results.models):
        entries[entry.name] = {
            "label": entry.label, "seeds": entry.seeds, "learning_rate": entry.learning_rate,
            "seconds": entry.seconds, "megabytes": entry.megabytes,
            "measures": {measure.name: _numbers(entry.interval(measure.name)) for measure in measures},
        }  # fmt: skip
        if entry in results.compared:
            found = {measure.name: _numbers(results.difference(entry, measure.name)) for measure in measures}
            entries[entry.name]["differences"] = found
        if control := controls.get(entry.name):
            found = {measure.name: _numbers(results.difference(entry, measure.name, control)) for measure in measures}
            entries[entry.name] |= {"control": control.name, "to_control": found}
    return {"reference": results.reference, "entries": entries}


def _numbers(interval: Interval) -> dict[str, float]:
    """To six digits, more than any table shows."""
    return {name: float(f"{value:.6g}") for name, value in interval._asdict().items()}


def read_scores(path: Path) -> PromptValues:
    """A run's measures, with the one that follows from two others.

    Entropy: the teacher's cross entropy on a student's text is that text's entropy plus KL(student‖teacher).
    """
    scores: PromptValues = json.loads(path.read_text())
    if {"teacher_log_likelihood", "own_reverse_kl"} <= scores.keys():
        likelihood, divergence = scores["teacher_log_likelihood"], scores["own_reverse_kl"]
        sums = [-one - other for one, other in zip(likelihood["sums"], divergence["sums"], strict=True)]
        scores["own_entropy"] = {"sums": sums, "counts": likelihood["counts"]}
    return scores
