"""What a run says of itself before anything is loaded: whose settings it has, and what it is about to load."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from gakd.data.config import DataConfig
from gakd.models.config import ModelConfig
from gakd.run.config import RunConfig

Group = TypeVar("Group")


def settings_line(config: Any) -> str | None:
    """The paper's settings, which a named student chooses all at once: the few that tell most."""
    models, run = _group(config, ModelConfig), _group(config, RunConfig)
    if models is None or run is None:
        return None
    trained = f"LoRA {models.lora_rank}" if models.lora_rank else "all weights"
    length = f"{run.epochs} epochs" if run.steps is None else f"{run.steps} steps"
    rate = f"{run.learning_rate:g}".replace("e-0", "e-")
    return f"The paper's settings: {trained}, batch {run.batch_size}, lr {rate}, {length}; --help lists them"


def loading_line(config: Any) -> str | None:
    """Student, teacher and data, by the names that were given."""
    models, data = _group(config, ModelConfig), _group(config, DataConfig)
    if models is None or data is None:
        return None
    teacher = models.teacher_cache or models.teacher
    parts = [f"student {models.student}", f"teacher {teacher}" if teacher else "", f"data {data.dataset}"]
    return f"Loading {', '.join(filter(None, parts))}"


def _group(config: Any, kind: type[Group]) -> Group | None:
    values = [getattr(config, field.name) for field in fields(config)] if is_dataclass(config) else []
    return next((value for value in values if isinstance(value, kind)), None)
