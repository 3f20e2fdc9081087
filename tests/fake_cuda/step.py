"""One optimizer step of a recipe's own file on the fake device, recorded.

The recipe's `main` runs as it is, with the package's Run, Distiller, Adversarial, optimizers, guard and log. Replaced are what
reads files and what starts processes (`stand_ins.py`).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gakd.cli.recipe_files import find, load_recipe
from gakd.data.load import Data
from gakd.run.training import Run
from tests.fake_cuda.parts import attributed
from tests.fake_cuda.recorder import Recorder
from tests.fake_cuda.settings import Setting, config_of
from tests.fake_cuda.stand_ins import Seen, stand_ins


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
    mode: FakeTensorMode  # that all of it belongs to


class _Finished(Exception):
    """The step that was asked for is done."""


def run_step(setting: Setting, alike: bool = False) -> Recorded:
    """Record one step, moments of the optimizers made before; raises whatever the recipe raises.

    `alike`: of micro-batches of one shape, run three and note how often the middle one stands for others.
    """
    recipe, seen = load_recipe(find(setting.recipe)), Seen()
    recorder, mode = Recorder(), FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config = config_of(recipe, setting, Path(folder))
        stack.enter_context(redirect_stdout(sys.stderr))  # what a recipe says of itself
        stack.enter_context(mode)
        # In this thread, where the modes are: the engine's own thread of the device has none.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        for target, name, value in (*stand_ins(recipe, setting, recorder, seen), *_bounds(recorder, seen)):
            stack.enter_context(patch.object(target, name, value))
        stack.enter_context(attributed(recorder, alike))
        stack.enter_context(recorder)
        with suppress(_Finished):
            recipe.main(config)
    shapes = [tuple(batch.input_ids.shape) for batch in seen.window]
    rows, tokens = sum(len(batch.rows_N) for batch in seen.window), sum(batch.tokens for batch in seen.window)
    return Recorded(recorder, setting, seen.weights, shapes, rows, tokens, seen.student, mode)


def _bounds(recorder: Recorder, seen: Seen) -> Iterator[tuple[Any, str, Any]]:
    """Where the record begins, and where the run is left."""
    yield Run, "steps", _first_step(Run.steps, recorder, seen)
    yield Run, "finish_step", _last(Run.finish_step)


def _first_step(steps: Any, recorder: Recorder, seen: Seen) -> Any:
    def recorded(self: Any, data: Data) -> Iterator[Any]:
        for window in steps(self, data):
            seen.window = window
            for optimizer in self._checkpoints.optimizers.values():
                _make_moments(optimizer)
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


def _last(finish_step: Any) -> Any:
    def finished(self: Any, objective: Any) -> None:
        finish_step(self, objective)
        raise _Finished

    return finished
