"""One table over checkpoints: distance to the teacher, ROUGE-L, exact match, length, over several sampling seeds.

python recipes/tools/evaluate.py --students runs/sft/student runs/gakd/student --teacher Qwen3-8B --dataset dolly

ROUGE-L on several sets, their average and the long answers among them; run again, the same command goes on where it ended:

python recipes/tools/evaluate.py --students ... --suite dolly,self-inst,vicuna,sinst,uinst --output suite.json
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from gakd.cli import DataConfig, Sampling, Split, start_tool
from gakd.errors import InputError


@dataclass
class Config:
    students: list[str]
    """Folders, hub ids or short names; name the teacher here too for a row of its own."""
    teacher: str | None = None
    """Model that the divergences compare with; left out, they are too."""
    suite: str | None = None
    """Sets in place of --dataset, commas between them: names, files, or name=file. [dolly,self-inst,vicuna,sinst,uinst]"""
    long_words: int = 100
    """An answer is long if each reference has so many words: that takes half of --max-new-tokens, and 200 would be cut."""
    split: Split = "test"
    """Split of the dataset that is measured on."""
    examples: int | None = None
    """Measure on the first so many examples, of each set of a suite; None for all."""
    seeds: list[int] = field(default_factory=lambda: [10, 20, 30, 40, 50])
    """Each draws one response a prompt; the table shows mean and standard deviation. [10 20 30 40 50]"""
    max_new_tokens: int = 256
    """Tokens after which a response is cut. [256]"""
    sampling_temperature: float = 1.0
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


# What may differ between two runs that write into one file of a suite.
FREE = ("students", "long_words", "output", "trust_remote_code")


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    import torch
    from rich.console import Console
    from rich.progress import Progress
    from torch import nn

    from gakd.data import fixed_date, load_split
    from gakd.evaluation import (
        Evaluation,
        SuiteResults,
        checkpoints_table,
        evaluate_checkpoints,
        load_suite,
        parse_suite,
        suite_table,
    )
    from gakd.files import write_json
    from gakd.models import check_tokenizers, load_model, load_tokenizer

    if len(set(config.students)) != len(config.students):
        raise InputError(f"each checkpoint is one row, got {config.students}: name each once")
    kept = [] if config.output is None else [(config.output, ("config", "data", "date"))]
    config.data.date = fixed_date(config.data.date, *kept)
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, config.dtype)
    sources = None if config.suite is None else parse_suite(config.suite)
    # One tokenizer for all, so that every checkpoint answers the same prompts and is scored on the same tokens.
    tokenizer = load_tokenizer(config.students[0], config.trust_remote_code)
    for name in [*config.students[1:], *filter(None, [config.teacher])]:
        other = load_tokenizer(name, config.trust_remote_code)
        check_tokenizers(tokenizer, other, (config.students[0], name))

    left: dict[str, list[str]]  # of each checkpoint, the sets that it is to be evaluated on
    if sources is None:
        suite, sets = None, {"": list(load_split(config.data, tokenizer, config.split)[: config.examples])}
        left = {name: [""] for name in config.students}
    else:
        sets = load_suite(sources, config.data, tokenizer, config.split, config.examples)
        suite = SuiteResults(config.output, asdict(config) | {"device": device.type}, FREE, sets, config.long_words)
        left = {name: suite.left(name) for name in config.students}

    def load(name: str) -> nn.Module:
        return nn.Module.to(load_model(name, dtype, None, config.trust_remote_code), device)

    sampling = Sampling(config.max_new_tokens, config.sampling_temperature, config.top_p)
    seeds = config.seeds if config.sampling_temperature > 0 else config.seeds[:1]
    evaluations: dict[str, Evaluation] = {}
    console = Console(width=None if Console().is_terminal else 100)
    with Progress(console=console, transient=True) as progress:
        prompts = sum(len(sets[name]) for names in left.values() for name in names)
        task = progress.add_task("", total=prompts * len(seeds))
        for checkpoint, name, evaluation in evaluate_checkpoints(
            left, sets, config.teacher, load, tokenizer, sampling, seeds, config.batch_size,
            lambda label, answered: progress.update(task, advance=answered, description=label),
        ):  # fmt: skip
            # After each checkpoint and set: an interrupted comparison keeps what it has.
            if suite is not None:
                suite.add(checkpoint, name, evaluation)
                continue
            evaluations[checkpoint] = evaluation
            if config.output is not None:
                scores = {name: asdict(value) for name, value in evaluations.items()}
                write_json(config.output, {"config": asdict(config), "evaluations": scores}, indent=2)
    seed_text = f"seeds {', '.join(map(str, seeds))}" if config.sampling_temperature > 0 else "greedy"
    if suite is None:
        title = f"{len(sets[''])} {config.split} examples, {seed_text}"
        console.print(checkpoints_table(evaluations, title=title))
    else:
        console.print(suite_table(suite, config.students, title=f"{config.split} split, {seed_text}"))


if __name__ == "__main__":
    start_tool(main, Config, __doc__)
