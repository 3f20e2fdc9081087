"""The module that Fabric wraps: student backbone, supervised rows, fused token terms and readouts, in one forward."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from gakd.adversarial import Adversarial
from gakd.fused import token_losses
from gakd.kernel import Kernel
from gakd.models import head_of, hidden_rows
from gakd.objective import Coefficients, Objective
from gakd.types import Batch, Head, StudentOutput, StudentRows, TeacherOutput, TokenTerm


class Distiller(nn.Module):
    """A student and the objective it is trained on.

    Everything that needs the student's head happens inside `forward`, because a sharded head outside it is a fragment.
    The adversary is held, not owned: it stays outside the wrapper, replicated and in fp32.
    """

    def __init__(
        self, student: nn.Module, objective: Objective, chunk_rows: int | None = None, kernel: Kernel = "auto"
    ) -> None:
        super().__init__()
        self.student = student
        self.chunk_rows = chunk_rows
        self.kernel: Kernel = kernel
        self._token_terms = cast("list[TokenTerm]", [term for term in objective if term.unit == "token"])
        adversaries = [term for term in objective if isinstance(term, Adversarial)]
        if len(adversaries) > 1:
            raise ValueError(
                f"an objective holds one adversary, got {[term.name for term in adversaries]}: combine them in a discriminator"
            )
        self._adversary = tuple(adversaries)  # a tuple hides the module from registration

    def forward(self, batch: Batch, teacher: TeacherOutput | None, coefficients: Coefficients) -> StudentOutput:
        hidden_NH = hidden_rows(self.student, batch)
        head = head_of(self.student)
        loss, losses = token_losses(
            hidden_NH,
            head,
            batch.labels_N,
            self._token_terms,
            coefficients.terms,
            teacher,
            self.chunk_rows,
            self.kernel,
        )
        return StudentOutput(loss, losses, self._readout(hidden_NH, head, coefficients))

    def _readout(self, hidden_NH: Tensor, head: Head, coefficients: Coefficients) -> StudentRows | None:
        if not self._adversary or coefficients.terms[self._adversary[0].name] == 0:
            return None
        live_NR = self._adversary[0].readout.live(hidden_NH, head, coefficients.step_rows)
        return StudentRows(live_NR, hidden_NH.detach())
