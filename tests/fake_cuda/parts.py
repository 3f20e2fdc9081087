"""Which part of a step a line belongs to: functions of the package, wrapped while a step is recorded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

from gakd.models.lora import base_of
from gakd.models.parts import decoder_layers
from tests.fake_cuda.calls import LayerCall
from tests.fake_cuda.recorder import Recorder

# module, owner within it ("" for the module itself), function, part.
WRAPPED = (
    ("gakd.teachers.local", "LocalTeacher", "__call__", "teacher forward"),
    ("gakd.teachers.aligned", "AlignedTeacher", "__call__", "teacher forward"),
    ("gakd.distiller", "", "hidden_rows", "student forward"),
    ("gakd.distiller", "", "routed_rows", "student forward"),
    ("gakd.distiller", "", "token_pass", "token pass"),
    ("gakd.adversary.adversarial", "Adversarial", "forward", "adversary"),
    ("gakd.run.training", "Run", "update", "student update"),
    ("gakd.run.training", "Run", "update_replicated", "discriminator update"),
    ("gakd.run.step_record", "StepRecord", "add", "log and guard"),
    ("gakd.run.step_record", "StepRecord", "is_finite", "log and guard"),
    ("gakd.run.step_log", "StepLog", "finish_step", "log and guard"),
)
READOUTS = (
    ("gakd.adversary.readouts.logits", "LogitReadout"),
    ("gakd.adversary.readouts.frozen_heads", "FrozenHeadsReadout"),
    ("gakd.adversary.readouts.soft_capped", "SoftCappedLogitReadout"),
)
PARTS = (
    "teacher forward", "student forward", "token pass: products", "token pass: rows", "token pass: sums", "readout", "adversary",
    "student backward", "head gradient sums", "student update", "discriminator update", "log and guard", "other",
)  # fmt: skip


@contextmanager
def attributed(recorder: Recorder, alike: bool = False) -> Iterator[None]:
    """Inside, the recorder knows the part, the layer and the micro-batch of what happens."""
    with ExitStack() as stack:

        def wrap(module: str, owner: str, name: str, make: Callable[[Any], Any]) -> None:
            home: Any = importlib.import_module(module)
            home = getattr(home, owner) if owner else home
            if hasattr(home, name):
                stack.enter_context(patch.object(home, name, make(getattr(home, name))))

        for module, owner, name, part in WRAPPED:
            wrap(module, owner, name, lambda function, part=part: _in_part(recorder, function, part))
        for module, owner in READOUTS:
            for name in ("live", "detached", "squared_norm", "flush"):
                wrap(module, owner, name, lambda function: _in_part(recorder, function, "readout"))
        wrap("gakd.losses.fused", "", "row_pass", lambda choose: _rows(recorder, choose))
        wrap("gakd.run.training", "Run", "micro_batches", lambda function: _counted(recorder, function, alike))
        yield


def _in_part(recorder: Recorder, function: Any, part: str) -> Any:
    @wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        with recorder.at(part, ""):
            return function(*arguments, **named)

    return wrapped


def _rows(recorder: Recorder, choose: Any) -> Any:
    """The function that a token pass calls for the rows of a chunk, in a part of its own."""

    def chosen(*arguments: Any) -> Any:
        kernel = choose(*arguments)

        def of_a_chunk(product_NV: Any, *more: Any, **named: Any) -> Any:
            with recorder.at("token pass: rows", f"rows {product_NV.numel()}"):
                return kernel(product_NV, *more, **named)

        return of_a_chunk

    return chosen


def _counted(recorder: Recorder, micro_batches: Any, alike: bool) -> Any:
    """Micro-batches with their number; of those of one shape, where it is asked for, the first two and the last alone."""

    def counted(run: Any, window: Any) -> Iterator[Any]:
        shapes = {tuple(batch.input_ids.shape) for batch in window if hasattr(batch, "input_ids")}
        middle = len(window) - 2 if alike and len(shapes) == 1 and len(window) > 3 else 1
        recorder.repeats = {1: middle}
        try:
            for micro, batch in enumerate(micro_batches(run, window)):
                if middle == 1 or micro in (0, 1, len(window) - 1):
                    recorder.micro = micro
                    yield batch
        finally:
            recorder.micro = None

    return counted


def watch_layers(recorder: Recorder, model: Any, whose: str) -> None:
    """Let each decoder layer of a model say that it is at work; of each shape of input, keep what the first one was given.

    By hooks, which stand outside of what a compiler or a checkpoint puts around a forward.
    """
    for index, layer in enumerate(decoder_layers(base_of(model))):
        name = f"{whose} {index}"

        def enter(layer: Any, arguments: Any, named: Any, name: str = name) -> None:
            hidden = arguments[0] if arguments else named["hidden_states"]
            recorder.calls.setdefault((whose, tuple(hidden.shape)), LayerCall.of(layer, arguments, named))
            recorder.enter_layer(name)

        layer.register_forward_pre_hook(enter, with_kwargs=True)
        layer.register_forward_hook(lambda *_: recorder.leave_layer(), always_call=True)


def part_of(event: Any, head: tuple[int, int]) -> str:
    """The row of the table that an event belongs to; `head` is the shape of the student's."""
    kernel = event.kernel
    if kernel is not None and event.backward and not kernel.flops and str(head) in kernel.shapes:
        return "head gradient sums"
    if event.part == "token pass" and kernel is not None:
        return "token pass: products" if kernel.flops else "token pass: sums"
    if event.part == "student forward" and event.backward:
        return "student backward"
    return event.part
