"""Teachers: a batch in, the teacher's last hidden states of the supervised rows and its head out."""

from __future__ import annotations

import torch
from torch import nn

from gakd.models import head_of, hidden_rows
from gakd.types import Batch, TeacherOutput


class LocalTeacher:
    """A frozen model in this process, run once a batch, without gradient and without logits."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        return TeacherOutput(hidden_rows(self.model, batch), head_of(self.model))
