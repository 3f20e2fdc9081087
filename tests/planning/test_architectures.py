"""The planner over all architectures that transformers can build: it answers, and counts what the real model has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from gakd.errors import InputError
from gakd.models import add_lora
from gakd.models.loading import kind_of
from gakd.models.parts import idle_parameters
from gakd.planning.config import PlanConfig
from gakd.planning.estimate import plan
from gakd.planning.footprint import shape
from gakd.planning.weights import Adapters
from tests.architectures import ARCHITECTURES, ASKS_FOR_VALUES, tiny_config

QUICK = {"Qwen3-MoE", "LFM2", "Gemma 3"}
# One of each kind, since each takes three plans.
KINDS = {
    "Llama", "GPT-2", "OPT", "Gemma 2", "Gemma 3n (text)", "Gemma 4 (text)", "Llama 4 (text)", "Mixtral", "DeepSeek-V3",
    "gpt-oss", "Falcon-H1", "Mamba 2", "Jamba", "Zamba2", "Qwen3.5 (text)", "RWKV", "xLSTM", "MiniCPM3", "HRM-Text",
    "Qwen2.5-VL", "OpenAI GPT",
} | QUICK  # fmt: skip


def of(names: Iterable[str]) -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


BASE = PlanConfig(teacher=None, length=16, micro_batch_size=2, lora_rank=0, discriminator=False)


@pytest.mark.parametrize("name", of(ARCHITECTURES))
def test_what_a_model_has_is_counted(name):
    config = tiny_config(name)
    if name in ASKS_FOR_VALUES:
        with pytest.raises(InputError, match="cannot be planned") as error:
            shape(config, (), Adapters())
        assert "\n" not in str(error.value)
        return
    model = kind_of(config, name).from_config(config, dtype=torch.float32)
    idle = sum(parameter.numel() for parameter in idle_parameters(model).values())
    whole = sum(parameter.numel() for parameter in model.parameters())
    full, _ = shape(config, (), Adapters())
    assert (full.parameters, full.trainable, full.idle) == (whole, whole - idle, idle)
    assert full.in_layers <= full.layers * full.layer
    assert full.active <= whole - idle
    adapted = add_lora(model, 4, 8, 0.1)
    lora, _ = shape(config, (), Adapters(4, 0.1))
    assert lora.trainable == sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert lora.parameters == sum(parameter.numel() for parameter in adapted.parameters())


@pytest.mark.parametrize("name", of(name for name in ARCHITECTURES if name in KINDS))
def test_a_plan_answers_or_says_why_not(name, tmp_path):
    """Pruned to half the layers, cut over devices, recomputed: where a model cannot be, the plan says so as the run would."""
    config = tiny_config(name)
    config.save_pretrained(tmp_path)
    for changes in (
        {"lora_rank": 4, "student_layers": (2,)},
        {"strategy": "fsdp2", "devices": 2},
        {"activation_checkpointing": True},
    ):
        try:
            answer = plan(PlanConfig(**(vars(BASE) | {"student": str(tmp_path)} | changes)))
        except InputError as error:
            answer = str(error)
        if isinstance(answer, str):
            assert "\n" not in answer
            assert any(words in answer for words in ("cannot be p", "neither pruned nor cut", "cannot recompute"))
        else:
            assert answer.peak > 0
