"""On which side of a split a row is: decided by its prompt alone."""

from __future__ import annotations

import hashlib
from typing import Literal

from gakd.data.rows import Row

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


def split_of(row: Row) -> Split:
    """96% train, 2% valid, 2% test by SHA-256 of the prompt: the same prompt is on the same side, everywhere and always."""
    return split_of_key(f"{row.instruction}\n{row.input}")


def split_of_key(key: str) -> Split:
    value = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:4], "big") % 100
    return "train" if value < 96 else "valid" if value < 98 else "test"
