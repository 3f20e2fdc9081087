"""The demo's settings, shared by every recipe: an embedded teacher, a student cut from it, real text, two CPU cores."""

from __future__ import annotations

from pathlib import Path

from gakd.data import DataConfig
from gakd.evaluation import EvaluationConfig
from gakd.models import ModelConfig
from gakd.training import RunConfig

MODELS = ModelConfig(
    student="SmolLM2-135M-Instruct", teacher="SmolLM2-135M-Instruct", student_layers=(10,), lora_rank=0
)
DATA = DataConfig(dataset="docstrings", max_length=128, max_prompt_length=88)
EVALUATION = EvaluationConfig(examples=48, text_examples=32, max_new_tokens=40)


def run_config(output_dir: str) -> RunConfig:
    """A budget of minutes, and a learning rate for a student that lost two thirds of its layers."""
    return RunConfig(
        output_dir=Path(output_dir),
        steps=50,
        batch_size=8,
        micro_batch_size=8,
        learning_rate=1e-3,
        warmup_steps=5,
        evaluate_every=10,
        save_every=30,
        keep_checkpoints=1,
    )
