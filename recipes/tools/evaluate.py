"""One table over checkpoints: distance to the teacher, ROUGE-L, exact match, length, over several sampling seeds.

python recipes/tools/evaluate.py --students runs/sft/student runs/gakd/student --teacher Qwen3-8B --dataset dolly
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.progress import Progress

from gakd.cli import run
from gakd.data import DataConfig, Split, load_split
from gakd.evaluation import Evaluation, Sampling, checkpoints_table, evaluate, teacher_outputs
from gakd.evaluation.generation import special_ids
from gakd.models import check_tokenizers, load_model, load_tokenizer


@dataclass
class Config:
    students: list[str]
    """Folders, hub ids or short names; name the teacher here too for a row of its own."""
    teacher: str | None = None
    """Model that the divergences compare with; left out, they are too."""
    split: Split = "test"
    """Split of the dataset that is measured on."""
    max_examples: int | None = None
    """Measure on the first so many examples; None for all."""
    seeds: list[int] = field(default_factory=lambda: [10, 20, 30, 40, 50])
    """Each draws one response a prompt; the table shows mean and standard deviation. [10 20 30 40 50]"""
    max_new_tokens: int = 256
    """Tokens after which a response is cut. [256]"""
    temperature: float = 1.0
    """Divides the logits when sampling; 0 is greedy and takes one seed. [1]"""
    top_p: float = 1.0
    """Probability mass that sampling keeps. [1]"""
    batch_size: int = 16
    """Sequences per forward and per generated batch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and arithmetic; bfloat16 is for GPUs."""
    output: Path | None = None
    """JSON file for settings, numbers of each seed, and the responses of the first."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model's files. It can do anything on this machine: read it first."""
    data: DataConfig = field(default_factory=DataConfig)


def main(config: Config) -> None:
    if len(set(config.students)) != len(config.students):
        raise SystemExit(f"each checkpoint is one row, got {config.students}: name each once")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, config.dtype)
    # One tokenizer for all, so that every checkpoint answers the same prompts and is scored on the same tokens.
    tokenizer = load_tokenizer(config.students[0], config.trust_remote_code)
    for name in [*config.students[1:], *filter(None, [config.teacher])]:
        other = load_tokenizer(name, config.trust_remote_code)
        check_tokenizers(tokenizer, other, (config.students[0], name))
    examples = load_split(config.data, tokenizer, config.split)[: config.max_examples]

    targets = None
    if config.teacher is not None:  # its hidden states and its head stay, its layers make room
        teacher = load_model(config.teacher, dtype, None, config.trust_remote_code).to(device)  # type: ignore[arg-type]
        targets = teacher_outputs(teacher, examples, special_ids(tokenizer)[1], config.batch_size)
        del teacher

    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p)
    seeds = config.seeds if config.temperature > 0 else config.seeds[:1]
    evaluations: dict[str, Evaluation] = {}
    console = Console(width=None if Console().is_terminal else 100)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(config.students) * len(seeds) * len(examples))
        for name in config.students:
            progress.update(task, description=name)
            student = load_model(name, dtype, None, config.trust_remote_code).to(device)  # type: ignore[arg-type]
            evaluations[name] = evaluate(
                student, targets, tokenizer, examples, sampling, batch_size=config.batch_size, seeds=seeds,
                on_progress=lambda prompts: progress.advance(task, prompts),
            )  # fmt: skip
            if config.output is not None:  # after each checkpoint: an interrupted comparison keeps what it has
                write(config.output, config, evaluations)
    seed_text = f"seeds {', '.join(map(str, seeds))}" if config.temperature > 0 else "greedy"
    console.print(checkpoints_table(evaluations, title=f"{len(examples)} {config.split} examples, {seed_text}"))


def write(output: Path, config: Config, evaluations: dict[str, Evaluation]) -> None:
    result = {"config": asdict(config), "evaluations": {name: asdict(value) for name, value in evaluations.items()}}
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name(f".{output.name}.tmp")
    scratch.write_text(json.dumps(result, indent=2, default=str))
    os.replace(scratch, output)


if __name__ == "__main__":
    run(main, tyro.cli(Config, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
