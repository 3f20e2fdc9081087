"""The demo's settings, shared by every recipe: an embedded teacher, a student cut from it, real text, two CPU cores."""

from __future__ import annotations

from pathlib import Path

from gakd.data.config import DataConfig
from gakd.evaluation.config import EvaluationConfig
from gakd.models.config import ModelConfig
from gakd.run.config import RunConfig
from gakd.samplers.config import TeacherTextConfig

MODELS = ModelConfig(
    student="SmolLM2-135M-Instruct", teacher="SmolLM2-135M-Instruct", student_layers=(10,), lora_rank=0
)
DATA = DataConfig(dataset="docstrings", max_length=160, max_prompt_length=88)
TEACHER_TEXT = TeacherTextConfig(teacher_max_new_tokens=40, generation_batch_size=32)
EVALUATION = EvaluationConfig(examples=48, text_examples=32, valid_text_examples=8, max_new_tokens=40)


def run_config(output_dir: str) -> RunConfig:
    """A budget of minutes, and a learning rate for a student that lost two thirds of its layers."""
    return RunConfig(
        output_dir=Path(output_dir),
        steps=80,
        batch_size=4,
        micro_batch_size=4,
        learning_rate=7e-4,
        warmup_steps=4,
        evaluate_every=20,
        save_every=40,
        keep_checkpoints=1,
    )
