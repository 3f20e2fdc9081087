"""Generation of a student of Qwen3-0.6B's shape, with random weights: milliseconds a token of all prompts, tokens a second."""

from __future__ import annotations

import random
from typing import Any

import torch

from gakd.samplers.config import Sampling
from gakd.samplers.generation import generate
from tests import tiny
from tests.gpu.setting import Setting, first_line
from tests.gpu.step_part import config_of, random_model

LEAST_SECONDS = 20  # of one batch on a card


def run(setting: Setting) -> None:
    sizes = setting.sizes
    words = tiny.tokenizer(qwen_sized=not setting.dry)
    for dtype in [torch.float32] if setting.dry else [torch.bfloat16, torch.float32]:
        model = random_model(config_of(sizes.student), setting.device, dtype, seed=1).eval()
        for batch in sizes.batches:
            title = {"weights": str(dtype).removeprefix("torch."), "prompts": batch, "new_tokens": sizes.new_tokens}
            if setting.deadline.left < (0 if setting.dry else LEAST_SECONDS):
                setting.report(title | {"left_out": "no time left"})
                continue
            try:
                row = title | _measure(setting, model, words, batch)
            except torch.OutOfMemoryError:
                row = title | {"error": "out of memory"}
            except Exception as error:
                row = title | {"error": first_line(error)}
            setting.meter.forget()
            setting.report(row)
        del model
        setting.meter.forget()


def _measure(setting: Setting, model: torch.nn.Module, words: Any, batch: int) -> dict[str, Any]:
    sizes, draw = setting.sizes, random.Random(0)
    prompts = [
        [draw.randrange(256) for _ in range(draw.randint(sizes.prompt // 2, sizes.prompt))] for _ in range(batch)
    ]
    found = []

    def write(new_tokens: int = sizes.new_tokens) -> None:
        found[:] = generate(model, words, prompts, Sampling(new_tokens), batch_size=batch)

    write(min(sizes.new_tokens, 8))  # what is asked of a model once, and compiled
    peak = setting.meter.peak_bytes(write)
    ms = setting.meter.milliseconds(write)
    lengths = [len(one.response_ids) for one in found]
    if min(lengths) < 1 or max(lengths) > sizes.new_tokens:
        raise ArithmeticError(
            f"asked for 1 to {sizes.new_tokens} tokens a prompt, got {min(lengths)} to {max(lengths)}"
        )
    return {
        "ms": ms, "ms_token": ms / max(lengths), "tokens_per_second": 1e3 * sum(lengths) / ms, "peak_bytes": peak,
    }  # fmt: skip
