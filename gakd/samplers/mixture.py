"""Several samplers in turns, by weights that may be schedules."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from gakd.samplers.protocol import Sample, Sampler
from gakd.seeds import seed_of
from gakd.weights import Weight, weight_at


class Mixture:
    """Each batch, or each sequence, from one of several samplers, drawn by weights that may be schedules of the step.

    `Mixture([(0.5, student), (0.5, dataset_sampler)])` is GKD's lambda of 0.5 (arXiv 2306.13649, algorithm 1). Weights need not
    sum to 1; ValueError where one is below 0 or none is above it. `counts` are the samples that each gave in the last call.
    """

    def __init__(
        self, parts: Sequence[tuple[Weight, Sampler]], per: Literal["batch", "sequence"] = "batch", seed: int = 0
    ) -> None:
        self.parts, self.per, self.seed = list(parts), per, seed
        self.counts = [0] * len(self.parts)

    def __call__(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        weights = [weight_at(weight, step, "the share of a sampler") for weight, _ in self.parts]
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"the weights of a mixture are at least 0, and one is above, got {weights} at step {step}")
        draw = random.Random(seed_of(self.seed, step))
        draws = 1 if self.per == "batch" else len(samples)
        chosen = draw.choices(range(len(self.parts)), weights, k=draws) * (len(samples) if self.per == "batch" else 1)
        self.counts = [chosen.count(index) for index in range(len(self.parts))]
        mixed: dict[int, Sample] = {}
        for index, (_, sampler) in enumerate(self.parts):
            places = [place for place, choice in enumerate(chosen) if choice == index]
            if places:
                mixed |= zip(places, sampler([samples[place] for place in places], step), strict=True)
        return [mixed[place] for place in range(len(samples))]
