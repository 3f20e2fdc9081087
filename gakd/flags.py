"""What a number or text among a recipe's flags may be: refused before anything is loaded, in one line that names the flag."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gakd.errors import InputError


class Bound(NamedTuple):
    """The numbers that a flag takes; `above` and `below` are themselves refused."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    infinite: bool = False  # infinity is one of them

    def holds(self, value: float) -> bool:
        try:
            value = float(value)
        except OverflowError:  # an integer of hundreds of digits
            return False
        return (
            (math.isfinite(value) or (self.infinite and not math.isnan(value)))
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        limits = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return (
            " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
            or "a finite number"
        )


COUNT, OPTIONAL_COUNT = Bound(at_least=1), Bound(at_least=0)
NOT_NEGATIVE, POSITIVE = Bound(at_least=0), Bound(above=0)
RATE = Bound(above=0, at_most=1e6)
SHARE = Bound(at_least=0, at_most=1)
SEED = Bound(at_least=0, at_most=2**32 - 1)  # what every generator that is seeded takes

# Flags have one meaning in all recipes, except alpha and beta, whose terms check them themselves.
BOUNDS = {
    "steps": COUNT, "epochs": COUNT, "batch_size": COUNT, "micro_batch_size": COUNT, "warmup_steps": OPTIONAL_COUNT,
    "evaluate_every": OPTIONAL_COUNT, "save_every": OPTIONAL_COUNT, "keep_checkpoints": COUNT, "devices": COUNT,
    "num_nodes": COUNT, "seed": SEED, "sampling_seed": SEED,
    "learning_rate": RATE, "min_learning_rate": NOT_NEGATIVE, "discriminator_learning_rate": RATE,
    "weight_decay": NOT_NEGATIVE, "clip": Bound(above=0, infinite=True),
    "lora_rank": Bound(at_least=0, at_most=2**16), "lora_alpha": COUNT, "lora_dropout": Bound(at_least=0, below=1),
    "max_length": Bound(at_least=2), "max_prompt_length": COUNT,
    "examples": COUNT, "text_examples": OPTIONAL_COUNT, "valid_text_examples": OPTIONAL_COUNT,
    "max_new_tokens": COUNT, "evaluation_batch_size": COUNT,
    "generation_batch_size": COUNT, "teacher_max_new_tokens": COUNT, "student_max_new_tokens": COUNT,
    "temperature": NOT_NEGATIVE, "teacher_temperature": NOT_NEGATIVE, "student_temperature": NOT_NEGATIVE,
    "student_top_p": Bound(above=0, at_most=1), "teacher_top_p": Bound(above=0, at_most=1), "top_k": COUNT,
    "adversarial_start": OPTIONAL_COUNT, "adversarial_ramp": COUNT, "adversarial_share": NOT_NEGATIVE,
    "readout_width": Bound(at_least=1, at_most=2**20), "discriminator_width": COUNT,
    "r1": NOT_NEGATIVE, "r2": NOT_NEGATIVE, "critic_scale": POSITIVE,
    "samples_per_prompt": COUNT, "updates": COUNT, "replay_capacity": COUNT, "clip_ratio": POSITIVE,
    "reward_scale": POSITIVE, "discount": SHARE, "teacher_share": SHARE, "student_text": SHARE, "mu": SHARE,
    "initial_threshold": SHARE, "threshold_step": SHARE, "threshold_tolerance": NOT_NEGATIVE,
    "alpha": Bound(), "beta": Bound(),
    "length": COUNT, "response_share": Bound(above=0, at_most=1), "device_memory": POSITIVE,
}  # fmt: skip


def check_flags(config: Any) -> None:
    """InputError for a number out of its bounds, for lengths that leave no room, and for a text that holds a password.

    `config` is a dataclass whose groups of flags are dataclasses. A flag without an entry takes any finite number, and a
    weight any that is not negative.
    """
    for name, value in flags_of(config):
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            bound = BOUNDS.get(name, NOT_NEGATIVE if name.endswith("_weight") else Bound())
            if not bound.holds(value):
                raise InputError(f"{flag} is {bound}, got {value}")
        if isinstance(value, (str, Path)) and _holds_secret(str(value)):
            raise InputError(  # which repeats no part of it
                f"{flag} holds a password or a key, which would be saved with the run: leave it out, and put it into the "
                f"environment"
            )
    lengths = {name: value for name, value in flags_of(config) if name in {"max_length", "max_prompt_length"}}
    if len(lengths) == 2 and lengths["max_prompt_length"] >= lengths["max_length"]:
        raise InputError(
            f"--max-prompt-length {lengths['max_prompt_length']} leaves no room for a response in --max-length "
            f"{lengths['max_length']}: raise the second, or lower the first"
        )


def flags_of(config: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of all flags, those of groups included."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flags_of(value)
        else:
            yield field.name, value


def _holds_secret(text: str) -> bool:
    """Whether a text has an address with a password, https://name:password@host, or a key that the environment holds."""
    if re.search(r"[a-z0-9]{2}:/{1,2}[^/\s@]+@", text, re.I):  # a path has lost one of the two strokes
        return True
    secret_names = [name for name in os.environ if re.search("(KEY|TOKEN|SECRET|PASSWORD)$", name)]
    return any(len(os.environ[name]) >= 8 and os.environ[name] in text for name in secret_names)
