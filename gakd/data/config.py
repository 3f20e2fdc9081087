"""The flags of the data, which import no torch: a command line is read before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Template = Literal["chat", "alpaca", "none"]
Thinking = Literal["auto", "on", "off"]
TrainOn = Literal["last", "all"]


@dataclass
class DataConfig:
    """Which text, and how it is set."""

    dataset: str = "dolly"
    """docstrings, dolly, self-inst, vicuna, sinst, uinst, a file, a folder, a glob, or a hub id: docs/data.md lists them."""
    train_split: str | None = None
    """Name of the split of a folder or a hub id that is trained on, if not train."""
    valid_dataset: str | None = None
    """Where the validation split comes from, if from elsewhere."""
    test_dataset: str | None = None
    """Where the test split comes from, if from elsewhere."""
    columns: str | None = None
    """Other names of keys: prompt=question,response=solution."""
    max_rows: int | None = None
    """Read the first so many rows of a source alone; a hub id's other rows are not downloaded."""
    template: Template = "chat"
    """The tokenizer's chat template, the paper's Alpaca-style text, or none: prompt and response as plain text. [alpaca]"""
    thinking: Thinking = "auto"
    """Thoughts (<think>, reasoning_content): auto, where a response has one; on or off, for all. off leaves them out."""
    train_on: TrainOn = "last"
    """The assistant's last turn, or all of its turns; those of weight 0 never."""
    date: str | None = None
    """The date that a template sets, such as 2026-11-30; None: of the day a run is begun, which it keeps."""
    max_length: int = 512
    """Tokens of prompt and response together; longer responses are cut. [512]"""
    max_prompt_length: int = 256
    """Tokens of a prompt; rows with longer ones are left out and counted. [256]"""
    skip_bad_rows: bool = False
    """Leave malformed rows out and report how many, instead of stopping at the first."""
