"""What flows through one step: batches, rows of hidden states, heads. Imports torch only.

Shape legend, used as suffixes of tensor names everywhere:

- `B` sequences of a micro-batch, `T` positions, `V` vocabulary, `H` hidden width, `R` readout width
- `N` supervised rows: the positions of `[B, T]` whose label is not `IGNORE_INDEX`, in row-major order
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

IGNORE_INDEX = -100


class Batch(NamedTuple):
    """One micro-batch, right-padded; labels are already shifted, nothing downstream shifts again.

    `labels[b, t]` is the token that follows `input_ids[b, t]` where that token belongs to the response (its end-of-text
    token included), and `IGNORE_INDEX` on the prompt and on padding.
    """

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64, 1 = token, 0 = padding
    labels: Tensor  # [B, T] int64

    @property
    def mask(self) -> Tensor:
        """`[B, T]` bool, True where a token is supervised."""
        return self.labels != IGNORE_INDEX

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Head(NamedTuple):
    """How a model turns a hidden state into logits: `softcap(scale * (hidden @ weight.T + bias))`.

    `softcap(z) = cap * tanh(z / cap)` where `softcap` is set. Order and names follow transformers: Cohere's `logit_scale`
    and Granite's `1 / logits_scaling` are `scale`, Gemma's `final_logit_softcapping` is `softcap`.
    """

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    def logits(self, hidden_NH: Tensor, vocab_size: int | None = None) -> Tensor:
        """Logits `[N, vocab_size]` in fp32 (fp64 from an fp64 head); `vocab_size` cuts the padded end of a wider head off."""
        weight, bias = self.weight[:vocab_size], None if self.bias is None else self.bias[:vocab_size]
        logits = torch.nn.functional.linear(hidden_NH.to(weight.dtype), weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


class TokenChunk:
    """Some rows of one micro-batch, as a token term sees them: log-probabilities of both models, and labels.

    Probabilities are formed on first use and shared by the terms of one pass.
    """

    def __init__(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor | None, labels_N: Tensor) -> None:
        self.student_log_probs_NV = student_log_probs_NV
        self._teacher_log_probs_NV = teacher_log_probs_NV
        self.labels_N = labels_N

    @property
    def teacher_log_probs_NV(self) -> Tensor:
        if self._teacher_log_probs_NV is None:
            raise ValueError(
                "this term compares with a teacher, but the step has none: pass a TeacherOutput to the distiller"
            )
        return self._teacher_log_probs_NV

    @cached_property
    def student_probs_NV(self) -> Tensor:
        return self.student_log_probs_NV.exp()

    @cached_property
    def teacher_probs_NV(self) -> Tensor:
        return self.teacher_log_probs_NV.exp()


class TokenTerm(Protocol):
    """A loss per supervised token, with its gradient: what the fused engine runs chunk by chunk."""

    name: str
    needs_teacher: bool

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        """Losses `[N]`."""
        ...

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        """Losses `[N]` and d(loss of the row)/d(student logits) `[N, V]`, both without graph; may not write to the chunk."""
        ...


class TeacherOutput:
    """The teacher's last hidden states of the supervised rows, and its head; logits are formed chunk by chunk, later.

    A plain object, so that Fabric neither casts nor copies what it holds when it crosses a wrapped forward.
    """

    def __init__(self, hidden_NH: Tensor, head: Head) -> None:
        self.hidden_NH = hidden_NH
        self.head = head

    def logits(self) -> Tensor:
        """All logits `[N, V]` at once: for inspection and tests, never for training."""
        return self.head.logits(self.hidden_NH)


class StudentRows(NamedTuple):
    """What an adversary needs of the student's supervised rows."""

    live_NR: Tensor  # what the discriminator sees, with gradient to the student
    hidden_NH: Tensor  # detached; the head's projection was formed in the forward, where a sharded head is whole


class StudentOutput(NamedTuple):
    """What one forward of the distiller returns. Named tuples, so that FSDP2 finds the tensors that need its hooks."""

    loss: Tensor  # scalar: sum of the token terms, each times its coefficient; its gradient is already formed
    token_losses: dict[str, Tensor]  # term name -> [N], unreduced, without gradient
    readout: StudentRows | None  # None where no adversary plays this step
