"""What a recorded step trains on what: a recipe's configuration and data of the lengths that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from gakd.data.config import DataConfig
from gakd.data.examples import Example
from gakd.data.load import Data
from gakd.data.rows import Row
from gakd.run.config import RunConfig


@dataclass
class Setting:
    """What is trained, on what."""

    recipe: str = "gakd"
    student: str = "Qwen3-0.6B"
    teacher: str = "Qwen3-8B"
    layers: int | None = None  # of each model, all where it is None
    lora_rank: int = 0
    teacher_cache: bool = False
    lengths: tuple[tuple[int, int], ...] = ((512, 307),) * 32  # of each sequence of the step: positions, supervised
    micro_batch_size: int = 4
    micro_batch_tokens: int | None = None
    shapes: tuple[tuple[int, int], ...] = ()  # [B, T] of the micro-batches instead, in order
    flags: dict[str, Any] = field(default_factory=dict)  # of the recipe itself


def config_of(recipe: Any, setting: Setting, folder: Path) -> Any:
    known = {own.name for own in fields(RunConfig)}
    size = sum(batch for batch, _ in setting.shapes) or len(setting.lengths)
    asked: dict[str, Any] = {
        "output_dir": folder / "run", "steps": 2, "batch_size": size, "micro_batch_size": setting.micro_batch_size,
        "evaluate_every": 0, "save_every": 0, "precision": "bf16-mixed",
    }  # fmt: skip
    if setting.micro_batch_tokens is not None:
        if "micro_batch_tokens" not in known:
            raise ValueError("this gakd has no --micro-batch-tokens: give shapes, or --micro-batch-size")
        asked["micro_batch_tokens"] = setting.micro_batch_tokens
    config = replace(recipe.PAPER, run=RunConfig(**asked), **setting.flags)
    longest = max(length for length, _ in _lengths(setting)) + 1
    config.data = replace(config.data, max_length=longest)
    config.models = replace(
        config.models, student=setting.student, teacher=setting.teacher, lora_rank=setting.lora_rank
    )
    return config


def _lengths(setting: Setting) -> Sequence[tuple[int, int]]:
    share = sum(own for _, own in setting.lengths) / sum(length for length, _ in setting.lengths)
    of_shapes = [(length, max(round(share * length), 1)) for batch, length in setting.shapes for _ in range(batch)]
    return of_shapes or setting.lengths


def data_of(setting: Setting) -> Data:
    """Examples whose batches have the lengths that were asked for: a batch has a position less than an example tokens."""
    examples = []
    for index, (length, supervised) in enumerate(_lengths(setting)):
        prompt = [index + 1] * (length + 1 - supervised)
        examples.append(Example(prompt, [7] * supervised, Row(str(index))))
    return Data(examples, examples[:1], examples[:1], 0, DataConfig())


def groups_of(setting: Setting) -> list[list[int]]:
    """Indices of the examples of each micro-batch whose shape was asked for."""
    ends = list(accumulate(size for size, _ in setting.shapes))
    return [list(range(end - size, end)) for end, (size, _) in zip(ends, setting.shapes, strict=True)]
