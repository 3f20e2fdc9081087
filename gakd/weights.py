"""Weights of terms: numbers, schedules of the step, and one that follows the gradients. All print as they are written."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

Weight = float | Callable[[int], float]


def weight_at(weight: Weight, step: int, what: str = "the weight of a term") -> float:
    """A weight's value at an optimizer step, counted from 0. ValueError where that is no finite number."""
    found: Any = weight(step) if callable(weight) else weight
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{what}, {weight_text(weight)}, is {found} at step {step}: give a finite number at each step")
    return value


def weight_text(weight: Weight) -> str:
    """As it is written: `0.5`, `ramp(0.1, start=200, steps=1)`, `my_schedule(step)`."""
    if not callable(weight):
        return format(float(weight), "g")
    own_text = type(weight).__str__ is not object.__str__
    return str(weight) if own_text else f"{getattr(weight, '__name__', type(weight).__name__)}(step)"


def check_weight(weight: object, whose: str) -> Weight:
    """The weight itself. TypeError where it is neither a number nor a function of one step, ValueError where it is not finite."""
    if isinstance(weight, Real):
        if not math.isfinite(weight):
            raise ValueError(f"a weight is a finite number, got {weight} for {whose}")
        return float(weight)
    if callable(weight) and not isinstance(weight, type) and takes_a_step(weight):
        return cast("Weight", weight)
    got = f"the class {weight.__name__}" if isinstance(weight, type) else type(weight).__name__
    if inspect.isfunction(weight):
        got = f"{weight.__name__}({', '.join(inspect.signature(weight).parameters)})"
    raise TypeError(f"a weight is a number or a function of the step, got {got} for {whose}")


def takes_a_step(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with a step alone; True where Python cannot tell."""
    try:
        inspect.signature(function).bind(0)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        pass
    return True


def multiplied(weight: Weight, factor: Weight) -> Weight:
    """`factor * weight`. ValueError for a balanced weight, which follows the token terms by itself."""
    for one in (weight, factor):
        if isinstance(one, Balanced):
            raise ValueError(f"{one} follows the token terms by itself: multiply their weights, or its share")
    if isinstance(weight, float) and isinstance(factor, float):
        return weight * factor
    return factor if weight == 1 else weight if factor == 1 else Combined(factor, "*", weight)


class Schedule:
    """A function of the step that adds, subtracts and multiplies: with numbers, functions and its like."""

    def __call__(self, step: int) -> float:
        raise NotImplementedError

    def __add__(self, other: float | Schedule) -> Combined:
        return _combined(self, "+", other)

    def __mul__(self, other: float | Schedule) -> Combined:
        return _combined(self, "*", other)

    def __rmul__(self, other: float | Schedule) -> Combined:
        return _combined(other, "*", self)

    def __neg__(self) -> Combined:
        return _combined(-1.0, "*", self)

    def __sub__(self, other: float | Schedule) -> Combined:
        return _combined(self, "+", _combined(-1.0, "*", other))

    def __rsub__(self, other: float | Schedule) -> Combined:
        return _combined(other, "+", -self)

    def __truediv__(self, number: float) -> Combined:
        return _combined(1 / number, "*", self)

    __radd__ = __add__


@dataclass(frozen=True)
class Combined(Schedule):
    """The sum or product of two weights at each step: what `2 * ramp(0.1)` and `1 - ramp(1.0, steps=100)` are."""

    left: Weight
    sign: Literal["+", "*"]
    right: Weight

    def __call__(self, step: int) -> float:
        left, right = weight_at(self.left, step, "a schedule"), weight_at(self.right, step, "a schedule")
        return left + right if self.sign == "+" else left * right

    def __str__(self) -> str:
        text = f"{weight_text(self.left)} {self.sign} {weight_text(self.right)}"
        return text if self.sign == "*" else f"({text})"


def _combined(left: object, sign: Literal["+", "*"], right: object) -> Any:
    """NotImplemented beside what is no number, schedule or plain function: `schedule * term` is the term's to answer."""
    for side in (left, right):
        if not (isinstance(side, Real | Schedule | partial) or inspect.isroutine(side)):
            return NotImplemented
    return Combined(check_weight(left, "a schedule"), sign, check_weight(right, "a schedule"))


@dataclass(frozen=True)
class Ramp(Schedule):
    """`weight * clip((step - start + 1) / steps, 0, 1)`: nothing before `start`, everything from `start + steps - 1` on."""

    weight: float
    start: int = 0
    steps: int = 1

    def __post_init__(self) -> None:
        _check_span("ramp", self.start, self.steps, self.weight)

    def __call__(self, step: int) -> float:
        return self.weight * min(max((step - self.start + 1) / self.steps, 0.0), 1.0)

    def __str__(self) -> str:
        return f"ramp({self.weight:g}, start={self.start}, steps={self.steps})"


@dataclass(frozen=True)
class Cosine(Schedule):
    """`last + (first - last) (1 + cos(pi clip((step - start) / steps, 0, 1))) / 2`."""

    first: float
    last: float
    start: int = 0
    steps: int = 1

    def __post_init__(self) -> None:
        _check_span("cosine", self.start, self.steps, self.first, self.last)

    def __call__(self, step: int) -> float:
        progress = min(max((step - self.start) / self.steps, 0.0), 1.0)
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * progress)) / 2

    def __str__(self) -> str:
        return f"cosine({self.first:g}, {self.last:g}, start={self.start}, steps={self.steps})"


