"""What a token pass holds, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gakd.losses.chunks import default_chunk_rows
from gakd.planning.config import PlanConfig
from gakd.planning.estimate import plan

V, H = 49_152, 576  # SmolLM2's vocabulary, the width of the 135M student
SMALL = PlanConfig(
    student="SmolLM2-135M", teacher="SmolLM2-360M", length=128, lora_rank=0, discriminator=False, text_examples=0
)
# Weight of the head, sequences of 64 supervised tokens, bytes of the gradient of logits, of the head's copy and sum.
CASES = {
    "mixed, one chunk": ({}, 4, 2, 2, 4),
    "mixed, chunks": ({"micro_batch_size": 64}, 64, 2, 2, 4),
    "LoRA": ({"lora_rank": 16}, 4, 2, 0, 0),
    "float32": ({"precision": "32-true"}, 4, 4, 0, 4),
    "bfloat16": ({"precision": "bf16-true", "micro_batch_size": 64}, 64, 2, 0, 4),
}


def chunk_of(changes, phase="token losses"):
    return plan(replace(SMALL, **changes)).phases[phase].fused_chunk


@pytest.mark.parametrize("name", CASES)
def test_a_chunk_by_hand(name):
    changes, sequences, gradient, copy, total = CASES[name]
    rows = 64 * sequences
    chunk = rows if rows <= 1024 else default_chunk_rows(rows, V, torch.device("cuda"))
    several = 1 if chunk == rows else 2  # the former chunk's is there while the next is formed
    hidden = (2 if name == "bfloat16" else 4) * rows * H
    assert chunk_of(changes) == chunk * V * (4 + 4 + several * gradient) + (copy + total) * V * H + hidden
    kept = total * V * H + hidden
    assert chunk_of(changes, "backward of losses") == kept + (2 * V * H if name == "bfloat16" else 0)


def test_a_cpu_has_logits_in_float32_whose_place_the_gradient_takes():
    cpu = {"device": "cpu", "micro_batch_size": 64, "precision": "32-true"}
    rows = default_chunk_rows(64 * 64, V, torch.device("cpu"))
    static = 4 * (rows * 2 * V + V * H + 64 * 64 * H)
    assert static < chunk_of(cpu) < static + 4 * rows * V
