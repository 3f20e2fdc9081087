"""A data configuration to tokenized splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from gakd.data.prompts import Example, Template, encode
from gakd.data.rows import DataError
from gakd.data.sources import load_rows
from gakd.data.splits import Split


@dataclass
class DataConfig:
    """Which text, and how it is set."""

    dataset: str = "dolly"
    """docstrings, dolly, self-inst, vicuna, sinst, uinst, a .jsonl file, a folder of train/valid/test.jsonl, or a hub id."""
    valid_dataset: str | None = None
    """Where the validation split comes from, if from elsewhere."""
    test_dataset: str | None = None
    """Where the test split comes from, if from elsewhere."""
    template: Template = "chat"
    """The tokenizer's chat template (thinking off), or the paper's Alpaca-style text. [alpaca]"""
    max_length: int = 512
    """Tokens of prompt and response together; longer responses are cut. [512]"""
    max_prompt_length: int = 256
    """Tokens of a prompt; rows with longer ones are left out and counted. [256]"""
    skip_bad_rows: bool = False
    """Leave malformed rows out and report how many, instead of stopping at the first."""


class Data(NamedTuple):
    train: list[Example]
    valid: list[Example]
    test: list[Example]
    pad_token_id: int
    config: DataConfig | None = None  # what made it


def load_data(config: DataConfig, tokenizer: PreTrainedTokenizerBase, batch_size: int = 1) -> Data:
    """All three splits, and the id that pads their batches; DataError where training does not fill one batch."""
    train, valid, test = (load_split(config, tokenizer, split) for split in ("train", "valid", "test"))
    if len(train) < batch_size:
        raise DataError(
            f"{len(train)} training examples do not fill one batch of {batch_size}: give more data or a smaller --batch-size"
        )
    if not isinstance(tokenizer.pad_token_id, int):
        raise DataError("the tokenizer has no padding token: load it with gakd.models.load_tokenizer, or set pad_token")
    return Data(train, valid, test, tokenizer.pad_token_id, config)


def load_split(config: DataConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> list[Example]:
    """One split, tokenized; DataError as in `load_rows` and `encode`."""
    named = {"train": None, "valid": config.valid_dataset, "test": config.test_dataset}[split]
    # A file that is named for one split belongs to it whole.
    dataset = config.dataset if named is None else named
    rows = load_rows(dataset, split, config.skip_bad_rows, whole=named is not None)
    return encode(rows, tokenizer, config.template, config.max_length, config.max_prompt_length)


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` of the examples, evenly spaced: a file may be sorted, and its beginning then no fair sample."""
    count = min(count, len(examples))
    return [examples[index * len(examples) // count] for index in range(count)]