@dataclass(frozen=True)
class Stepwise(Schedule):
    """The weight of the last of `(step, weight)` that has come; 0 before the first."""

    changes: tuple[tuple[int, float], ...]

    def __call__(self, step: int) -> float:
        return next((weight for start, weight in reversed(self.changes) if step >= start), 0.0)

    def __str__(self) -> str:
        return f"stepwise({{{', '.join(f'{start}: {weight:g}' for start, weight in self.changes)}}})"


def ramp(weight: float, start: int = 0, steps: int = 1) -> Ramp:
    """A weight that is 0 before optimizer step `start` and rises linearly to `weight` in `steps` steps."""
    return Ramp(weight, start, steps)


def cosine(first: float, last: float, start: int = 0, steps: int = 1) -> Cosine:
    """A weight that is `first` up to step `start` and `last` from `start + steps` on, with half a cosine between."""
    return Cosine(first, last, start, steps)


def stepwise(changes: dict[int, float]) -> Stepwise:
    """A weight that changes at the steps of `{step: weight}` and stays until the next; 0 before the first."""
    if not changes or min(changes) < 0:
        raise ValueError(f"stepwise needs at least one {{step: weight}} with steps from 0, got {changes}")
    _check_finite("stepwise", *changes.values())
    return Stepwise(tuple(sorted(changes.items())))


def balanced(share: Weight, initial: float = 0.01, smoothing: float = 0.9, limit: float = 1e4) -> Balanced:
    """A weight that holds an adversary's gradient at `share` of the token terms', at the student's last hidden states."""
    return Balanced(share, initial, smoothing, limit)


class Balanced(nn.Module):
    """`share(step) * ratio`, ratio = `||d token terms / d hidden|| / ||d adversary / d hidden||`, the adversary's at weight 1.

    VQGAN's adaptive weight (arXiv 2012.09841, equation 7), with three differences. The norms are those of a whole optimizer
    step, over all its micro-batches and ranks, so that the weight depends on neither; they are therefore known at the end of
    a step and count from the next one on. The ratio is an exponential average, `smoothing` of it the old one. And the
    gradients are taken at the last hidden states, where both are at hand, instead of at a weight. The first step
    plays at `initial`; no weight exceeds `limit`. `share` may be a schedule; nothing is measured where it is 0.
    """

    ratio: Tensor  # NaN until measured; saved with the adversary
    squares: Tensor

    def __init__(self, share: Weight, initial: float = 0.01, smoothing: float = 0.9, limit: float = 1e4) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing is the share of the old average and lies in [0, 1), got {smoothing}")
        if not 0 < initial <= limit:
            raise ValueError(
                f"the first weight measures the ratio and lies in (0, limit], got initial={initial}, limit={limit}"
            )
        self.share, self.initial, self.smoothing, self.limit = share, initial, smoothing, limit
        self.register_buffer("ratio", torch.tensor(math.nan))
        self.register_buffer(
            "squares", torch.zeros(2), persistent=False
        )  # of the token terms' gradient, and of the adversary's
        self._weight = 0.0  # in this step

    def forward(self, step: int) -> float:
        share, ratio = weight_at(self.share, step, "the share of an adversary"), float(self.ratio)
        self._weight = 0.0 if share == 0 else self.initial if math.isnan(ratio) else min(share * ratio, self.limit)
        return self._weight

    def watch(self, hidden_NH: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states twice, for the token terms and for the adversary; the backward counts each one's gradient."""
        views = hidden_NH.view_as(hidden_NH), hidden_NH.view_as(hidden_NH)
        if hidden_NH.requires_grad:
            for index, view in enumerate(views):
                view.register_hook(lambda gradient, index=index: self._count(index, gradient))
        return views

    def finish_step(self, over_ranks: Callable[[Tensor], Tensor]) -> float:
        """Bring the step's norms into the ratio and return the step's weight; `over_ranks` sums a tensor over all ranks."""
        token, adversary = over_ranks(self.squares).sqrt().tolist()
        self.squares.zero_()
        if self._weight > 0 and adversary > 0 and math.isfinite(token + adversary):
            measured, before = token * self._weight / adversary, float(self.ratio)
            mixed = self.smoothing * before + (1 - self.smoothing) * measured
            self.ratio.fill_(measured if math.isnan(before) else mixed)
        return self._weight

    def _count(self, index: int, gradient_NH: Tensor) -> None:
        self.squares[index] += gradient_NH.detach().float().square().sum()

    def __str__(self) -> str:
        return f"balanced({weight_text(self.share)})"


def _check_span(name: str, start: int, steps: int, *weights: float) -> None:
    if not (steps >= 1 and start >= 0 and math.isfinite(start + steps)):
        raise ValueError(f"a {name} needs start >= 0 and steps >= 1, got start={start}, steps={steps}")
    _check_finite(name, *weights)


def _check_finite(name: str, *weights: float) -> None:
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(
            f"the weights of a {name} are finite numbers, got {', '.join(format(weight, 'g') for weight in weights)}"
        )
