"""One optimizer step of a recipe's own file on the fake device, recorded.

The recipe's `main` runs as it is, with the package's Run, Distiller, Adversarial, optimizers, guard and log. Replaced are what
reads files (models, data, held-out text) and what starts processes.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision
from lightning_fabric.strategies import SingleDeviceStrategy
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from gakd.adversary.lm_discriminator import LMDiscriminator
from gakd.cli.recipe_files import find, load_recipe
from gakd.data.alignment import Aligned
from gakd.data.examples import Example
from gakd.data.load import Data
from gakd.data.rows import Row
from gakd.models.lora import add_lora
from gakd.run.config import RunConfig
from gakd.teachers.aligned import AlignedTeacher
from gakd.teachers.local import LocalTeacher
from gakd.types import Batch, TeacherOutput
from tests.fake_cuda.models import DEVICE, backbone, language_model
from tests.fake_cuda.parts import attributed, watch_layers
from tests.fake_cuda.recorder import Recorder


@dataclass
class Setting:
    """What is trained, on what."""

    recipe: str = "gakd"
    student: str = "Qwen3-0.6B"
    teacher: str = "Qwen3-8B"
    layers: int | None = None  # of each model, all where it is None
    lora_rank: int = 0
    teacher_cache: bool = False
    lengths: tuple[tuple[int, int], ...] = ((512, 307),) * 32  # of each sequence of the step: positions, supervised
    micro_batch_size: int = 4
    micro_batch_tokens: int | None = None
    shapes: tuple[tuple[int, int], ...] = ()  # [B, T] of the micro-batches instead, in order
    flags: dict[str, Any] = field(default_factory=dict)  # of the recipe itself


@dataclass
class Recorded:
    """A step: what happened in it, what stands on the device, and the models."""

    recorder: Recorder
    setting: Setting
    weights: int  # bytes on the device between steps: models, gradients' sums not among them, moments
    shapes: list[tuple[int, int]]
    rows: int
    tokens: int
    student: Any
    teacher: Any
    mode: FakeTensorMode  # that all of it belongs to


class _Finished(Exception):
    """The step that was asked for is done."""


def run_step(setting: Setting, alike: bool = False) -> Recorded:
    """Record one step, moments of the optimizers made before; raises whatever the recipe raises.

    `alike`: of micro-batches of one shape, run three and note how often the middle one stands for others.
    """
    recipe, seen = load_recipe(find(setting.recipe)), _Seen()
    recorder, mode = Recorder(), FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config = _config(recipe, setting, Path(folder))
        stack.enter_context(redirect_stdout(sys.stderr))  # what a recipe says of itself
        stack.enter_context(mode)
        # In this thread, where the modes are: the engine's own thread of the device has none.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        for target, name, value in _replaced(recipe, setting, recorder, seen):
            stack.enter_context(patch.object(target, name, value))
        stack.enter_context(attributed(recorder, alike))
        stack.enter_context(recorder)
        with suppress(_Finished):
            recipe.main(config)
    shapes = [tuple(batch.input_ids.shape) for batch in seen.window]
    rows, tokens = sum(len(batch.rows_N) for batch in seen.window), sum(batch.tokens for batch in seen.window)
    return Recorded(recorder, setting, seen.weights, shapes, rows, tokens, seen.student, seen.teacher, mode)


class _Seen:
    """What the step's own code leaves for the record."""

    def __init__(self) -> None:
        self.window: list[Any] = []
        self.weights = 0
        self.student: Any = None
        self.teacher: Any = None


