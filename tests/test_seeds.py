"""Streams of random numbers of their own, on the generators that use a part of a seed too."""

from __future__ import annotations

import torch

from gakd.seeds import seed_of


def test_every_number_of_a_seed_reaches_the_generator_of_a_cpu():
    """It takes 32 bits of a seed; none of 1,600 pairs may lose what tells it from another."""
    drawn = set()
    for seed in range(40):
        for step in range(40):
            torch.default_generator.manual_seed(seed_of(seed, step))
            drawn.add(tuple(torch.randint(2**31, (4,)).tolist()))
    assert len(drawn) == 1600


def test_a_seed_is_the_same_everywhere_and_fits_int64():
    assert seed_of(42, 7) == 8916438312682816563
    assert all(0 <= seed_of(42, index) < 2**63 for index in range(1000))
    assert seed_of(1, 23) != seed_of(12, 3)
    assert seed_of(42) not in (seed_of(42, 0), seed_of(0, 42))
