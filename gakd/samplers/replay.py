"""DistiLLM's adaptive off-policy sampler: the dataset's text, the student's, or what the student wrote in earlier steps.

    threshold = AdaptiveThreshold()
    sampler = ReplaySampler(student, threshold, total_steps, rank=run.rank)
    threshold.observe(validation_loss)  # before training, and after each epoch

The student's text costs generation and, early on, is poor: it comes in when the validation loss has risen, and is trained
on more than once. DistiLLM, arXiv 2402.03898; the formulas are those of its release's `finetune.py`.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import torch

from gakd.run.exchange import everyones
from gakd.samplers.protocol import Sample, Sampler
from gakd.seeds import seed_of
from gakd.weights import Weight, weight_at

Schedule = Literal["decreasing", "constant", "increasing"]


class AdaptiveThreshold:
    """The share of steps on the student's text, which rises by `step` whenever the validation loss has risen by `tolerance`.

    `if loss >= previous + tolerance: value = min(value + step, 1); previous = loss`, as in the release: `previous` moves
    there alone: it never falls, and each loss is held against that of the last rise. The first loss observed only sets
    `previous`; the release measures it before training, and then after each epoch. Every rank must observe the same loss.
    It is a `Weight`: the same at all steps until the next loss. ValueError for an initial value or a step outside [0, 1], a
    tolerance below 0, and a loss that is not finite.
    """

    def __init__(self, initial: float = 0.0, step: float = 0.1, tolerance: float = 0.1) -> None:
        if not 0 <= step <= 1 or not 0 <= tolerance < math.inf:
            raise ValueError(
                f"a threshold rises by a step in [0, 1] at a tolerance of at least 0, got step={step}, tolerance={tolerance}"
            )
        self.step, self.tolerance = step, tolerance
        self.load_state_dict({"value": initial, "previous": None})

    def observe(self, validation_loss: float) -> None:
        loss = float(validation_loss)
        if not math.isfinite(loss):
            raise ValueError(f"a threshold follows finite validation losses, got {loss}: has the student diverged?")
        if self.previous is None:
            self.previous = loss
        elif loss >= self.previous + self.tolerance:
            self.value, self.previous = min(self.value + self.step, 1.0), loss

    def __call__(self, step: int) -> float:
        return self.value

    def __str__(self) -> str:
        return f"adaptive({self.value:g})"

    def state_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "previous": self.previous}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        value, previous = state["value"], state["previous"]
        if value is None or not 0 <= value <= 1 or not math.isfinite(previous or 0.0):
            raise ValueError(f"a threshold lies in [0, 1] and its last loss is finite, got {state}")
        self.value, self.previous = float(value), previous


class ReplaySampler:
    """For a whole step, by one draw r ~ U(0, 1): the student writes, or what it wrote is replayed, or the dataset's text stays.

    With `new = threshold * (1 - step / total_steps)` ("decreasing"), `threshold / 2` ("constant") or `threshold * step /
    total_steps` ("increasing"):

        r < new, or r < threshold while the buffer is not full    the student writes, and the buffer keeps it
        else r < threshold                                        replay, uniform without replacement within a step
        else                                                      the samples as they are

    The buffer holds the rank's last `capacity` sequences. A replay has prompts of its own, not those it was given. `source`
    says which it was in the last call.

    Ranks that share a sharded student must all generate, or none. So r is a function of seed and step, the same on all
    ranks, and a buffer counts as full when every rank's is: what decides is exchanged in the steps with new <= r < threshold,
    since ranks may have had unlike numbers of sequences. Each rank replays from its own buffer by draws of its own, mixed
    with `rank`. (In the release each rank and micro-batch draws for itself, and steps count from 1; here from 0.)

    ValueError for a threshold outside [0, 1], a step outside [0, total_steps], more sequences than the capacity, and for a
    student that gives importance weights: they compare with the student that wrote, which a replay no longer meets.
    """

    def __init__(
        self,
        student: Sampler,
        threshold: AdaptiveThreshold | Weight,
        total_steps: int,
        capacity: int = 1000,
        schedule: Schedule = "decreasing",
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        if total_steps < 1 or capacity < 1 or rank < 0:
            raise ValueError(
                "a replay needs total_steps >= 1, capacity >= 1 and rank >= 0, "
                f"got total_steps={total_steps}, capacity={capacity}, rank={rank}"
            )
        if schedule not in ("decreasing", "constant", "increasing"):
            raise ValueError(f"a replay's schedule is decreasing, constant or increasing, got {schedule!r}")
        self.student, self.threshold, self.total_steps, self.schedule = student, threshold, total_steps, schedule
        self.capacity, self.seed, self.rank = capacity, seed, rank
        self.buffer: deque[Sample] = deque(maxlen=capacity)
        self.source: Literal["dataset", "student", "replay"] = "dataset"

    def __call__(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        if len(samples) > self.capacity:
            raise ValueError(
                f"a buffer of {self.capacity} sequences never replays a step of {len(samples)}: give a capacity of that or more"
            )
        threshold, new = self.shares(step)
        seed = seed_of(self.seed, step)
        # Strings are hashed into seeds: one stream each, none that of a mixture with the same seed.
        r = random.Random(f"{seed} source").random()
        if r >= threshold:
            self.source = "dataset"
            return list(samples)
        full = len(self.buffer) == self.capacity
        if r >= new and _on_all_ranks(full):
            self.source = "replay"
            return random.Random(f"{seed} replay of rank {self.rank}").sample(self.buffer, len(samples))
        self.source = "student"
        written = list(self.student(samples, step))
        if any(sample.weights is not None for sample in written):
            raise ValueError("a replay keeps no importance weights, got a student that gives them: use one without")
        self.buffer.extend(written)
        return written

    def shares(self, step: int) -> tuple[float, float]:
        """At a step: of the student's text, new and replayed, and of new text once the buffer is full."""
        threshold = weight_at(self.threshold, step, "the threshold")
        if not 0 <= threshold <= 1 or not 0 <= step <= self.total_steps:
            raise ValueError(
                f"a replay needs a threshold in [0, 1] and a step from 0 to {self.total_steps}, "
                f"got threshold {threshold} at step {step}"
            )
        progress = step / self.total_steps
        return threshold, threshold * {"decreasing": 1 - progress, "constant": 0.5, "increasing": progress}[
            self.schedule
        ]

    def state_dict(self) -> dict[str, Any]:
        """This rank's buffer and the threshold's state, in types that `weights_only` reads; the draws need none."""
        ids = [token for sample in self.buffer for token in [*sample.prompt_ids, *sample.response_ids]]
        lengths = [length for sample in self.buffer for length in (len(sample.prompt_ids), len(sample.response_ids))]
        return {
            "ids": torch.tensor(ids, dtype=torch.int64),
            "lengths": torch.tensor(lengths, dtype=torch.int64),  # of prompt, response, prompt, response, ...
            "capacity": self.capacity,
            "threshold": self.threshold.state_dict() if isinstance(self.threshold, AdaptiveThreshold) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError for a state of another capacity or kind of threshold, or whose lengths and ids do not fit together."""
        adaptive = isinstance(self.threshold, AdaptiveThreshold)
        if state["capacity"] != self.capacity or (state["threshold"] is not None) != adaptive:
            raise ValueError(
                f"the state is of capacity {state['capacity']} and threshold {state['threshold']}, this replay of capacity "
                f"{self.capacity} with {'an adaptive' if adaptive else 'a scheduled'} threshold: same config?"
            )
        ids, lengths = state["ids"], state["lengths"].tolist()
        if len(lengths) % 2 or len(lengths) > 2 * self.capacity or sum(lengths) != len(ids):
            raise ValueError(
                f"a buffer's lengths come in pairs, {self.capacity} at most, and sum to its ids, "
                f"got {len(lengths)} that sum to {sum(lengths)} for {len(ids)} ids"
            )
        texts = [text.tolist() for text in ids.split(lengths)] if lengths else []
        self.buffer = deque(map(Sample, texts[::2], texts[1::2]), self.capacity)
        if isinstance(self.threshold, AdaptiveThreshold):
            self.threshold.load_state_dict(state["threshold"])


def _on_all_ranks(own: bool) -> bool:
    """Whether it is so on every rank; all must ask."""
    return all(everyones(own, None))
