"""What lies on one device at the moments of a run that may be its peak."""

from __future__ import annotations

import math
from dataclasses import replace

from gakd.planning.chunk import chunk_bytes, head_sum
from gakd.planning.config import Parts
from gakd.planning.loss_footprint import discriminator_entries, game_bytes
from gakd.planning.setting import FLOAT32, Setting, adapters
from gakd.planning.tracing import reader_activations, student_activations
from gakd.planning.writing import copy_bytes, held_out_bytes, sequences_bytes

# CUDA's context with the kernels that are loaded, and what cuBLAS and others work in: about so much on recent cards.
CUDA_RUNTIME = 600 * 10**6
EVALUATION = "evaluation"


def phases(setting: Setting) -> dict[str, Parts]:
    """What lies on a device at each moment of a step that may be its peak, and while text is written between steps."""
    config, student, teacher = setting.config, setting.student, setting.teacher
    sequences = config.micro_batch_size
    backbone = student_activations(
        setting.student_config, sequences, config.length, setting.supervised, adapters(config), setting.layer_dtype,
        setting.mixed, config.activation_checkpointing, setting.on_gpu,
        setting.frozen_dtype if setting.parts == 1 else setting.layer_dtype,
    )  # fmt: skip
    handed_over = student.head * setting.bytes if student.head_trains else 0
    hidden = setting.rows * student.width * setting.bytes
    kept_of_losses = head_sum(setting) + hidden
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
        gathered = setting.teacher_bytes * _gathered_of_teacher(setting)
        found["teacher"] = replace(held, teacher=held.teacher + reading + gathered)
    whole = replace(held, weights=held.weights + _gathered(setting))
    found["forward"] = replace(whole, activations=backbone.forward)
    found["token losses"] = replace(whole, activations=backbone.inside, fused_chunk=chunk_bytes(setting))
    if setting.plays:
        found["game"] = replace(
            whole, activations=backbone.kept, fused_chunk=kept_of_losses,
            discriminator=held.discriminator + game_forward,
        )  # fmt: skip
    # Both losses' gradients of the head meet at once; of tied weights, their sum waits for the embeddings' at the end.
    both = head_sum(setting) if setting.plays else 0
    cast = handed_over if setting.bytes < FLOAT32 else 0
    found["backward of losses"] = replace(
        whole, activations=backbone.kept, fused_chunk=kept_of_losses + both + cast,
        discriminator=held.discriminator + game_kept,
    )  # fmt: skip
    # What is outside of a cut model's layers is summed over the parts at the end.
    waiting = handed_over if student.tied or setting.parts > 1 else 0
    layers = replace(whole, activations=backbone.backward, fused_chunk=waiting + hidden)
    found["backward of layers"] = replace(layers, gradients=held.gradients + _unreduced_layer(setting))
    reduced = math.ceil(setting.bytes * student.trainable / setting.parts)
    embeddings = setting.bytes * min(student.embedding, student.trainable_rest)
    found["backward of embeddings"] = replace(
        whole, gradients=max(held.gradients, reduced) + _unreduced_rest(setting, embeddings), fused_chunk=0
    )
    # The fused AdamW of a GPU has no temporaries; a plain optimizer goes through the weights one after the other.
    update = 0 if setting.on_gpu and config.optimizer == "adamw" else 2 * setting.bytes * student.largest_trainable
    found["update"] = replace(held, gradients=reduced, optimizer=held.optimizer + update)
    if config.text_examples:
        copy = 0 if config.on_own_text else copy_bytes(setting)
        found[EVALUATION] = replace(
            held, gradients=_buckets(setting), weights=whole.weights,
            writing=held.writing + copy + sequences_bytes(setting),
        )  # fmt: skip
    return found


def _held(setting: Setting) -> Parts:
    """What lies on the device throughout the forward of a micro-batch."""
    config, student, teacher = setting.config, setting.student, setting.teacher
    # Gradients of cut weights are summed over the parts with each micro-batch. DDP's lie in its buckets, without a copy.
    accumulated = math.ceil(setting.bytes * student.trainable / setting.parts) if config.accumulate else 0
    teacher_entries = setting.teacher_entries
    if teacher is not None and setting.parts > 1 and not config.teacher_cache:
        # Losses read its head, which is never cut.
        teacher_entries = math.ceil((teacher_entries - teacher.head) / setting.parts) + teacher.head
    return Parts(
        runtime=CUDA_RUNTIME if setting.on_gpu else 0,
        weights=math.ceil(setting.student_bytes(student.parameters, student.trainable) / setting.parts),
        gradients=max(accumulated, _buckets(setting)),
        optimizer=_moments(setting),
        # And its hidden states of a micro-batch, which the loop's variable holds until the next one's are there.
        teacher=setting.teacher_bytes * (teacher_entries + (0 if teacher is None else setting.rows * teacher.width)),
        discriminator=_discriminator(setting),
        held_out=held_out_bytes(setting),
        writing=copy_bytes(setting) if config.on_own_text else 0,
    )


def _moments(setting: Setting) -> int:
    """What the student's optimizer keeps from step to step."""
    student, name = setting.student, setting.config.optimizer
    if name == "adamw8bit":  # a byte each, and their largest of each block of 256
        return 2 * student.trainable + 2 * FLOAT32 * math.ceil(student.trainable / 256)
    if name == "adafactor":
        return setting.bytes * student.factors
    if name == "muon":
        return setting.bytes * (2 * student.trainable - student.matrices)
    return (1 if name == "sgd" else 2) * setting.bytes * math.ceil(student.trainable / setting.parts)


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


def _gathered(setting: Setting) -> int:
    """Bytes that a cut student has whole while it runs: what is outside its layers, one layer, and the next on its way."""
    student = setting.student
    if setting.parts == 1:
        return 0
    layer = setting.student_bytes(student.layer, student.trainable_layer)
    if setting.mixed:
        layer = setting.layer_dtype.itemsize * student.layer
    return setting.student_bytes(student.rest, student.trainable_rest) + 2 * layer


def _gathered_of_teacher(setting: Setting) -> int:
    """Entries of a cut teacher, in the same way; its head is whole on every device."""
    teacher = setting.teacher
    return 0 if teacher is None or setting.parts == 1 else teacher.rest - teacher.head + 2 * teacher.layer


def _unreduced_layer(setting: Setting) -> int:
    """Bytes of a layer's gradients that are about to be summed over the parts: as gathered, and in the buffer that is sent."""
    each = setting.layer_dtype.itemsize + setting.bytes
    return each * setting.student.trainable_layer if setting.parts > 1 else 0


def _unreduced_rest(setting: Setting, embeddings: int) -> int:
    """Bytes of gradients outside of the layers, at the end: the embeddings' beside the head's, of tied weights their sum too."""
    student = setting.student
    waiting = setting.bytes * student.head if student.tied and student.head_trains else 0
    if setting.parts == 1:
        return embeddings + waiting
    rest = setting.bytes * student.trainable_rest
    return max(rest + embeddings + waiting if student.tied else rest, 2 * rest)


def _buckets(setting: Setting) -> int:
    """Bytes that DistributedDataParallel sends gradients from, and keeps between steps; gradients are views of them."""
    replicated = setting.world_size > 1 and setting.config.strategy != "fsdp2"
    return setting.bytes * setting.student.trainable if replicated else 0
