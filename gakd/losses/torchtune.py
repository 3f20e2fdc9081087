"""Losses of torchtune as token terms: anything that maps logits and labels to one number."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gakd.losses.term import TokenChunk
from gakd.losses.token_loss import Divergence, Temperature
from gakd.objective import snake_case


def from_torchtune(loss: nn.Module, name: str | None = None, temperature: Temperature = 1.0) -> Divergence:
    """A torchtune loss as a term: `from_torchtune(SymmetricKLLoss(0.3))`, chunked or not, with a teacher or without.

    Losses of `(student_logits, teacher_logits, labels)` and of `(logits, labels)` are taken. They return sums or means over
    rows; here they are asked row by row, so that this package divides once, by the counts of the whole step. Values are as
    torchtune defines them: its forward KL leaves out the teacher's entropy. Gradients come from autograd, in the engine's
    chunks; a loss with `normalize` is asked for all rows at once (`torch.vmap`), any other in a loop. torchtune itself is not
    imported. Raises TypeError for losses of anything but logits.
    """
    return _TorchtuneLoss(loss, name or f"torchtune_{snake_case(type(loss).__name__)}", temperature)


class _TorchtuneLoss(Divergence):
    def __init__(self, loss: nn.Module, name: str, temperature: Temperature) -> None:
        super().__init__(temperature, name=name)
        arguments = list(inspect.signature(loss.forward).parameters)
        self.needs_teacher = arguments[:3] == ["student_logits", "teacher_logits", "labels"]
        if not self.needs_teacher and arguments[:2] != ["logits", "labels"]:
            raise TypeError(
                f"a token term needs a loss of (student_logits, teacher_logits, labels) or (logits, labels), got "
                f"{type(loss).__name__} of ({', '.join(arguments)}): write a Divergence instead"
            )
        self._loss = loss
        self._at_once = "normalize" in arguments
        self._chunked = hasattr(loss, "num_output_chunks")

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        """Row by row; log-probabilities are logits, whose log-softmax leaves them as they are."""
        logits = [chunk.student_log_probs_NV] + ([chunk.teacher_log_probs_NV] if self.needs_teacher else [])
        of_row = self._of_row()
        if self._at_once:
            return torch.vmap(of_row)(*logits, chunk.labels_N)
        rows = zip(*logits, chunk.labels_N, strict=True)
        return torch.stack([of_row(*row) for row in rows])

    def _of_row(self) -> Callable[..., Tensor]:
        options: dict[str, Any] = {"normalize": False} if self._at_once else {}

        def loss_of(*row: Tensor) -> Tensor:
            *logits, label = row
            if self._chunked:  # lists of chunks [batch, tokens, V]: one chunk of one token
                return self._loss(*([[own_V[None, None]] for own_V in logits]), label[None, None], **options)
            return self._loss(*(own_V[None] for own_V in logits), label[None], **options)

        return loss_of
