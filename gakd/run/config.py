"""The flags of a run: how long, how fast, where, on what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gakd.extras import Need
from gakd.logging.loggers import logger_need


@dataclass
class RunConfig:
    """How long, how fast, where. The paper's values, where it gives them, are in brackets."""

    output_dir: Path = Path("runs/latest")
    """Folder for config, metrics, checkpoints, plot and the exported student; refused if it holds another run."""
    resume: bool = False
    """Continue the run in --output-dir from its newest checkpoint, bit for bit; starts it if there is none."""
    seed: int = 42
    """Seed of initialisation, data order and dropout. [42]"""
    steps: int | None = None
    """Optimizer steps; overrides --epochs."""
    epochs: int = 20
    """Passes over the training set. [20 for 0.6B, 10 for 1.7B and 4B]"""
    batch_size: int = 32
    """Sequences per optimizer step, over all devices. [32]"""
    micro_batch_size: int = 4
    """Sequences per forward on one device: memory and speed only, the gradient does not depend on it. [4; 2 for 4B]"""
    micro_batch_tokens: int | None = None
    """Positions per forward on one device, padding included, such as 16384; bounds it in place of the number of sequences."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW. [5e-5 for 0.6B, 5e-6 for 1.7B, 1e-5 for 4B]"""
    min_learning_rate: float = 1e-7
    """End of the cosine schedule. [1e-7]"""
    warmup_steps: int = 0
    """Steps of linear warm-up. [0]"""
    weight_decay: float = 0.01
    """AdamW's weight decay. [0.01]"""
    clip: float = 1.0
    """Largest gradient norm of the student. [1]"""
    evaluate_every: int = 200
    """Steps between evaluations on the validation split; 0 for none."""
    save_every: int = 200
    """Steps between checkpoints; 0 for one at the end only."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, beside the one of the highest validation ROUGE-L."""
    log_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go beside metrics.csv."""
    export: Literal["last", "best"] = "last"
    """Student that is evaluated and exported at the end: of the last step, or of the highest validation ROUGE-L."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is not finite: stop, with the step kept in nonfinite/; or leave the step out."""
    devices: int = 1
    """Processes per node, one a device."""
    num_nodes: int = 1
    """Nodes, under torchrun or SLURM."""
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """auto and ddp: each device holds both models whole; fsdp2: their weights are cut over all devices."""
    kernel: Literal["auto", "eager", "compiled", "triton"] = "auto"
    """Row-wise part of the token losses; auto: on a GPU triton (compiled for terms that it has no formula of), else eager."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile decoder layers of student and teacher one by one; auto: on a GPU where Triton is. A minute of the first steps."""
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true"] = "auto"
    """auto: bf16-mixed on a GPU, 32-true on a CPU."""

    def needs(self) -> Iterator[Need]:
        """What these flags cannot do without."""
        yield from map(logger_need, self.log_to)


def total_steps(config: RunConfig, examples: int) -> int:
    """Optimizer steps of a whole run on so many examples."""
    return config.steps if config.steps is not None else config.epochs * (examples // config.batch_size)


def learning_rate_at(config: RunConfig, step: int, total: int) -> float:
    """Of a step, from 0, of `total`: linear warm-up, then half a cosine down to `min_learning_rate` at the last one."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(total - config.warmup_steps - 1, 1)
    low = min(config.min_learning_rate, config.learning_rate)
    return low + (config.learning_rate - low) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
