"""Responses of a model to the prompts of a dataset, as JSONL that --dataset reads back.

Teacher text for sequence-level distillation: --model Qwen3-8B --dataset dolly --output teacher-text/train.jsonl
Its use in a recipe: --dataset teacher-text --valid-dataset dolly --test-dataset dolly

Killed at any moment, the same command goes on after the last whole batch and writes the same rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from gakd.cli import DataConfig, Sampling, Split, start_tool


@dataclass
class Config:
    model: str
    """The model that writes: a folder, a hub id or a name such as Qwen3-8B."""
    output: Path
    """JSONL file to write; its settings and how far it is go into OUTPUT.json."""
    split: Split = "train"
    """Split of the dataset whose prompts are answered."""
    examples: int | None = None
    """Answer the first so many prompts; None for all."""
    batch_size: int = 16
    """Prompts per batch: memory and speed, and the drawn text, since a batch shares its random numbers."""
    drop_unfinished: bool = False
    """Leave out responses that --max-new-tokens cut; kept, they are marked so and train without an end-of-text token."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and arithmetic; bfloat16 is for GPUs."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model's files. It can do anything on this machine: read it first."""
    data: DataConfig = field(default_factory=DataConfig)
    sampling: Sampling = field(default_factory=Sampling)


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    import torch
    from torch import nn

    from gakd.data import fixed_date, load_split
    from gakd.models import load_model, load_tokenizer
    from gakd.samplers import ResumableRows, write_responses

    config.data.date = fixed_date(config.data.date, (Path(f"{config.output}.json"), ("settings", "data", "date")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    examples = load_split(config.data, tokenizer, config.split, prompts_alone=True)[: config.examples]
    settings = asdict(config) | {"examples": len(examples), "device": device.type}
    del settings["output"], settings["trust_remote_code"]  # a file may be moved, and go on there
    written = ResumableRows(config.output, settings)

    def load() -> nn.Module:
        model = load_model(config.model, getattr(torch, config.dtype), None, config.trust_remote_code)
        return nn.Module.to(model, device)

    write_responses(written, load, tokenizer, examples, config.sampling, config.batch_size, config.drop_unfinished)
    counts = f"{written.totals['rows']} rows for {len(examples)} prompts"
    print(f"{config.output}: {counts}; {written.totals['unfinished']} responses were cut by --max-new-tokens")


if __name__ == "__main__":
    start_tool(main, Config, __doc__)
