"""What all token terms share: a temperature; and what those share that compare two distributions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Self, cast

import torch
from torch import Tensor

from gakd.losses.term import TokenChunk
from gakd.objective import Term
from gakd.weights import takes_a_step, weight_text

Temperature = float | Callable[[int], float]


class TokenLoss(Term):
    """A loss per supervised token at a temperature, which the engine applies: a term sees chunks that are already at it.

    Both models' logits are divided by `temperature`; losses and gradients are multiplied by `scale`, its square, so that
    the gradient keeps its size (Hinton et al., arXiv 1503.02531), or by 1 where `temperature_squared` is off.
    A temperature may be a function of the step, as a weight may: `at(step)` is the term with the number that it is then.
    `name` is what logs call the term, where the class's own will not do: of two terms of a class in one objective, say.
    """

    needs_shared_vocabulary: bool = True  # most terms compare token with token
    # Class attributes too, so that a subclass may have its own constructor, or none.
    temperature: float = 1.0
    temperature_squared: bool = True

    def __init__(
        self, temperature: Temperature = 1.0, temperature_squared: bool = True, name: str | None = None
    ) -> None:
        if not callable(temperature):
            self.temperature = _above_zero(temperature, type(self).__name__)
        elif isinstance(temperature, type) or not takes_a_step(temperature):
            raise TypeError(
                f"a temperature is a number or a function of the step, got {temperature} for {type(self).__name__}"
            )
        else:
            self.temperature = cast("float", temperature)  # which it is in `at(step)`, for whoever computes with it
        self.temperature_squared = temperature_squared
        if name is not None:
            self.name = name

    @property
    def scale(self) -> float:
        return self.temperature**2 if self.temperature_squared else 1.0

    def at(self, step: int) -> Self:
        """The term with the temperature of that step; ValueError where it is not above 0."""
        if not callable(self.temperature):
            return self
        schedule = cast("Callable[[int], float]", self.temperature)
        now, whose = copy.copy(self), f"{type(self).__name__} at step {step}, by {weight_text(schedule)}"
        now.temperature = _above_zero(schedule(step), whose)
        return now


def is_number(value: object) -> bool:
    """Whether it is one, of Python or of NumPy, and no schedule or text."""
    return isinstance(value, Real)


def _above_zero(temperature: Any, whose: str) -> float:
    if not (is_number(temperature) and 0 < temperature < math.inf):
        raise ValueError(
            f"a temperature divides the logits and is above 0, got {temperature} for {whose}: pass 1 for none"
        )
    return float(temperature)


class Divergence(TokenLoss):
    """A token term that compares two next-token distributions; subclass it and write `losses`.

    `losses` alone is enough: it is differentiated by autograd, one chunk of rows at a time. A closed form, where there is
    one, goes into `losses_and_gradient` and saves memory and time.
    """

    needs_teacher = True

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        """Loss of each row `[N]`, in nats, from fp32 log-probabilities `[N, V]`."""
        raise NotImplementedError(
            f"{type(self).__name__} must define losses(student_log_probs_NV, teacher_log_probs_NV) -> [N]"
        )

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        """Losses `[N]` and, in a fresh tensor, d(loss of the row)/d(student log-probabilities) up to a multiple of q per row."""
        with torch.enable_grad():
            log_probs_NV = chunk.student_log_probs_NV.detach().requires_grad_()
            losses_N = self.chunk_losses(chunk.with_student(log_probs_NV))
            if losses_N.shape != chunk.labels_N.shape:
                raise ValueError(
                    f"{self.name}.losses must return one loss a row, {tuple(chunk.labels_N.shape)}, "
                    f"got {tuple(losses_N.shape)}: sum over the vocabulary only"
                )
            (gradient_NV,) = torch.autograd.grad(losses_N.sum(), log_probs_NV)
        return losses_N.detach(), gradient_NV.contiguous()  # that of a plain sum is one number, expanded

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        return self.losses(chunk.student_log_probs_NV, chunk.teacher_log_probs_NV)

    def accumulate_(
        self, chunk: TokenChunk, coefficient: float | Tensor, total_NV: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        losses_N, gradient_NV = self.losses_and_gradient(chunk)
        if total_NV is None:
            return losses_N, gradient_NV.mul_(coefficient)
        if isinstance(coefficient, Tensor):
            return losses_N, total_NV.add_(gradient_NV.mul_(coefficient))
        return losses_N, total_NV.add_(gradient_NV, alpha=coefficient)
