"""Run folders with known numbers, written by what writes real ones, for tests of `gakd report`."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gakd.evaluation import Evaluation
from gakd.logging import MetricsLog

LOSSES = {
    "gakd": ("cross_entropy", "reverse_kl", "adversarial"),
    "reverse_kl": ("cross_entropy", "reverse_kl"),
    "sft": ("cross_entropy",),
}
FINAL = {"gakd": 1.62, "reverse_kl": 1.70, "sft": 1.66}  # cross entropy that a method ends near
PROMPTS = (
    ("Explain in two sentences why the sky is blue.", "",
     "Air scatters short wavelengths of sunlight more than long ones. Blue light therefore reaches the eye from all sides."),
    ("Which of these is a mammal?", "Trout, dolphin, sparrow", "The dolphin is a mammal."),
    ("Write a function that returns the n-th Fibonacci number.", "",
     "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a"),
)  # fmt: skip


def config_of(recipe: str, seed: int, steps: int | None) -> dict[str, Any]:
    weights = {f"{name}_weight": 0.5 for name in LOSSES[recipe]}
    return {
        **weights,
        "models": {"student": "Qwen3-0.6B", "teacher": None if recipe == "sft" else "Qwen3-8B", "student_layers": []},
        "data": {"dataset": "dolly", "max_length": 512},
        "run": {
            "output_dir": f"runs/{recipe}-s{seed}",
            "resume": False,
            "seed": seed,
            "steps": steps,
            "save_every": 200,
        },
        "evaluation": {"examples": 256, "text_examples": 3, "sampling_temperature": 1.0},
    }


def evaluation_of(cross_entropy: float, distilled: bool, texts: list[str]) -> dict[str, Any]:
    """Numbers that follow from the cross entropy, so that a test can tell them apart."""
    divergence = cross_entropy - 1.4 if distilled else None
    own = None if divergence is None else 0.8 * divergence
    return asdict(
        Evaluation(
            cross_entropy, divergence, None if divergence is None else 1.1 * divergence, 40 - 10 * cross_entropy, 0.0,
            60 + 10 * cross_entropy, 0.9, own, texts, [10],
        )
    )  # fmt: skip


def write_run(
    folder: Path, recipe: str = "gakd", seed: int = 1, steps: int = 40, accuracy: float | None = None,
    planned: int | None = None, after: bool = True, texts: list[str] | None = None,
    prompts: Sequence[tuple[str, str, str]] = PROMPTS,
) -> Path:  # fmt: skip
    """A run's folder. `accuracy`: at every step, None lets it wander; `planned`: steps, if more than done."""
    folder.mkdir(parents=True)
    draw, distilled = random.Random(f"{recipe}{seed}"), recipe != "sft"
    (folder / "config.json").write_text(json.dumps(config_of(recipe, seed, planned or steps), indent=2))
    end = FINAL[recipe] + 0.01 * seed
    write = [f"{recipe} {seed}: {reference}" for _, _, reference in prompts] if texts is None else texts
    start = {"recipe": recipe, "student": evaluation_of(2.9, distilled, ["the the the"] * len(prompts))}
    if distilled:
        start["teacher"] = evaluation_of(1.4, True, [reference for _, _, reference in prompts])
    start["examples"] = [{"instruction": a, "input": b, "responses": [c]} for a, b, c in prompts]
    (folder / "before.json").write_text(json.dumps(start))
    log = MetricsLog(folder / "metrics.csv")
    for step in range(1, steps + 1):
        progress = math.exp(-4 * step / steps)
        row = {"cross_entropy": end + (2.9 - end) * progress + draw.gauss(0, 0.03)}
        if distilled:
            row["reverse_kl"] = 0.2 + 1.1 * progress + abs(draw.gauss(0, 0.03))
        if not step % max(steps // 8, 1):
            valid = {"cross_entropy": row["cross_entropy"], "rouge_l": 11 + 12 * (1 - progress) + draw.gauss(0, 0.5)}
            log.append(step, {f"valid/{name}": value for name, value in valid.items()})
        if recipe == "gakd" and step > 2:
            hit = min(max(round(32 * (0.75 + draw.gauss(0, 0.08))) / 32, 0.0), 0.96875)
            margin = 1.5 + draw.gauss(0, 0.3)
            row |= {
                "adversarial": math.log1p(math.exp(margin)), "discriminator": math.log1p(math.exp(-margin)),
                "discriminator_penalty": 0.4 + abs(draw.gauss(0, 0.1)), "discriminator_margin": margin,
                "discriminator_accuracy": hit if accuracy is None else accuracy,
            }  # fmt: skip
        row |= {
            "padding": 0.02,
            "gradient_norm": math.exp(draw.gauss(0, 0.4)),
            "learning_rate": 5e-5 * (1 - step / (steps + 1)),
        }
        log.append(step, row | {"tokens": 4000 + draw.randrange(100), "tokens_per_second": 20000.0 + 100 * seed})
    if after:
        scores = {"student": evaluation_of(end, distilled, write)}
        (folder / "after.json").write_text(json.dumps(scores, indent=2))
    return folder
