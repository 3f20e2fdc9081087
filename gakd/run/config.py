"""The flags of a run: how long, how fast, where, on what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gakd.extras import Need
from gakd.logging.loggers import logger_need
from gakd.planning.config import OptimizerName
from gakd.run.schedules import LRSchedule, rate_at


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
    optimizer: OptimizerName = "adamw"
    """muon: for matrices of layers, AdamW for the rest; adamw8bit: bitsandbytes'; sgd: with momentum 0.9. [adamw]"""
    learning_rate: float = 5e-5
    """Peak learning rate. [5e-5 for 0.6B, 5e-6 for 1.7B, 1e-5 for 4B]"""
    lr_schedule: LRSchedule = "cosine_with_min_lr"
    """How it goes on behind the warm-up: names of transformers' schedulers. [cosine_with_min_lr]"""
    min_learning_rate: float = 1e-7
    """Where cosine_with_min_lr, polynomial and warmup_stable_decay end; linear and the other cosines end at 0. [1e-7]"""
    warmup_steps: int = 0
    """Steps of linear warm-up. [0]"""
    decay_steps: int | None = None
    """Last steps, in which warmup_stable_decay falls. None: a tenth of all."""
    lr_cycles: int | None = None
    """Cosines of cosine_with_restarts. None: 2."""
    weight_decay: float = 0.01
    """The optimizer's weight decay. [0.01]"""
    clip: float = 1.0
    """Largest gradient norm of the student. [1]"""
    evaluate_every: int = 200
    """Steps between evaluations on the validation split; 0 for none."""
    save_every: int = 200
    """Steps between checkpoints; 0 for one at the end only."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, beside the one of the highest validation ROUGE-L."""
    log_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()
    """Where metrics go beside metrics.csv."""
    project: str = "gakd"
    """Project that these show the run in; MLflow's experiment."""
    run_name: str | None = None
    """What they call the run. None: as its folder is called."""
    export: Literal["last", "best"] = "last"
    """Student that is evaluated and exported at the end: of the last step, or of the highest validation ROUGE-L."""
    export_dtype: Literal["trained", "float32", "bfloat16", "auto"] = "trained"
    """Of the exported weights: as they were trained and measured, float32 but for bf16-true; auto: as the base has them."""
    push_to_hub: str | None = None
    """NAME or OWNER/NAME on the Hugging Face hub to which the finished student goes, private if it is new."""
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
        if need := optimizer_need(self.optimizer):
            yield need


def optimizer_need(name: OptimizerName) -> Need | None:
    """The package of an optimizer that is not torch's."""
    if name == "adamw8bit":
        return Need(f"--optimizer {name}", ("bitsandbytes",), "8bit", "give --optimizer adamw")
    return None


def total_steps(config: RunConfig, examples: int) -> int:
    """Optimizer steps of a whole run on so many examples."""
    return config.steps if config.steps is not None else config.epochs * (examples // config.batch_size)


def learning_rate_at(config: RunConfig, step: int, total: int) -> float:
    """Of a step, from 0, of `total`, as `gakd.run.schedules.rate_at` says."""
    return rate_at(
        config.lr_schedule, step, total, config.learning_rate, config.min_learning_rate, config.warmup_steps,
        config.decay_steps, config.lr_cycles or 2,
    )  # fmt: skip
