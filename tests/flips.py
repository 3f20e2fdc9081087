"""Files with one bit turned: what a disk, a cable or a memory does to them."""

from __future__ import annotations

import random
from collections.abc import Iterator


def turned(content: bytes, count: int, seed: object = 0) -> Iterator[bytes]:
    """The content so many times, each with another bit turned at random."""
    draw = random.Random(str(seed))
    for _ in range(count):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield bytes(changed)
