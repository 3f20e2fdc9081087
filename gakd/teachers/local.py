"""A teacher in this process: a batch in, its last hidden states of the supervised rows and its head out."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from gakd.models.fingerprints import frozen_mark
from gakd.models.heads import head_of, hidden_rows, prove_again
from gakd.models.sharding import shard_model
from gakd.types import Batch, Head, TeacherOutput


class LocalTeacher:
    """A frozen model in this process, run once a batch, without gradient and without logits."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        head_of(model)  # proven before anything is read by it
        self._whole_head: Head | None = None

    @property
    def head(self) -> Head:
        return self._whole_head or head_of(self.model)

    def mark(self) -> str:
        """A hash of its weights and configuration."""
        return frozen_mark(self.model)

    def shard(self, mesh: DeviceMesh, device: torch.device) -> None:
        """Cut the weights over the ranks of a mesh; each keeps the head whole, which losses read outside the model."""
        head = head_of(self.model)
        bias = None if head.bias is None else head.bias.detach().to(device)
        self._whole_head = head._replace(weight=head.weight.detach().to(device), bias=bias)
        shard_model(self.model, mesh)
        prove_again(self.model, self._whole_head)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        return TeacherOutput(hidden_rows(self.model, batch), self.head)
