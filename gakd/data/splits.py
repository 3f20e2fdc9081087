"""On which side of a split a row is: decided by its prompt, and in small sources by the other prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Literal

from gakd.data.rows import Row

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


def split_of(row: Row) -> Split:
    """96% train, 2% valid, 2% test by SHA-256 of the prompt: the same prompt is on the same side, everywhere and always."""
    return split_of_key(prompt_key(row))


def prompt_key(row: Row) -> str:
    return f"{row.instruction}\n{row.input}"


def split_of_key(key: str) -> Split:
    value = _number(key) % 100
    return "train" if value < 96 else "valid" if value < 98 else "test"


def held_out_of_few(keys: Iterable[str], present: Collection[str] = ()) -> dict[str, Split]:
    """Which keys are held out of a source so small that its hashes leave a split without any: one for test, then one for valid.

    They are those of the highest number between 0 and 99, where `split_of_key` has test and valid too; all others are trained on.
    One key stays for training. `present` are splits that the source has of its own.
    """
    ordered = sorted(set(keys), key=lambda key: (_number(key) % 100, _number(key), key))
    wanted: list[Split] = [split for split in ("test", "valid") if split not in present]
    return dict(zip(reversed(ordered[1:]), wanted, strict=False))


def _number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:4], "big")
