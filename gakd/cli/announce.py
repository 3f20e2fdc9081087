"""What a run says of itself before anything is loaded: whose settings it has, what it is about to load, and that it imports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gakd.data.config import DataConfig
from gakd.flags import group_of
from gakd.models.config import ModelConfig
from gakd.run.config import RunConfig


def settings_line(config: Any) -> str | None:
    """The paper's settings, which a named student chooses all at once: the few that tell most."""
    models, run = group_of(config, ModelConfig), group_of(config, RunConfig)
    if models is None or run is None:
        return None
    trained = f"LoRA {models.lora_rank}" if models.lora_rank else "all weights"
    length = f"{run.epochs} epochs" if run.steps is None else f"{run.steps} steps"
    rate = f"{run.learning_rate:g}".replace("e-0", "e-")
    return f"The paper's settings: {trained}, batch {run.batch_size}, lr {rate}, {length}; --help lists them"


def loading_line(config: Any) -> str | None:
    """Student, teacher and data, by the names that were given."""
    models, data = group_of(config, ModelConfig), group_of(config, DataConfig)
    if models is None or data is None:
        return None
    teacher = models.teacher_cache or models.teacher
    parts = [f"student {models.student}", f"teacher {teacher}" if teacher else "", f"data {data.dataset}"]
    return f"Loading {', '.join(filter(None, parts))}"


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A moving bar on a terminal, as long as something takes; it leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn(text), BarColumn(24), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task("", total=None)
        yield
