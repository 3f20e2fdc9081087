"""What stands in a recorded step for what reads files and starts processes: models, data, held-out text, Fabric's devices."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision
from lightning_fabric.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import _disable_current_modes

from gakd.adversary.lm_discriminator import LMDiscriminator
from gakd.data.alignment import Aligned
from gakd.models.lora import add_lora
from gakd.teachers.aligned import AlignedTeacher
from gakd.teachers.local import LocalTeacher
from gakd.types import Batch, TeacherOutput
from tests.fake_cuda.models import DEVICE, backbone, language_model
from tests.fake_cuda.parts import watch_layers
from tests.fake_cuda.recorder import Recorder
from tests.fake_cuda.settings import Setting, data_of, groups_of


class Seen:
    """What the step's own code leaves for the record."""

    def __init__(self) -> None:
        self.window: list[Any] = []
        self.weights = 0
        self.student: Any = None


def stand_ins(recipe: Any, setting: Setting, recorder: Recorder, seen: Seen) -> Iterator[tuple[Any, str, Any]]:
    """What reads files or starts processes, and what stands in its place; of a recipe, those of the names that it has."""
    training: Any = importlib.import_module("gakd.run.training")
    data = data_of(setting)

    def load_student(*_: Any) -> Any:
        model = language_model(setting.student, torch.float32, setting.layers)
        models = recipe.PAPER.models
        if setting.lora_rank:
            with torch.device(DEVICE):
                model = add_lora(model, setting.lora_rank, models.lora_alpha, models.lora_dropout, models.lora_targets)
        watch_layers(recorder, model, "student")
        seen.student = model
        return model

    def load_teacher(*_: Any) -> Any:
        teacher = LocalTeacher(language_model(setting.teacher, torch.bfloat16, setting.layers))
        if setting.teacher_cache:
            return _Cached(teacher.head)
        watch_layers(recorder, teacher.model, "teacher")
        return teacher

    def load_aligned_teacher(*_: Any) -> Any:
        aligned = {
            one.key: Aligned(one, [(row, row) for row in range(one.supervised)], one.supervised) for one in data.train
        }
        with patch("gakd.teachers.aligned.align", lambda *_: aligned):
            model = language_model(setting.teacher, torch.bfloat16, setting.layers)
            return AlignedTeacher(model, _Tokenizer(), data.train, _Tokenizer(), recipe.PAPER.data)  # type: ignore[arg-type]

    def pretrained_discriminator(name: str, width: int, *_: Any) -> Any:
        with torch.device(DEVICE):
            return LMDiscriminator(backbone(name, setting.layers), width)

    own: dict[str, Any] = {
        "load_student": load_student, "load_teacher": load_teacher, "load_reader": load_teacher,
        "load_aligned_teacher": load_aligned_teacher, "load_data": lambda *_, **__: data,
        "load_shared_tokenizer": lambda *_: _Tokenizer(), "load_tokenizer": lambda *_: _Tokenizer(),
        "HeldOut": _HeldOut, "conclude": lambda *_: None, "end_of_text": lambda *_: 0,
        "pretrained_discriminator": pretrained_discriminator, "resample": lambda window, *_: window,
        "TeacherMixedSampler": _Sampler,
    }  # fmt: skip
    for name, value in own.items():
        if hasattr(recipe, name):
            yield recipe, name, value
    # All of it is on the device from the start: fake tensors cannot take each other's place.
    yield torch.nn.Module, "to", lambda module, *_, **__: module
    for name in ("TransformerDiscriminator", "logit_readout"):
        if hasattr(recipe, name):
            yield recipe, name, _there(getattr(recipe, name))
    nothing: dict[str, Any] = {"check_run": None, "marks_of": {}, "untrained_mark": "", "check_models": None}
    for name, value in nothing.items():
        if hasattr(training, name):
            yield training, name, lambda *_, value=value: value
    collate = importlib.import_module("gakd.data.collate").collate
    for module in [found for name, found in sys.modules.items() if name.startswith("gakd.")]:
        if getattr(module, "collate", None) is collate:
            yield module, "collate", _on_the_host(collate)
        if setting.shapes and hasattr(module, "split_window") and not module.__name__.startswith("gakd.data"):
            yield module, "split_window", lambda *_, **__: groups_of(setting)
    yield training, "launch", _launched
    yield training.checkpoint, "rng_state", lambda: {}
    yield training.Run, "once", lambda *_: {}


def _on_the_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """With real tensors, as batches are: what they hold decides about sizes."""

    def done(*arguments: Any) -> Any:
        with _disable_current_modes():
            return function(*arguments)

    return done


def _there(build: Callable[..., Any]) -> Callable[..., Any]:
    def built(*arguments: Any, **named: Any) -> Any:
        with torch.device(DEVICE):
            return build(*arguments, **named)

    return built


def _launched(config: Any) -> Fabric:
    """Fabric in one process on the fake device, with its own plugin of `bf16-mixed`."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    fabric._strategy = SingleDeviceStrategy(device=DEVICE, precision=MixedPrecision("bf16-mixed", "cuda"))
    fabric._precision = fabric._strategy.precision
    fabric._accelerator.setup_device = lambda device: None  # type: ignore[method-assign]
    fabric._launched = True
    return fabric


class _Cached:
    """Hidden states that were read from a disk, in the dtype of the head, copied to the device as `CachedTeacher` does."""

    model = None

    def __init__(self, head: Any) -> None:
        self.head = head

    def __call__(self, batch: Batch) -> TeacherOutput:
        weight = self.head.weight
        hidden_NH = torch.empty(len(batch.rows_N), weight.shape[1], dtype=weight.dtype)
        return TeacherOutput(hidden_NH.to(weight.device, non_blocking=True), self.head)


class _HeldOut:
    def __init__(self, *_: Any) -> None: ...

    def scores(self, student: Any) -> dict[str, float]:
        return {}

    def validate(self, student: Any) -> dict[str, float]:
        return {}


class _Sampler:
    truncated = 0.0

    def __init__(self, *_: Any) -> None: ...


class _Tokenizer:
    pad_token_id = 0
