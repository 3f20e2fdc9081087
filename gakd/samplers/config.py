"""The flags of what is written, which import no torch: a command line is read before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn; the defaults are the setting of MiniLLM's and GAKD's tables."""

    max_new_tokens: int = 256
    """Tokens after which a response is cut, its end included."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token at each step (greedy)."""
    top_p: float = 1.0
    """Keeps the most probable tokens up to this probability mass; 1 keeps the whole vocabulary."""
    seed: int = 10
    """Of the sampling; MiniLLM averages over 10, 20, 30, 40 and 50."""

    def __post_init__(self) -> None:
        whole = isinstance(self.max_new_tokens, int) and self.max_new_tokens >= 1
        if not (whole and 0 <= self.temperature < math.inf and 0 < self.top_p <= 1):
            raise ValueError(
                f"sampling needs a whole max_new_tokens >= 1, a finite temperature >= 0 and top_p in (0, 1], got {self}"
            )


@dataclass
class TeacherTextConfig:
    """The responses that the teacher writes before training; an interrupted command goes on with them."""

    teacher_temperature: float = 1.0
    """Divides the teacher's logits when it writes; 1 is its own distribution, 0 its most probable token each time. [1]"""
    teacher_max_new_tokens: int = 256
    """Tokens after which the teacher's response is cut; a cut one trains without an end. [256]"""
    generation_batch_size: int = 16
    """Prompts per batch when the teacher writes: memory, speed, and what is drawn, since a batch shares its random numbers."""
