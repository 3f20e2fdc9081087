"""What the moments of a plan share: the models, and the precisions and numbers that follow from the flags."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from gakd.planning.config import PlanConfig
from gakd.planning.footprint import Shape
from gakd.planning.weights import Adapters

HALF, FLOAT32 = 2, 4  # bytes


@dataclass(frozen=True)
class Setting:
    """What the phases share."""

    config: PlanConfig
    student: Shape
    teacher: Shape | None
    student_config: PreTrainedConfig
    teacher_config: PreTrainedConfig | None

    @property
    def on_gpu(self) -> bool:
        return self.config.device == "cuda"

    @property
    def precision(self) -> str:
        automatic = "bf16-mixed" if self.on_gpu else "32-true"
        return automatic if self.config.precision == "auto" else self.config.precision

    @property
    def dtype(self) -> torch.dtype:
        """Of the student's weights, gradients and moments, and of its hidden states."""
        return torch.bfloat16 if self.precision == "bf16-true" else torch.float32

    @property
    def teacher_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def mixed(self) -> bool:
        return self.precision == "bf16-mixed"

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Of weights that LoRA leaves as they are: 16 bits on a GPU where products round them to these anyway."""
        half = self.on_gpu and self.precision.startswith("bf16") and self.config.lora_rank > 0
        return torch.bfloat16 if half else self.dtype

    @property
    def layer_dtype(self) -> torch.dtype:
        """Of the layers' trained weights as a forward has them: FSDP2 gathers them in the precision of the products."""
        return torch.bfloat16 if self.mixed and self.parts > 1 else self.dtype

    def student_bytes(self, entries: int, trained: int) -> int:
        """Of so many of the student's weights, of which so many are trained, as the device keeps them."""
        return self.bytes * trained + self.frozen_dtype.itemsize * (entries - trained)

    @property
    def teacher_bytes(self) -> int:
        return self.teacher_dtype.itemsize

    @property
    def teacher_entries(self) -> int:
        if self.teacher is None:
            return 0
        return self.teacher.head if self.config.teacher_cache else self.teacher.parameters

    @property
    def world_size(self) -> int:
        return self.config.devices * self.config.num_nodes

    @property
    def parts(self) -> int:
        """Into how many parts weights are cut."""
        return self.world_size if self.config.strategy == "fsdp2" else 1

    @property
    def supervised(self) -> int:
        """Supervised tokens of a sequence."""
        return max(round(self.config.length * self.config.response_share), 1)

    @property
    def rows(self) -> int:
        return self.config.micro_batch_size * self.supervised

    @property
    def plays(self) -> bool:
        return self.config.discriminator and self.teacher is not None

    @property
    def vocab_size(self) -> int:
        return min(shape.vocab_size for shape in (self.student, self.teacher) if shape is not None)


def adapters(config: PlanConfig) -> Adapters:
    """The student's LoRA."""
    return Adapters(config.lora_rank, config.lora_dropout, config.lora_targets)
