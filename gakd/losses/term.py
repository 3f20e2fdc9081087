"""What a token term sees, some rows of one micro-batch at a time, and what it has to answer. Imports torch only."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class LogProbs:
    """Log-probabilities `[N, V]` of some rows: given, or formed from logits when they are first asked for.

    `log q = (z - highest) + log_highest`, floored: to an ulp of itself, not of the logits, which may be large. What asks for
    the labels' alone forms no others. With `in_place` they take the logits' place, which are then used up.
    """

    def __init__(
        self, values_NV: Tensor, highest_N1: Tensor | None = None, log_highest_N1: Tensor | None = None,
        floor: float = 0.0, in_place: bool = False,
    ) -> None:  # fmt: skip
        self._values_NV = values_NV  # logits until `_highest_N1` is None
        self._highest_N1, self._log_highest_N1 = highest_N1, log_highest_N1
        self._floor, self._in_place = floor, in_place

    def all(self) -> Tensor:
        """`[N, V]`."""
        if self._highest_N1 is not None:
            subtract = self._values_NV.sub_ if self._in_place else self._values_NV.sub
            self._values_NV = self._finished_(subtract(self._highest_N1))
            self._highest_N1 = None
        return self._values_NV

    def of(self, tokens_N: Tensor) -> Tensor:
        """`[N]`, each row's own token: the same numbers as in `all`."""
        found_N1 = self._values_NV.gather(-1, tokens_N.unsqueeze(-1))
        if self._highest_N1 is not None:
            found_N1 = self._finished_(found_N1.sub_(self._highest_N1))
        return found_N1.squeeze(-1)

    def _finished_(self, below_NV: Tensor) -> Tensor:
        assert self._log_highest_N1 is not None
        return below_NV.add_(self._log_highest_N1).clamp_(min=self._floor)


class TokenChunk:
    """Some rows of one micro-batch, as a token term sees them: log-probabilities of both models, and labels.

    Both are over the shared vocabulary; where there is none, only terms that do without it see the chunk, and the
    teacher's are over its own. Probabilities that are not given are formed on first use, and shared by the terms of a pass.
    """

    def __init__(
        self, student_log_probs: Tensor | LogProbs, teacher_log_probs: Tensor | LogProbs | None, labels_N: Tensor,
        student_probs_NV: Tensor | None = None, teacher_probs_NV: Tensor | None = None,
        row_values: dict[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self._student = student_log_probs if isinstance(student_log_probs, LogProbs) else LogProbs(student_log_probs)
        self._teacher = LogProbs(teacher_log_probs) if isinstance(teacher_log_probs, Tensor) else teacher_log_probs
        self.labels_N = labels_N
        # Not cached properties: their lock ends a compiled graph.
        self._student_probs_NV, self._teacher_probs_NV = student_probs_NV, teacher_probs_NV
        self._row_values = row_values or {}

    def with_student(self, student_log_probs_NV: Tensor) -> TokenChunk:
        """The same rows with other log-probabilities of the student, say a leaf to differentiate."""
        return TokenChunk(
            student_log_probs_NV,
            self._teacher,
            self.labels_N,
            None,
            self._teacher_probs_NV,
            self._row_values,
        )

    def row_value(self, name: str, default: float | None = None) -> Tensor | float:
        """`[N]`, what the batch says of these rows under that name; else the default, or ValueError without one."""
        if name not in self._row_values:
            if default is not None:
                return default
            raise ValueError(
                f"a term reads {name} of each row, the batch has {sorted(self._row_values)}: add it with "
                "Batch.with_row_values"
            )
        return self._row_values[name]

    def student_log_probs_of_labels(self) -> Tensor:
        """`[N]`; cheaper than all log-probabilities, where no term of the pass asks for those."""
        return self._student.of(self.labels_N)

    @property
    def student_log_probs_NV(self) -> Tensor:
        return self._student.all()

    @property
    def teacher_log_probs_NV(self) -> Tensor:
        return self._teachers().all()

    @property
    def student_probs_NV(self) -> Tensor:
        if self._student_probs_NV is None:
            self._student_probs_NV = self.student_log_probs_NV.exp()
        return self._student_probs_NV

    @property
    def teacher_probs_NV(self) -> Tensor:
        if self._teacher_probs_NV is None:
            self._teacher_probs_NV = self.teacher_log_probs_NV.exp()
        return self._teacher_probs_NV

    def _teachers(self) -> LogProbs:
        if self._teacher is None:
            raise ValueError(
                "this term compares with a teacher, but the step has none: pass a TeacherOutput to the distiller"
            )
        return self._teacher


class TokenTerm(Protocol):
    """A loss per supervised token, with its gradient: what the fused engine runs chunk by chunk."""

    name: str
    needs_teacher: bool
    needs_shared_vocabulary: bool  # whether it compares token with token; read of terms that need a teacher
    temperature: float  # both models' logits are divided by it before the softmax; the chunk is already at it

    @property
    def scale(self) -> float:
        """Multiplies losses and gradient: temperature^2, or 1 where that factor is switched off."""
        ...

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        """Losses `[N]`, before `scale`."""
        ...

    def accumulate_(
        self, chunk: TokenChunk, coefficient: float | Tensor, total_NV: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Losses `[N]` before `scale`, and `total + coefficient * d(loss of the row)/d(student log-probabilities)`.

        Without graph. The gradient may leave out any multiple of the student's probabilities, a row's own, which the
        softmax cancels. The coefficient is a scalar tensor in a compiled pass, which else would be compiled anew for every
        value. `total_NV` may be written to and is None for the first term of a pass; the chunk may not be.
        """
        ...
