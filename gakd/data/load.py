"""A data configuration to tokenized splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from gakd.data.columns import parse_columns
from gakd.data.config import DataConfig
from gakd.data.counts import counts
from gakd.data.encoded import Examples, Reading, encoded_table, examples_mark
from gakd.data.examples import Encoder, Example
from gakd.data.marks import encoder_marks
from gakd.data.records import open_records
from gakd.data.rows import DataError
from gakd.data.splits import SPLITS, Split
from gakd.data.summary import UNANSWERED, Summary, cut_line, report_left_out, sides, summary_of
from gakd.machine import is_first_process


class Data(NamedTuple):
    train: Sequence[Example]
    valid: Sequence[Example]
    test: Sequence[Example]
    pad_token_id: int
    config: DataConfig | None = None  # what made it
    encoding: Mapping[str, str] = {}  # hashes of what made ids of the text: tokenizer, template, date
    counts: Mapping[str, Mapping[str, Any]] = {}  # of each split, as `gakd.data.counts` has them

    @property
    def marks(self) -> dict[str, str]:
        """What a resumed run must find again: hashes of the examples of each split, and of what made them."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: examples_mark(examples) for name, examples in splits.items()} | dict(self.encoding)


def load_data(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, batch_size: int = 1, prompts_alone: bool = False
) -> Data:
    """All three splits, and the id that pads their batches; DataError where training does not fill one batch.

    `prompts_alone`: training rows need no responses, since the recipe writes them; their examples hold the end of a turn.
    There may be no rows to validate on, which a run that validates refuses.
    """
    encoder = encoder_of(config, tokenizer, prompts_alone)
    found = {
        split: load_summary(
            config, encoder, split, answered=prompts_alone and split != "train", needed=split != "valid"
        )
        for split in SPLITS
    }
    if not isinstance(tokenizer.pad_token_id, int):
        raise DataError("the tokenizer has no padding token: load it with gakd.models.load_tokenizer, or set pad_token")
    train, valid, test = (found[split].examples for split in SPLITS)
    if len(train) < batch_size:
        raise DataError(
            f"{len(train)} training examples do not fill one batch of {batch_size}: give more data or a smaller --batch-size, "
            f"{len(train)} at most"
        )
    numbers = {split: counts(summary, config.max_length) for split, summary in found.items()}
    if is_first_process() and (line := cut_line(found["train"], "train", config.max_length)):
        print(line, flush=True)
    return Data(train, valid, test, tokenizer.pad_token_id, config, encoder_marks(encoder), numbers)


def load_split(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split, prompts_alone: bool = False
) -> Examples:
    """One split, tokenized; DataError as in `load_rows` and `Encoder`."""
    return load_summary(config, encoder_of(config, tokenizer, prompts_alone), split).examples


def load_summary(
    config: DataConfig, encoder: Encoder, split: Split, answered: bool = False, needed: bool = True
) -> Summary:
    """One split, with counts of its rows; warnings say what was left out. `answered` leaves out rows without a response.

    DataError where it is `needed` and has no rows.
    """
    named = {"train": None, "valid": config.valid_dataset, "test": config.test_dataset}[split]
    if named is None:
        return load_source(config, encoder, config.dataset, split, answered=answered, needed=needed)
    # A file that is named for one split belongs to it whole.
    return load_source(
        replace(config, train_split=None), encoder, named, split, whole=True, answered=answered, needed=needed
    )


def load_source(
    config: DataConfig, encoder: Encoder, dataset: str, split: Split, whole: bool = False, answered: bool = False,
    needed: bool = True,
) -> Summary:  # fmt: skip
    """The rows of a source that are of a split, or all (`whole`), as `encoder` makes them."""
    records = open_records(dataset, split, whole, config.train_split, config.max_rows)
    # What is measured is measured on the last turn: it alone has a prompt to answer and references.
    if split != "train" and encoder.train_on != "last":
        encoder = replace(encoder, train_on="last")
    table = encoded_table(records, encoder, Reading(parse_columns(config.columns), config.skip_bad_rows, whole))
    divided = records.divided and not whole
    summary = summary_of(table, sides(table, records), SPLITS.index(split) if divided else None, answered)
    report_left_out(summary, dataset, config.max_prompt_length)
    if summary.kept or not (needed or UNANSWERED in summary.left_out):
        return summary
    if UNANSWERED in summary.left_out:
        raise DataError(
            f"{dataset} has prompts alone, and the {split} split is what a student is judged by: give rows with responses as "
            f"--{split}-dataset, or have a model write them with `gakd generate`"
        )
    raise DataError(
        f"{dataset} has no rows for the split {split!r}: give a larger file, "
        + (f"a folder with {split}.jsonl, or --{split}-dataset" if split != "train" else "or a folder with train.jsonl")
    )


def encoder_of(config: DataConfig, tokenizer: PreTrainedTokenizerBase, prompts_alone: bool = False) -> Encoder:
    return Encoder(
        tokenizer, config.template, config.max_length, config.max_prompt_length, config.thinking, config.train_on, config.date,
        prompts_alone,
    )  # fmt: skip


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` of the examples, evenly spaced: a file may be sorted, and its beginning then no fair sample."""
    count = min(count, len(examples))
    return [examples[index * len(examples) // count] for index in range(count)]
