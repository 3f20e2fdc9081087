"""A plan from configurations alone: the moments of a step, their memory, FLOPs, and the largest micro-batch that fits."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedConfig

from gakd.errors import InputError
from gakd.flags import check
from gakd.models.errors import ModelError
from gakd.models.loading import config_of
from gakd.models.names import existing_folder, resolve
from gakd.models.parts import decoder_layers
from gakd.planning.config import BOUNDS, GB, Flops, Plan, PlanConfig
from gakd.planning.footprint import Shape, anatomy, shape
from gakd.planning.known_models import known_config, known_names
from gakd.planning.setting import FLOAT32, Setting, adapters
from gakd.planning.step_memory import EVALUATION, phases
from gakd.planning.weights import Adapters


def plan(config: PlanConfig) -> Plan:
    """The plan of a run; InputError for models that are not known and for numbers that make no run."""
    setting = _setting(config)
    student, teacher = setting.student, setting.teacher
    return Plan(config, student, teacher, phases(setting), _flops(config, student, teacher), _host_memory(setting))


def _host_memory(setting: Setting) -> tuple[int, int]:
    """Of the first process, which proves the student's export with all of it, and of any other.

    There, and of a teacher anywhere, what is read to prove a head: two layers, and all that is no layer. A student that is
    pruned or has LoRA is whole in all.
    """
    student, teacher, config = setting.student, setting.teacher, setting.config
    half = setting.on_gpu and setting.precision.startswith("bf16")
    frozen = student.parameters - student.trainable if config.lora_rank and half else 0
    known = 0 if teacher is None else teacher.head if config.teacher_cache else teacher.rest + 2 * teacher.layer
    whole = FLOAT32 * (student.parameters - frozen) + 2 * frozen
    proof = whole if config.lora_rank or config.student_layers else FLOAT32 * (student.rest + 2 * student.layer)
    return whole + setting.teacher_bytes * known, proof + setting.teacher_bytes * known


def largest_micro_batch(config: PlanConfig) -> int:
    """The most sequences a forward that fit the device, 0 where not even one does; `accumulate` as it is set.

    0, too, where an evaluation does not fit, whose memory is the same whatever a micro-batch has.
    """
    setting, memory = _setting(config), config.device_memory * GB
    config = setting.config
    low, high, size = 0, 1 << 20, config.micro_batch_size
    peaks: list[tuple[int, int]] = []
    while high - low > 1:
        moments = phases(replace(setting, config=replace(config, micro_batch_size=size)))
        evaluation = moments.pop(EVALUATION, None)
        if moments["update"].total > memory or (evaluation is not None and evaluation.total > memory):
            return 0
        peaks += [(0, moments["update"].total)] if not peaks else []
        peaks.append((size, max(parts.total for parts in moments.values())))
        low, high = (size, high) if peaks[-1][1] <= memory else (low, size)
        # Where a line through the last two crosses the limit: with many sequences a peak is nearly linear in them.
        (before, less), (_, more) = peaks[-2:]
        slope = (more - less) / (size - before)
        wanted = size + (memory - more) / slope if slope > 0 else high
        size = min(max(int(wanted), low + 1), high - 1)
    return low


def _setting(config: PlanConfig) -> Setting:
    _check(config)
    config = replace(config, micro_batch_size=config.sequences, micro_batch_tokens=None)
    student, student_config = shape(_model_config(config.student), config.student_layers, adapters(config))
    if config.strategy == "fsdp2":
        decoder_layers(
            anatomy(student_config).model
        )  # what is gathered one by one; refused where there is no such list
    if config.teacher is None:
        return Setting(config, student, None, student_config, None)
    teacher, teacher_config = shape(_model_config(config.teacher), (), Adapters())
    return Setting(config, student, teacher, student_config, teacher_config)


def _flops(config: PlanConfig, student: Shape, teacher: Shape | None) -> Flops:
    """2 an active parameter of a product in the forward, and as many for each of the backward's two products that is needed.

    Attention: `2 T A` in the forward for scores and values of half of the T positions, A being all heads' width in all
    layers with attention; windows are not counted as less. Twice that in the backward. Heads see supervised tokens only.
    Left out: what a recurrent layer does with its state, and the discriminator's few products.
    """

    def forward(model: Shape) -> float:
        return 2 * model.products + 2 * config.length * model.attention_width

    share = config.response_share
    head = 2 * student.head * share
    own = forward(student)
    attention = own - 2 * student.products
    backward = 2 * student.products + 2 * student.trainable_products + 2 * attention + head * (1 + student.head_trains)
    reading = 0.0
    if teacher is not None:
        reading = 2 * teacher.head * share + (0 if config.teacher_cache else forward(teacher))
    return Flops(own + head, backward, own if config.activation_checkpointing else 0.0, reading)


def _model_config(name: str) -> PreTrainedConfig:
    """The architecture of a folder, of a known name, or from the hub."""
    found = None if existing_folder(name) is not None else known_config(name)
    if found is not None:
        return found
    resolve(name)  # says of a name that is none what names there are
    try:
        return config_of(name)
    except ModelError as error:
        if existing_folder(name) is not None:
            raise
        raise InputError(
            f"no configuration of {name!r}: it is no folder with config.json, not from the hub now, and not one of "
            f"{', '.join(known_names())}: give one of these"
        ) from error


def _check(config: PlanConfig) -> None:
    check(config, BOUNDS)
    if config.teacher_cache and config.teacher is None:
        raise InputError("--teacher-cache needs the teacher that it was made from: give --teacher")
