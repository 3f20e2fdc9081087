"""What a step has done so far: its micro-batches and their losses, kept until its update is known to be finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gakd.types import Batch


class StepRecord:
    """The micro-batches of one optimizer step on this rank, each with its summed losses; waits for no device while it records."""

    def __init__(self) -> None:
        self._rows: list[tuple[Batch, tuple[str, ...]]] = []
        self._done: list[tuple[Batch | None, dict[str, Tensor]]] = []
        self._sums: dict[str, Tensor] | None = None  # until more is added
        self.updates = 0
        """Updates that the step has made, of any weights."""

    def begin_step(self, batches: Sequence[Batch], rows: Sequence[tuple[str, ...]]) -> None:
        """Forget the step before. `rows` says of each of the step's own batches where its sequences come from."""
        self._rows, self._done, self.updates = list(zip(batches, rows, strict=True)), [], 0
        self._sums = None

    def begin(self, micro_batch: Any) -> None:
        """A micro-batch is about to be used: a `Batch`, or a tuple that begins with one."""
        first = micro_batch[0] if isinstance(micro_batch, tuple) and not isinstance(micro_batch, Batch) else micro_batch
        self._done.append((first if isinstance(first, Batch) else None, {}))

    def add(self, losses: dict[str, Tensor]) -> None:
        """The unreduced losses of the micro-batch that was begun last, or of the step where none was."""
        if not self._done:
            self._done.append((None, {}))
        sums, self._sums = self._done[-1][1], None
        for name, values in losses.items():
            sums[name] = sums[name] + values.sum() if name in sums else values.sum()

    def sums(self) -> dict[str, Tensor]:
        """Each loss, summed over the step so far."""
        if self._sums is None:
            self._sums = {}
            for _, losses in self._done:
                for name, value in losses.items():
                    self._sums[name] = self._sums[name] + value if name in self._sums else value
        return self._sums

    def broken(self, device: torch.device) -> Tensor:
        """1.0 where a loss is not finite, else 0.0, on the device and without waiting for it."""
        sums = [value.float() for value in self.sums().values()]
        return (~torch.stack(sums).isfinite()).any().float() if sums else torch.zeros((), device=device)

    def findings(self) -> list[str]:
        """A line for each loss of a micro-batch that is not finite: which, where, and of which rows."""
        found: list[str] = []
        for index, (batch, losses) in enumerate(self._done):
            rows = next((rows for known, rows in self._rows if known is batch), ())
            of = f" (rows {', '.join(rows)})" if rows else ""
            where = f"micro-batch {index + 1} of {len(self._done)}{of}"
            found += [f"{name} is {float(value)} in {where}" for name, value in losses.items() if not value.isfinite()]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors of all micro-batches and what they gave, for a file that `torch.load(weights_only=True)` reads."""
        return {"micro_batches": [_contents(batch) | {"losses": losses} for batch, losses in self._done]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: a step that is run again records itself."""


def _contents(batch: Batch | None) -> dict[str, Any]:
    if batch is None:
        return {}
    row_values = {} if batch.row_values is None else batch.row_values.values
    return {
        "input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels,
        "row_values": row_values,
    }  # fmt: skip
