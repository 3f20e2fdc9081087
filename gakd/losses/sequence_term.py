"""What a sequence term sees of one micro-batch, what it has to answer, and how its losses join the student's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gakd.types import Batch, Head, TeacherOutput


class SequenceRows(NamedTuple):
    """The student's last hidden states of the supervised rows, with gradient, and what stands beside them.

    `batch.sequence_sums` and `batch.sequence_means` bring what is known of rows, `[N, ...]`, to sequences, `[B, ...]`.
    """

    hidden_NH: Tensor  # at least fp32
    head: Head  # of the student, with gradient where it trains
    teacher: TeacherOutput | None
    batch: Batch

    @property
    def teacher_hidden_NH(self) -> Tensor:
        """The teacher's of the same rows, without gradient. ValueError without a teacher, and for one of some rows only."""
        if self.teacher is None:
            raise ValueError(
                "this term compares with a teacher, but the step has none: pass a TeacherOutput to the distiller"
            )
        if self.teacher.rows is not None:
            raise ValueError(
                f"a term of whole sequences needs the teacher in each of {len(self.hidden_NH)} supervised rows, got "
                f"{len(self.teacher.rows)}: use a teacher of the student's tokenizer"
            )
        return self.teacher.hidden_NH.to(torch.promote_types(self.teacher.hidden_NH.dtype, torch.float32))


class SequenceTerm(Protocol):
    """A loss a sequence: a `Term` with `unit = "sequence"` and this method.

    Its gradient is autograd's, through the rows into the student, and into the parameters of a term that is a module: they
    train with the student's. It may depend on a sequence's own rows alone, or a gradient would depend on the micro-batches.
    """

    name: str
    unit: Literal["token", "sequence"]

    def sequence_losses(self, rows: SequenceRows) -> Tensor:
        """Losses `[B]`; whatever stands at a sequence without supervised rows is left out."""
        ...


def sequence_pass(
    terms: Sequence[SequenceTerm], coefficients: Mapping[str, float], rows: SequenceRows
) -> tuple[Tensor | float, dict[str, Tensor]]:
    """`sum_k c_k sum_b loss_kb`, live, and each term's losses `[B]`, detached; terms whose coefficient is 0 are not asked.

    Computed outside of autocast. ValueError for losses of another shape, or without a gradient to the student.
    """
    loss: Tensor | float = 0.0
    losses: dict[str, Tensor] = {}
    hidden_NH = rows.hidden_NH.to(torch.promote_types(rows.hidden_NH.dtype, torch.float32))
    rows, lengths = rows._replace(hidden_NH=hidden_NH), rows.batch.lengths
    for term in terms:
        if coefficients[term.name] == 0:
            # Data-parallel backends wait for a gradient of every parameter, of those that rest, too.
            own = term.parameters() if isinstance(term, nn.Module) else ()
            loss = loss + sum(0.0 * parameter.sum() for parameter in own)
            continue
        with torch.autocast(hidden_NH.device.type, enabled=False):
            losses_B = term.sequence_losses(rows)
        if not isinstance(losses_B, Tensor) or losses_B.shape != (len(lengths),):
            got = tuple(losses_B.shape) if isinstance(losses_B, Tensor) else type(losses_B).__name__
            raise ValueError(
                f"{term.name}.sequence_losses must return one loss a sequence, ({len(lengths)},), got {got}"
            )
        if hidden_NH.requires_grad and torch.is_grad_enabled() and not losses_B.requires_grad:
            raise ValueError(
                f"the losses of {term.name} have no gradient to the student: compute them of rows.hidden_NH, which has one, "
                f"without detach() or item()"
            )
        if 0 in lengths:
            losses_B = losses_B.masked_fill(rows.batch.sequence_sums(torch.ones_like(hidden_NH[:, 0])) == 0, 0.0)
        loss = loss + coefficients[term.name] * losses_B.sum()
        losses[term.name] = losses_B.detach()
    return loss, losses
