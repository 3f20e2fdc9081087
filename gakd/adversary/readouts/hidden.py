"""A readout of hidden states: what a model computes before its head says anything about tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gakd.types import Head


class HiddenReadout(nn.Module):
    """The last hidden states themselves, `[N, R]`, R the teacher's width; penalties are norms of gradients with respect to them.

    A student of another width is mapped to the teacher's by a linear `student_map`. It plays on the student's side: trained by
    the student's optimizer to be taken for the teacher, never by the discriminator, which could tell the two apart by
    the map alone. None where the widths agree. Raises ValueError for heads of other widths.
    """

    needs_log_normalizers = False

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.student_width, self.teacher_width = student_width, teacher_width
        student_map = None
        if student_width != teacher_width:
            student_map = nn.Linear(student_width, teacher_width, bias=False)
            nn.init.normal_(student_map.weight, std=1 / math.sqrt(student_width))
        self._student_map = (student_map,)  # in a tuple: it is no parameter of the adversary's
        self._rows: list[Tensor] = []  # of the micro-batch in hand

    @property
    def width(self) -> int:
        return self.teacher_width

    @property
    def student_map(self) -> nn.Linear | None:
        return self._student_map[0]

    def live(self, hidden_NH: Tensor, head: Head, step_rows: float, log_normalizers_N: Tensor | None = None) -> Tensor:
        self._check(hidden_NH, "student", self.student_width)
        with torch.autocast(hidden_NH.device.type, enabled=False):
            if self.student_map is not None:
                weight_RH = self.student_map.weight
                hidden_NH = linear(hidden_NH.to(weight_RH.dtype), weight_RH)
            rows_NR = _full_precision(hidden_NH)
        self._rows = [rows_NR.detach()]
        return rows_NR

    def detached(
        self, hidden_NH: Tensor, head: Head | None, step_rows: float, log_normalizers_N: Tensor | None = None
    ) -> Tensor:
        if head is None:
            if not self._rows:
                raise RuntimeError("this micro-batch has no student's rows: call `live` before `detached`")
            return self._rows.pop()
        self._check(hidden_NH, "teacher", self.teacher_width)
        return _full_precision(hidden_NH.detach())

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        return gradient_BTR.square().sum((1, 2))

    def flush(self) -> None:
        self._rows = []

    def _check(self, hidden_NH: Tensor, owner: str, width: int) -> None:
        if hidden_NH.shape[-1] != width:
            raise ValueError(
                f"the readout was built for hidden states of width {width}, the {owner}'s have {hidden_NH.shape[-1]}: "
                f"build it with both models' widths"
            )


def _full_precision(rows_NR: Tensor) -> Tensor:
    """Discriminators are fp32, whatever the models are."""
    return rows_NR.to(torch.promote_types(rows_NR.dtype, torch.float32))
