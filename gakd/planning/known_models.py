"""Architectures of common models, as published, by name: for planning without their files."""

from __future__ import annotations

import re
from typing import Any

import transformers
from transformers import PreTrainedConfig

from gakd.planning.known_dense import DENSE, Family
from gakd.planning.known_mixed import MIXED

# What names say of training, not of architecture: instructions, sizes of the window, dates and versions.
_OF_TRAINING = re.compile(r"(-(instruct|base|pt|it|chat|thinking|reasoning|hf|original|v?\d[\d.]*))*", re.IGNORECASE)
_FAMILIES = {name.lower(): (name, family) for family in (*DENSE, *MIXED) for name in family.models}


def known_config(name: str) -> PreTrainedConfig | None:
    """The architecture of a name such as Qwen3-8B or meta-llama/Llama-3.1-8B-Instruct; None for one not in the list."""
    short = name.rsplit("/", 1)[-1].removeprefix("Meta-").lower()
    fitting = [known for known in _FAMILIES if short.startswith(known) and _OF_TRAINING.fullmatch(short[len(known) :])]
    return _config(*_FAMILIES[max(fitting, key=len)]) if fitting else None


def known_names() -> list[str]:
    """All names, by family."""
    return [name for name, _ in _FAMILIES.values()]


def _config(name: str, family: Family) -> PreTrainedConfig:
    row = family.models[name]
    own: dict[str, Any] = dict(row[-1]) if isinstance(row[-1], dict) else {}
    eye = {key: own.pop(key) for key in ("vision_config",) if key in own}
    sizes = dict(zip(family.columns, row, strict=False))
    text = getattr(transformers, family.config)(**{**family.shared, **sizes, **own})
    if not family.text_in:
        return text
    whole = getattr(transformers, family.text_in)
    return whole(text_config=text.to_dict(), tie_word_embeddings=text.tie_word_embeddings, **family.towers, **eye)
