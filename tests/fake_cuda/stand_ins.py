"""What stands in a recorded step for what reads files and starts processes: models, data, held-out text, Fabric's devices."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision
from lightning_fabric.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import _disable_current_modes

from gakd.data.alignment import Aligned
from gakd.data.load import Data
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
    """`(owner, name, stand-in)` of each; of a recipe, those of the names that it imports, at their homes."""
    data = data_of(setting)

    def student(load: Any) -> Any:
        def loaded(*arguments: Any) -> Any:
            with torch.device(DEVICE):
                seen.student = load(*arguments)
            watch_layers(recorder, seen.student, "student")
            return seen.student

        return loaded

    def teacher(load: Any) -> Any:
        def loaded(*arguments: Any) -> Any:
            found = load(*arguments)
            if setting.teacher_cache:
                return _Cached(found.head)
            watch_layers(recorder, found.model, "teacher")
            return found

        return loaded

    own: dict[str, Any] = {
        "load_data": lambda *_, **__: data, "load_shared_tokenizer": lambda *_: _Tokenizer(), "HeldOut": _HeldOut,
        "conclude": lambda *_: None, "end_of_text": lambda *_: 0, "TeacherMixedSampler": _Sampler,
        "resample": lambda window, *_: window,
    }  # fmt: skip
    around: dict[str, Any] = {
        "load_student": student, "load_teacher": teacher, "load_reader": teacher, "load_aligned_teacher": teacher,
        "TransformerDiscriminator": _there, "logit_readout": _there, "pretrained_discriminator": _there,
    }  # fmt: skip
    homes = _homes(recipe)  # all that it imports is there from now on: what comes later would keep a stand-in
    own |= {name: wrap(getattr(homes[name], name)) for name, wrap in around.items() if name in homes}
    yield from ((homes[name], name, value) for name, value in own.items() if name in homes)

    everywhere: dict[str, Any] = {
        "gakd.models.loading.load_model": lambda name, dtype=torch.float32, *_, **__: language_model(name, dtype, setting.layers),
        "gakd.models.loading.load_backbone": lambda name, *_, **__: backbone(name, setting.layers),
        "gakd.models.loading.load_tokenizer": lambda *_, **__: _Tokenizer(),
        "gakd.models.rehearsal.prove_student": lambda *_: None,
        "gakd.models.lora.lora_text": lambda *_: "",
        "gakd.data.alignment.align": lambda *_: _aligned(data),
        "gakd.run.preflight.check_run": lambda *_: None,
        "gakd.run.known.marks_of": lambda *_: {},
        "gakd.models.fingerprints.untrained_mark": lambda *_: "",
        "gakd.run.launch.launch": _launched,
        "gakd.data.collation.collate": _on_the_host(importlib.import_module("gakd.data.collation").collate),
    }  # fmt: skip
    if setting.shapes:
        everywhere["gakd.data.windows.split_window"] = lambda *_, **__: groups_of(setting)
    for place, value in everywhere.items():
        yield from _wherever(place, value)
    # All of it is on the device from the start: fake tensors cannot take each other's place.
    yield torch.nn.Module, "to", lambda module, *_, **__: module
    training: Any = importlib.import_module("gakd.run.training")
    yield training.checkpoint, "rng_state", lambda: {}
    yield training.Run, "once", lambda *_: {}
    updates: Any = importlib.import_module("gakd.run.updates").Updates
    learn = updates.learn
    # Answers count as true here: what is asked of each update is whether it was refused.
    yield updates, "learn", lambda self, values, step: learn(self, [values[0::2][0], 0.0] * (len(values) // 2), step)


def _homes(recipe: Any) -> dict[str, Any]:
    """The modules that define what a recipe imports of the package, which is done when it runs, by name."""
    nodes = ast.walk(ast.parse(Path(recipe.__file__).read_text()))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gakd")]
    found = {
        alias.name: getattr(importlib.import_module(str(node.module)), alias.name)
        for node in froms
        for alias in node.names
    }
    return {name: sys.modules[thing.__module__] for name, thing in found.items() if hasattr(thing, "__module__")}


def _wherever(place: str, value: Any) -> Iterator[tuple[Any, str, Any]]:
    """A function, by its full name, in all modules of the package that have imported it."""
    home, _, name = place.rpartition(".")
    real = getattr(importlib.import_module(home), name)
    for module in [found for known, found in sys.modules.items() if known.startswith("gakd")]:
        if vars(module).get(name) is real:
            yield module, name, value


def _aligned(data: Data) -> dict[str, Aligned]:
    """Each row of the student beside a row of the teacher."""
    return {one.key: Aligned(one, [(row, row) for row in range(one.supervised)], one.supervised) for one in data.train}


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
