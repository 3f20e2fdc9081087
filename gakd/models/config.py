"""The flags of a pair of models, which import no torch: a command line is read before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gakd.extras import Need
from gakd.models.wheel import reading_needs

ALL_LINEAR = "all-linear"
LORA = Need("LoRA", ("peft",), "lora", "train all weights with --lora-rank 0")


@dataclass
class ModelConfig:
    """Who learns from whom."""

    student: str = "Qwen3-0.6B"
    """The student: a folder, a hub id or a name such as Qwen3-0.6B; usually fine-tuned by baselines/sft.py first."""
    teacher: str | None = "Qwen3-8B"
    """The teacher, of the same tokenizer (uld.py: any); None, where a recipe can do without, leaves out the comparison."""
    teacher_cache: Path | None = None
    """Folder that `gakd cache` made of --teacher and this data: trains without loading the teacher."""
    student_layers: tuple[int, ...] = ()
    """Decoder layers of the student to keep: one number keeps that many, evenly spaced; several are indices. None: all."""
    lora_rank: int = 16
    """Rank of the student's LoRA; 0 trains all weights. [16]"""
    lora_alpha: int = 32
    """Scale of LoRA's update: it is multiplied by alpha / rank. [32]"""
    lora_dropout: float = 0.1
    """Dropout of LoRA's inputs, 0 to 1. [0.1]"""
    lora_targets: tuple[str, ...] = (ALL_LINEAR,)
    """Linear layers with LoRA: all-linear (but the head), paper (its seven), or names such as q_proj v_proj. [paper]"""
    router_balance_weight: float | None = None
    """Weight of the load balancing of a mixture-of-experts student's routers, per sequence. None: its configuration's, if any."""
    activation_checkpointing: bool = False
    """Keep only the student's layer inputs and recompute the rest in the backward: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model's files. It can do anything on this machine: read it first."""

    def needs(self) -> Iterator[Need]:
        """What these flags cannot do without."""
        if self.lora_rank:
            yield LORA
        for name in filter(None, (self.student, self.teacher)):
            yield from reading_needs(name)
