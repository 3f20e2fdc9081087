"""What a plan counts for an optimizer, against what that optimizer keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gakd.models import add_lora
from gakd.models.lora import base_of
from gakd.models.parts import tables_of
from gakd.planning.config import PlanConfig
from gakd.planning.estimate import plan
from gakd.run.optimizers import student_optimizer
from tests import tiny


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "sgd"])
def test_the_state_of_an_optimizer_is_counted(name, lora_rank, tmp_path):
    for part in ("student", "teacher"):
        tiny.save(tmp_path / part, tiny.model(width=64, tied=part == "student"), tiny.tokenizer())
    model = tiny.model(width=64)
    model = add_lora(model, lora_rank, 8, 0.0) if lora_rank else model
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = student_optimizer(name, weights, tables_of(base_of(model)), 1e-3, 0.01)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim > 0
    )
    config = PlanConfig(
        str(tmp_path / "student"), str(tmp_path / "teacher"), lora_rank=lora_rank, optimizer=name, length=32, device="cpu",
        readout_width=8, discriminator_width=8, text_examples=0,
    )  # fmt: skip
    planned = plan(config)
    assert planned.phases["forward"].optimizer == kept
    assert (
        plan(replace(config, optimizer="adamw8bit")).phases["forward"].optimizer < 0.6 * 4 * planned.student.trainable
    )
