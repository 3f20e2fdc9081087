"""Seeds of streams of random numbers that must not repeat one another: of runs, ranks, steps, batches."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int) -> int:
    """One seed of several numbers, of 63 bits: `seed_of(run_seed, rank)`, `seed_of(seed, step)`.

    Sums give rank 1 of run 42 the stream of rank 0 of run 43. Shifts lose what they shift: torch's generator of a CPU takes
    the low 32 bits of a seed alone. So the numbers are hashed, which mixes all of them into every bit.
    """
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # what takes seeds of int64 takes these
