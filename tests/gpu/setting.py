"""What a part of the run is given: device, sizes, time. Full sizes for a card, tiny ones for a dry run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.gpu.meters import Meter, meter_of


@dataclass(frozen=True)
class Sizes:
    rows: int = 8192
    """Supervised rows of a token pass."""
    vocabulary: int = 151_936
    widths: tuple[int, ...] = (4096, 1024)
    """Hidden widths of both models of a token pass."""
    rounds: int = 7
    """Timed calls of a token pass; of a step, half of them."""
    student: str = "Qwen3-0.6B"
    teachers: tuple[str, ...] = ("Qwen3-8B", "Qwen3-4B", "Qwen3-1.7B", "Qwen3-0.6B")
    """Of the whole step: the first with which the card's memory suffices."""
    micro_batches: int = 8
    sequences: int = 4
    length: int = 512
    readout: int = 256
    """Width of the discriminator's map of the logits, and of the discriminator."""
    batches: tuple[int, ...] = (32, 128)
    """Prompts of a batch in generation."""
    prompt: int = 128
    new_tokens: int = 128


TINY = Sizes(
    rows=48, vocabulary=640, widths=(32, 16), rounds=2, student="tiny", teachers=("tiny",), micro_batches=2, sequences=2,
    length=24, readout=16, batches=(2, 3), prompt=6, new_tokens=4,
)  # fmt: skip


class Deadline:
    """When a part has to be done; what would not fit any more is left out, and said."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


@dataclass
class Setting:
    device: torch.device
    sizes: Sizes
    deadline: Deadline
    report: Callable[[dict[str, Any]], None]
    """Takes one row of results as soon as it is known, so that a run that is cut short keeps what it has."""

    @property
    def meter(self) -> Meter:
        return meter_of(self.device)

    @property
    def dry(self) -> bool:
        return self.device.type == "cpu"


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
