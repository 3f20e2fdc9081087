"""What happens when a loss or a gradient is not finite: the step is named and kept, and the run stops, or leaves the step out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gakd.errors import RunError
from gakd.run.exchange import everyones, several
from gakd.run.step_record import StepRecord

MOST_IN_A_ROW = 10


class Guard:
    """Decides about steps that are not finite, the same on all ranks; each of them calls it.

    `keep` writes what is needed to run the step again and returns where.
    """

    def __init__(self, action: Literal["stop", "skip"], record: StepRecord, keep: Callable[[], Path]) -> None:
        self.action, self.record, self.keep = action, record, keep
        self._last, self._in_a_row = -1, 0

    def refuse(self, whose: str, norm: float, step: int) -> str:
        """What to say of a step that is left out. RunError where the run is to stop, or has left out too many in a row.

        `norm` is that of the gradient of `whose` weights, which this update has not changed; those before it may have.
        """
        if step != self._last:
            self._in_a_row = self._in_a_row + 1 if step == self._last + 1 else 1
            self._last = step
        findings = _of_all_ranks(self.record.findings()) or ["every loss is finite"]
        happened = f"step {step}: {'; '.join(findings)}; the {whose}'s gradient norm is {norm}"
        if self.action == "skip" and self._in_a_row <= MOST_IN_A_ROW:
            return f"{happened}: the {whose} is not updated"
        if self.action == "skip":
            happened = f"{happened}, after {MOST_IN_A_ROW} steps in a row that were left out"
            remedy = "lower --learning-rate or the term's weight"
        else:
            remedy = "lower --learning-rate or the term's weight, or leave such steps out with --on-nonfinite skip"
        try:
            kept = self.keep()
        except RunError as error:  # what has happened is not to be lost for want of room
            saved = f"the step could not be kept ({str(error).partition(';')[0]})"
        else:
            holds, use = "before this step", f"moved to checkpoints/{kept.name}, --resume runs it again"
            if made := self.record.updates:
                holds, use = (
                    f"after {made} of this step's updates",
                    "not to be resumed from, which would make them twice",
                )
            saved = f"{kept} holds the weights {holds}, its micro-batches and its random state: {use}"
        raise RunError(f"{happened}. The {whose} was not updated; {saved}. Earlier checkpoints are intact; {remedy}")


def _of_all_ranks(findings: list[str]) -> list[str]:
    if not several():
        return findings
    return [f"{finding} on rank {rank}" for rank, own in enumerate(everyones(findings, None)) for finding in own]
