"""Planned memory against measured: `gakd plan` and recipes on the CPU, each run in a fresh process.

Measured is the peak of allocated tensor bytes in a training step: what lives at its start, and what PyTorch's allocator gives
out beyond that. Beside it, how much the process grows above what it held before the recipe, by its resident set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from gakd.planning.config import GB, PlanConfig
from gakd.planning.estimate import plan
from tests import tiny
from tests.benchmarks.harness import ENVIRONMENT, REPOSITORY

SMOL = "SmolLM2-135M-Instruct"
# glibc that gives back what is freed: the resident set is then about what lives.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20)}


@dataclass(frozen=True)
class Case:
    title: str
    models: str  # tiny, or SmolLM2
    game: bool = True  # recipes/gakd.py; else recipes/baselines/reverse_kl.py
    lora_rank: int = 0
    activation_checkpointing: bool = False
    micro_batch_size: int = 4
    accumulate: bool = False
    words: int = 60  # of a response; a prompt has 12
    precision: str = "32-true"
    devices: int = 1
    strategy: str = "auto"


CASES = (
    Case("tiny", "tiny"),
    Case("tiny, accumulated", "tiny", accumulate=True),
    Case("tiny, LoRA", "tiny", lora_rank=16, micro_batch_size=8),
    Case("tiny, checkpointed", "tiny", activation_checkpointing=True, micro_batch_size=16, words=80),
    Case("tiny, no game", "tiny", game=False, micro_batch_size=16, words=80),
    Case("tiny, no game, checkpointed", "tiny", game=False, activation_checkpointing=True, micro_batch_size=16, words=80),
    Case("SmolLM2", "SmolLM2"),
    Case("SmolLM2, no game", "SmolLM2", game=False),
    Case("SmolLM2, accumulated", "SmolLM2", accumulate=True),
    Case("SmolLM2, 8 sequences", "SmolLM2", micro_batch_size=8, words=120),
    Case("SmolLM2, checkpointed", "SmolLM2", activation_checkpointing=True, micro_batch_size=8, words=120),
    Case("SmolLM2, LoRA", "SmolLM2", lora_rank=16),
    Case("SmolLM2, LoRA, 8 sequences", "SmolLM2", lora_rank=16, micro_batch_size=8, words=120, accumulate=True),
    Case("SmolLM2, LoRA, checkpointed", "SmolLM2", lora_rank=16, activation_checkpointing=True, micro_batch_size=8, words=120),
    Case("SmolLM2, bf16-mixed", "SmolLM2", precision="bf16-mixed"),
    Case("SmolLM2, bf16-mixed, checkpointed", "SmolLM2", precision="bf16-mixed", activation_checkpointing=True),
    Case("SmolLM2, bf16-mixed, LoRA", "SmolLM2", precision="bf16-mixed", lora_rank=16),
    Case("SmolLM2, ddp", "SmolLM2", devices=2, strategy="ddp"),
    Case("SmolLM2, fsdp2", "SmolLM2", devices=2, strategy="fsdp2"),
    Case("SmolLM2, fsdp2, accumulated", "SmolLM2", devices=2, strategy="fsdp2", accumulate=True),
    Case("SmolLM2, fsdp2, bf16-mixed, checkpointed", "SmolLM2", devices=2, strategy="fsdp2", precision="bf16-mixed",
         activation_checkpointing=True),
)  # fmt: skip


@dataclass
class Config:
    only: tuple[str, ...] = ()
    """Parts of titles. None: all."""


def main(config: Config) -> None:
    table = Table("run", "batch", "planned GB", "measured GB", "planned / measured", "process grew, GB", "busiest")
    console = Console(width=140)
    for case in CASES:
        if config.only and not any(part in case.title for part in config.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = compare(case, Path(folder))
            except RuntimeError as error:
                console.print(f"{error}", markup=False, highlight=False, soft_wrap=True)
                continue
        planned, allocated, resident = (row[name] / GB for name in ("planned", "allocated", "resident"))
        ratio, batch = f"{planned / allocated:.3f}", f"{case.micro_batch_size} x {row['length']}"
        table.add_row(case.title, batch, f"{planned:.3f}", f"{allocated:.3f}", ratio, f"{resident:.3f}", row["busiest"])
        console.print(f"{case.title}: {ratio}", markup=False, highlight=False)
    console.print(table)


def compare(case: Case, folder: Path) -> dict[str, Any]:
    """What the run's step took, and what is planned for a run of its sequences."""
    measured = measure(case, folder)
    teacher, student = _models(case, folder)
    planned = plan(
        PlanConfig(
            student=student, teacher=teacher, student_layers=(2,) if case.models == "tiny" else (10,),
            lora_rank=case.lora_rank, activation_checkpointing=case.activation_checkpointing,
            micro_batch_size=case.micro_batch_size, accumulate=case.accumulate, length=measured["length"],
            response_share=measured["supervised"] / measured["length"], readout_width=64, precision=case.precision, device="cpu",
            discriminator=case.game, devices=case.devices, strategy=case.strategy,
            examples=1, text_examples=0,  # a step is measured, not the evaluation before it
        )  # type: ignore[arg-type]
    )  # fmt: skip
    return measured | {"planned": planned.peak, "busiest": planned.busiest, "phases": planned.phases}


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Runs the recipe in a process of its own: `memory_run` says what it gives."""
    _write_data(folder / "data", case)
    if case.models == "tiny":
        words = tiny.tokenizer()
        tiny.save(folder / "teacher", tiny.model(width=48, layers=3, tied=False, seed=2), words)
        tiny.save(folder / "student", tiny.model(layers=4, seed=1), words)
    teacher, student = _models(case, folder)
    batch_size = case.micro_batch_size * case.devices * (2 if case.accumulate else 1)
    flags = [
        "--student", student, "--teacher", teacher, "--dataset", str(folder / "data"), "--output-dir", str(folder / "run"),
        "--student-layers", "2" if case.models == "tiny" else "10", "--lora-rank", str(case.lora_rank), "--steps", "5",
        "--batch-size", str(batch_size), "--micro-batch-size", str(case.micro_batch_size), "--max-length", "512",
        "--max-prompt-length", "256", "--evaluate-every", "0", "--examples", "1", "--text-examples", "1",
        "--max-new-tokens", "1", "--precision", case.precision,
        "--devices", str(case.devices), "--strategy", case.strategy, *(["--readout-width", "64"] if case.game else []),
        *(["--activation-checkpointing"] if case.activation_checkpointing else []),
    ]  # fmt: skip
    command = [sys.executable, "-m", "tests.benchmarks.memory_run", "gakd" if case.game else "reverse_kl", *flags]
    run = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | ENVIRONMENT | ALLOCATOR, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"{case.title} ended with code {run.returncode}: {run.stderr.strip().splitlines()[-1:]}")
    return json.loads(run.stdout.splitlines()[-1])


def _models(case: Case, folder: Path) -> tuple[str, str]:
    """The teacher's and the student's names."""
    return (str(folder / "teacher"), str(folder / "student")) if case.models == "tiny" else (SMOL, SMOL)


def _write_data(folder: Path, case: Case) -> None:
    """Sequences of one length, so that every step is the largest."""
    folder.mkdir()
    row = json.dumps({"instruction": "do " * 12, "output": "word " * case.words})
    for split, rows in (("train", 8 * case.micro_batch_size * case.devices), ("valid", 1), ("test", 1)):
        (folder / f"{split}.jsonl").write_text(f"{row}\n" * rows)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
