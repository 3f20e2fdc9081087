"""Several evaluation sets at once: which they are, and ROUGE-L of each, of their average and of the prompts with long answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, compress
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from gakd.data import DataConfig, Example, Split
from gakd.data.load import encoder_of, load_source
from gakd.errors import InputError
from gakd.evaluation.evaluation import Evaluation

_LABELLED = re.compile(r"([\w.-]+)=(.*)")


class Score(NamedTuple):
    """ROUGE-L in percent, for each seed."""

    by_seed: list[float]

    @property
    def mean(self) -> float:
        return fmean(self.by_seed)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        return stdev(self.by_seed) if len(self.by_seed) > 1 else None

    def as_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "by_seed": self.by_seed}


class SuiteScores(NamedTuple):
    """One checkpoint's row."""

    sets: dict[str, Score]
    average: Score  # of the sets, each counted once whatever its size
    long: Score | None  # over the prompts of all sets whose answers are long; None where there are none


def parse_suite(text: str) -> dict[str, str]:
    """`dolly,own=rows.jsonl` -> `{"dolly": "dolly", "own": "rows.jsonl"}`: name of each set -> what `load_rows` takes.

    A file, folder or hub id without a name of its own is called by its last part. InputError where a part is empty, or a name
    or a source comes twice.
    """
    sources: list[tuple[str, str]] = []
    for part in text.split(","):
        labelled = _LABELLED.fullmatch(part.strip())
        source = (labelled[2] if labelled else part).strip()
        if not source:
            raise InputError(
                f"an empty name in the suite {text!r}: give names, files or name=file with commas between, such as "
                f"dolly,self-inst,own=rows.jsonl"
            )
        own = re.sub(r"\.jsonl?$", "", Path(source).name) or source
        sources.append((labelled[1] if labelled else own, source))
    for part in zip(*sources, strict=True):
        name, times = Counter(part).most_common(1)[0]
        if times > 1:
            raise InputError(
                f"{name} comes {times} times in the suite {text!r}, and each set counts once: give every set one name and "
                f"every name one set, own=rows.jsonl"
            )
    return dict(sources)


def load_suite(
    sources: Mapping[str, str],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    split: Split = "test",
    max_examples: int | None = None,
) -> dict[str, list[Example]]:
    """The first `max_examples` of each set, tokenized as `config` says; a file belongs to the split whole.

    DataError as in `load_rows` and `encode`: before anything is generated, whichever set is at fault.
    """
    sets: dict[str, list[Example]] = {}
    config = replace(config, train_split=None)  # names a split of the training set's source alone
    encoder = encoder_of(config, tokenizer)
    for name, source in sources.items():
        summary = load_source(config, encoder, source, split, whole=True)
        sets[name] = list(summary.examples[:max_examples])
    return sets


def is_long(example: Example, words: int) -> bool:
    """Whether every reference has at least so many words between white space: no short text answers the prompt as well."""
    return min(len(reference.split()) for reference in example.row.responses) >= words


def suite_scores(
    evaluations: Mapping[str, Evaluation], sets: Mapping[str, Sequence[Example]], long_words: int
) -> SuiteScores:
    """From the evaluations of one checkpoint on every set, with the same seeds."""
    scores = {name: Score(evaluations[name].by_seed["rouge_l"]) for name in sets}
    average = Score([fmean(of_seed) for of_seed in zip(*(score.by_seed for score in scores.values()), strict=True)])
    chosen = [is_long(example, long_words) for examples in sets.values() for example in examples]
    if not any(chosen):
        return SuiteScores(scores, average, None)
    by_seed = zip(*(evaluations[name].rouge_l_by_prompt for name in sets), strict=True)  # of each set, of each prompt
    long = [fmean(compress(chain.from_iterable(of_sets), chosen)) for of_sets in by_seed]
    return SuiteScores(scores, average, Score(long))
