"""Responses of a model behind an OpenAI-compatible server to the prompts of a dataset, as JSONL that --dataset reads back.

--base-url http://localhost:8000/v1 --model Qwen3-8B --dataset dolly --output teacher-text/train.jsonl
Its use in a recipe: --dataset teacher-text --valid-dataset dolly --test-dataset dolly

Each response is on disk the moment it arrives; the same command asks for what is missing. See docs/black-box.md.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from gakd.cli import EndpointConfig, Split, start_tool
from gakd.errors import InputError


@dataclass
class Config:
    output: Path
    """JSONL file to write once all responses are there; an older one is replaced."""
    endpoint: EndpointConfig
    dataset: str = "dolly"
    """docstrings, dolly, self-inst, vicuna, sinst, uinst, a .jsonl file, a folder of train/valid/test.jsonl, or a hub id."""
    split: Split = "train"
    """Split of the dataset whose prompts are answered."""
    examples: int | None = None
    """Answer the first so many prompts; None for all."""
    cache: Path | None = None
    """File of the responses as they arrive; may be shared by runs. None: OUTPUT with the suffix .responses.jsonl."""
    drop_unfinished: bool = False
    """Leave out responses that were cut; kept, they are marked so and train without an end-of-text token."""
    skip_bad_rows: bool = False
    """Leave malformed rows out and report how many, instead of stopping at the first."""


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from gakd.data import load_rows
    from gakd.samplers import EndpointTeacher, response_records

    output = config.output.resolve()
    if output.exists() and Path(config.dataset).resolve() in {output, output.parent}:
        raise InputError(f"{config.output} holds the prompts of --dataset {config.dataset}: give another --output")
    rows = load_rows(config.dataset, config.split, config.skip_bad_rows, may_be_prompt=True)[: config.examples]
    teacher = EndpointTeacher(config.endpoint, config.cache or config.output.with_suffix(".responses.jsonl"))
    responses = teacher.responses(rows)
    records = response_records(rows, responses, config.drop_unfinished)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    scratch = config.output.with_name(f".{config.output.name}")
    with scratch.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, config.output)
    unfinished = sum(not response.finished for own in responses for response in own)
    print(f"{config.output}: {len(records)} rows for {len(rows)} prompts; {unfinished} responses were cut")


if __name__ == "__main__":
    start_tool(main, Config, __doc__)
