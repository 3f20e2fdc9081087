"""What lies on one device at the moments of a training step that may be its peak."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from gakd.losses.chunks import default_chunk_rows
from gakd.losses.kernel import block_rows
from gakd.planning.config import Parts, PlanConfig
from gakd.planning.footprint import Shape
from gakd.planning.loss_footprint import discriminator_entries, game_bytes, row_bytes
from gakd.planning.tracing import reader_activations, student_activations
from gakd.planning.weights import Adapters

FLOAT32 = 4  # bytes


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


def phases(setting: Setting) -> dict[str, Parts]:
    """What lies on a device at each moment of a step that may be its peak."""
    config, student, teacher = setting.config, setting.student, setting.teacher
    sequences = config.micro_batch_size
    backbone = student_activations(
        setting.student_config, sequences, config.length, setting.supervised, adapters(config),
        setting.dtype, setting.precision == "bf16-mixed", config.activation_checkpointing, setting.on_gpu,
    )  # fmt: skip
    chunk = _chunk(setting)
    head_gradient = student.head * setting.bytes if student.head_trains else 0
    hidden = setting.rows * student.width * setting.bytes
    kept_of_losses = head_gradient + hidden
    game_forward, game_kept = 0, 0
    if setting.plays and teacher is not None:
        widths, dtypes = (student.width, teacher.width), (setting.dtype, setting.teacher_dtype)
        game = game_bytes(
            config.readout_width, config.discriminator_width, widths, sequences, setting.supervised, dtypes
        )
        game_forward, game_kept = game.forward, game.kept

    held = _held(setting)
    found: dict[str, Parts] = {}
    if teacher is not None and setting.teacher_config is not None and not config.teacher_cache:
        reading = reader_activations(
            setting.teacher_config, sequences, config.length, setting.supervised, setting.teacher_dtype
        )
        gathered = setting.teacher_bytes * _gathered(setting, teacher)
        found["teacher"] = replace(held, teacher=held.teacher + reading + gathered)
    whole = replace(held, weights=held.weights + setting.bytes * _gathered(setting, student))
    found["forward"] = replace(whole, activations=backbone.forward)
    found["token losses"] = replace(whole, activations=backbone.inside, fused_chunk=chunk)
    if setting.plays:
        found["game"] = replace(
            whole, activations=backbone.kept, fused_chunk=kept_of_losses,
            discriminator=held.discriminator + game_forward,
        )  # fmt: skip
    # Both losses' gradients of the head meet at once; of tied weights, their sum waits for the embeddings' at the end.
    found["backward of losses"] = replace(
        whole, activations=backbone.kept, fused_chunk=kept_of_losses + (head_gradient if setting.plays else 0),
        discriminator=held.discriminator + game_kept,
    )  # fmt: skip
    waiting = head_gradient if student.tied else 0
    layers = replace(whole, activations=backbone.backward, fused_chunk=waiting + hidden)
    found["backward of layers"] = replace(
        layers, gradients=held.gradients + _unreduced(setting, student.trainable_layer)
    )
    reduced = setting.bytes * student.trainable // setting.parts + _buckets(setting)
    embeddings = setting.bytes * min(student.embedding, student.trainable_rest)
    found["backward of embeddings"] = replace(
        whole,
        gradients=max(held.gradients, reduced) + embeddings + _unreduced(setting, student.trainable_rest),
        fused_chunk=waiting,
    )
    update = setting.bytes * (student.trainable // setting.parts if setting.on_gpu else 2 * student.largest_trainable)
    found["update"] = replace(held, gradients=reduced, optimizer=held.optimizer + update)
    return found


def _held(setting: Setting) -> Parts:
    """What lies on the device throughout the forward of a micro-batch."""
    config, student, teacher = setting.config, setting.student, setting.teacher
    gradients = _buckets(setting)
    if config.accumulate:
        # FSDP2 exchanges gradients with a step's last micro-batch only, and until then each device keeps them whole.
        gradients += setting.bytes * student.trainable
    teacher_entries = setting.teacher_entries
    if teacher is not None and setting.parts > 1 and not config.teacher_cache:
        # Losses read its head, which therefore stays whole.
        teacher_entries = math.ceil(teacher_entries / setting.parts) + teacher.head
    return Parts(
        weights=setting.bytes * math.ceil(student.parameters / setting.parts),
        gradients=gradients,
        optimizer=2 * setting.bytes * math.ceil(student.trainable / setting.parts),
        # And its hidden states of a micro-batch, which the loop's variable holds until the next one's are there.
        teacher=setting.teacher_bytes * (teacher_entries + (0 if teacher is None else setting.rows * teacher.width)),
        discriminator=_discriminator(setting),
    )


def _discriminator(setting: Setting) -> int:
    """Weights, gradients and two moments, in float32 on every device."""
    if not setting.plays or setting.teacher is None:
        return 0
    width, student, teacher = setting.config.readout_width, setting.student.width, setting.teacher.width
    behind = discriminator_entries(width, setting.config.discriminator_width)
    if setting.student.head_trains:
        return 4 * FLOAT32 * (behind + width * setting.vocab_size)
    # Frozen heads: a map of the span of both heads' columns, and both heads in its coordinates (`frozen_heads.py`).
    span = min(student + teacher, setting.vocab_size)
    buffers = span * (student + teacher + 2) + width * width
    return FLOAT32 * (4 * (behind + width * span) + buffers)


def _chunk(setting: Setting) -> int:
    """Of a token pass: both models' logits of a chunk, what their losses need, and the gradients that it forms."""
    student, teacher = setting.student, setting.teacher
    device = torch.device(setting.config.device)
    rows = min(default_chunk_rows(setting.rows, setting.vocab_size, device), setting.rows)
    block = min(block_rows(rows, setting.vocab_size, device), rows)
    teacher_dtype = None if teacher is None else setting.teacher_dtype
    losses = row_bytes(block, setting.vocab_size, setting.dtype, teacher_dtype)
    if setting.rows > block:
        losses += (
            block * setting.vocab_size * FLOAT32
        )  # the gradient of the block before, until this one's takes its place
    logits = rows * setting.vocab_size * (setting.bytes + (0 if teacher is None else setting.teacher_bytes))
    # The head's gradient is summed in float32; in another precision each product is formed before it is added.
    sums = student.head * (FLOAT32 + (setting.bytes if setting.bytes < FLOAT32 else 0)) if student.head_trains else 0
    return logits + losses + sums + setting.rows * student.width * setting.bytes


def _gathered(setting: Setting, model: Shape) -> int:
    """Entries that a cut model has whole while it runs: what is outside its layers, one layer, and the next on its way."""
    return model.rest + 2 * model.layer if setting.parts > 1 else 0


def _unreduced(setting: Setting, trainable: int) -> int:
    """Bytes of gradients that are about to be summed over the parts: whole, and once more in the buffer that is sent."""
    return 2 * setting.bytes * trainable if setting.parts > 1 else 0


def _buckets(setting: Setting) -> int:
    """Bytes from which DistributedDataParallel sends gradients: a second copy of them, kept between steps."""
    replicated = setting.world_size > 1 and setting.config.strategy != "fsdp2"
    return setting.bytes * setting.student.trainable if replicated else 0