def _config(recipe: Any, setting: Setting, folder: Path) -> Any:
    known = {own.name for own in fields(RunConfig)}
    size = sum(batch for batch, _ in setting.shapes) or len(setting.lengths)
    asked: dict[str, Any] = {
        "output_dir": folder / "run", "steps": 2, "batch_size": size, "micro_batch_size": setting.micro_batch_size,
        "evaluate_every": 0, "save_every": 0, "precision": "bf16-mixed",
    }  # fmt: skip
    if setting.micro_batch_tokens is not None:
        if "micro_batch_tokens" not in known:
            raise ValueError("this gakd has no --micro-batch-tokens: give shapes, or --micro-batch-size")
        asked["micro_batch_tokens"] = setting.micro_batch_tokens
    config = replace(recipe.PAPER, run=RunConfig(**asked), **setting.flags)
    longest = max(length for length, _ in _lengths(setting)) + 1
    config.data = replace(config.data, max_length=longest)
    config.models = replace(config.models, lora_rank=setting.lora_rank)
    return config


def _lengths(setting: Setting) -> Sequence[tuple[int, int]]:
    share = sum(own for _, own in setting.lengths) / sum(length for length, _ in setting.lengths)
    of_shapes = [(length, max(round(share * length), 1)) for batch, length in setting.shapes for _ in range(batch)]
    return of_shapes or setting.lengths


def _data(setting: Setting) -> Data:
    """Examples whose batches have the lengths that were asked for: a batch has a position less than an example tokens."""
    examples = []
    for index, (length, supervised) in enumerate(_lengths(setting)):
        prompt = [index + 1] * (length + 1 - supervised)
        examples.append(Example(prompt, [7] * supervised, Row(str(index))))
    return Data(examples, examples[:1], examples[:1], 0)


def _groups(setting: Setting) -> list[list[int]]:
    """Indices of the examples of each micro-batch whose shape was asked for."""
    ends = list(accumulate(size for size, _ in setting.shapes))
    return [list(range(end - size, end)) for end, (size, _) in zip(ends, setting.shapes, strict=True)]


def _replaced(recipe: Any, setting: Setting, recorder: Recorder, seen: _Seen) -> Iterator[tuple[Any, str, Any]]:
    """What reads files or starts processes, and what stands in its place; of a recipe, those of the names that it has."""
    training: Any = importlib.import_module("gakd.run.training")
    data = _data(setting)

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
        seen.teacher = LocalTeacher(language_model(setting.teacher, torch.bfloat16, setting.layers))
        watch_layers(recorder, seen.teacher.model, "teacher")
        return _Cached(seen.teacher.head) if setting.teacher_cache else seen.teacher

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
    for name in ("TransformerDiscriminator", "logit_readout"):
        if hasattr(
            recipe, name
        ):  # built on the device: a module of the host would have to be moved, which fakes cannot be
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
            yield module, "split_window", lambda *_, **__: _groups(setting)
    # All of it is on the device from the start: fake tensors cannot take each other's place.
    yield torch.nn.Module, "to", lambda module, *_, **__: module
    yield training, "launch", _launched
    yield training.checkpoint, "rng_state", lambda: {}
    run: Any = training.Run
    yield run, "steps", _first_step(run.steps, recorder, seen)
    yield run, "finish_step", _last(run.finish_step)
    yield run, "once", lambda *_: {}


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


def _first_step(steps: Any, recorder: Recorder, seen: _Seen) -> Any:
    def recorded(self: Any, data: Data) -> Iterator[Any]:
        for window in steps(self, data):
            seen.window = window
            for optimizer in self._checkpoints.optimizers.values():
                _make_moments(optimizer)
            recorder.own(tensor for tensor in _standing(self, seen))
            seen.weights = recorder.now
            recorder.restart()
            yield window

    return recorded


def _make_moments(optimizer: torch.optim.Optimizer) -> None:
    """An update with gradients of 0: a step in the middle of a run finds the moments there."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _standing(run: Any, seen: _Seen) -> Iterator[torch.Tensor]:
    modules = [*run._checkpoints.modules.values(), *([seen.teacher.model] if seen.teacher is not None else [])]
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def _last(finish_step: Any) -> Any:
    def finished(self: Any, objective: Any) -> None:
        finish_step(self, objective)
        raise _Finished

    return finished


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
