"""Responses of a model to the prompts of a dataset, as JSONL that --dataset reads back.

Teacher text for sequence-level distillation: --model Qwen3-8B --dataset dolly --output teacher-text/train.jsonl
Its use in a recipe: --dataset teacher-text --valid-dataset dolly --test-dataset dolly

Killed at any moment, the same command goes on after the last whole batch and writes the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from gakd.cli import run
from gakd.data import DataConfig, DataError, Example, Split, load_split
from gakd.data.rows import row_from
from gakd.evaluation import Generation, ResumableRows, Sampling, decode, generate
from gakd.logs import ProgressView
from gakd.models import load_model, load_tokenizer


@dataclass
class Config:
    model: str
    """The model that writes: a folder, a hub id or a name such as Qwen3-8B."""
    output: Path
    """JSONL file to write; its settings and how far it is go into OUTPUT.json."""
    split: Split = "train"
    """Split of the dataset whose prompts are answered."""
    max_examples: int | None = None
    """Answer the first so many prompts; None for all."""
    batch_size: int = 16
    """Prompts per batch: memory and speed, and the drawn text, since a batch shares its random numbers."""
    drop_unfinished: bool = False
    """Leave out responses that --max-new-tokens cut: as training text they teach to stop in mid-sentence."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and arithmetic; bfloat16 is for GPUs."""
    data: DataConfig = field(default_factory=DataConfig)
    sampling: Sampling = field(default_factory=Sampling)


def main(config: Config) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(config.model)
    examples = load_split(config.data, tokenizer, config.split)[: config.max_examples]
    batches = [examples[start : start + config.batch_size] for start in range(0, len(examples), config.batch_size)]
    settings = asdict(config) | {"examples": len(examples), "device": device.type}
    del settings["output"]  # a file may be moved, and go on there
    written = ResumableRows(config.output, settings)
    if written.batches < len(batches):
        model = load_model(config.model, getattr(torch, config.dtype)).to(device)  # type: ignore[arg-type]
        view = ProgressView(len(batches), written.batches, shown=True)
        for index in range(written.batches, len(batches)):
            # A seed for each batch: what it draws does not depend on where a run was interrupted.
            sampling = replace(config.sampling, seed=(config.sampling.seed << 32) + index)
            prompts = [example.prompt_ids for example in batches[index]]
            generations = generate(model, tokenizer, prompts, sampling, config.batch_size)
            records = rows(batches[index], decode(tokenizer, generations), generations, config.drop_unfinished)
            unfinished = sum(not generation.finished for generation in generations)
            written.append(records, {"rows": len(records), "unfinished": unfinished})
            tokens = sum(len(generation.ids) for generation in generations)
            view.update(index + 1, tokens, {"mean length": tokens / len(generations)})
        view.close()
    counts = f"{written.totals['rows']} rows for {len(examples)} prompts"
    print(f"{config.output}: {counts}; {written.totals['unfinished']} responses were cut by --max-new-tokens")


def rows(
    examples: Sequence[Example], texts: Sequence[str], generations: Sequence[Generation], drop_unfinished: bool
) -> list[dict[str, Any]]:
    """Records as `gakd.data` reads them; those that it would refuse, such as empty responses, are left out."""
    records = []
    for example, text, generation in zip(examples, texts, generations, strict=True):
        row = example.row
        record: dict[str, Any] = {"instruction": row.instruction, "input": row.input, "output": text}
        if row.history:
            turns = [{"role": "user", "content": row.instruction}, {"role": "assistant", "content": text}]
            record = {"messages": [*row.history, *turns]}
        try:
            row_from(record, "")
        except DataError:
            continue
        if generation.finished or not drop_unfinished:
            records.append(record | {"finished": generation.finished})
    return records


if __name__ == "__main__":
    run(main, tyro.cli(Config, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
