"""A teacher in this process: a batch in, its last hidden states of the supervised rows and its head out."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from gakd.models.fingerprints import frozen_mark
from gakd.models.heads import head_of, hidden_rows, prove_again
from gakd.models.lora import base_of
from gakd.models.sharding import shard_model
from gakd.models.streaming import left_of
from gakd.types import Batch, Head, TeacherOutput, check_batch


class LocalTeacher:
    """A frozen model in this process, run once a batch, without gradient and without logits."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        head_of(model)  # proven before anything is read by it

    @property
    def head(self) -> Head:
        return head_of(self.model)

    def mark(self) -> str:
        """A hash of its weights and configuration."""
        return frozen_mark(self.model)

    def shard(self, mesh: DeviceMesh, device: torch.device) -> None:
        """Cut the weights over the ranks of a mesh; each keeps the head whole, which losses read outside the model.

        It is then never gathered: on each rank it takes what one gathering of it would. The model is asked once more, now
        that it is cut.
        """
        base = cast(PreTrainedModel, base_of(self.model))
        embeddings = cast(nn.Module, base.get_output_embeddings())
        if (left := left_of(base)) is not None:
            left.fill(device, lambda module: module is embeddings, None)
        shard_model(self.model, mesh, keep=list(embeddings.to(device).parameters()))
        prove_again(self.model, head_of(self.model))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        check_batch(batch)
        return TeacherOutput(hidden_rows(self.model, batch), self.head)
