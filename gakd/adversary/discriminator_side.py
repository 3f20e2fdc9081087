"""The discriminator's side of a game: its loss and penalties on known readouts, and their gradient to whoever trains of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gakd.adversary.checks import one_each
from gakd.adversary.games import Game, Penalty

Score = Callable[[Tensor], Tensor]  # readouts of one point or of several, [B, T, R] or [2B, T, R], to scores


class Scores(NamedTuple):
    """`[B]` of each point, or what belongs to them."""

    real_B: Tensor
    fake_B: Tensor


class Played(NamedTuple):
    """What the discriminator's side of a micro-batch leaves to the student's."""

    scores: Scores
    gradient_BTR: Tensor  # of the fake score, at the fake readouts
    statistics: dict[str, Tensor]


@dataclass(frozen=True)
class DiscriminatorSide:
    """Of one micro-batch: `score` is the discriminator on its masks, `squared_norm` the readout's, of a gradient at it."""

    game: Game
    squared_norm: Callable[[Tensor], Tensor]
    score: Score

    def one_after_the_other(self, real_BTR: Tensor, fake_BTR: Tensor, weights_B: Tensor) -> Played:
        """Adds the discriminator's gradient, one point after the other.

        A loss couples its points through their scores alone. So its slope at the known scores is enough to send each
        back by itself, and the graph of one penalty, the largest thing a step holds, is gone before the next is built.
        """
        with torch.no_grad():
            real_B = self.score(real_BTR)
        real, fake = real_BTR.detach().requires_grad_(), fake_BTR.detach().requires_grad_()
        fake_B, penalties = self.score(fake), self.game.penalties
        scores = Scores(real_B, fake_B.detach())
        losses_B, slopes = self._losses_and_slopes(scores, weights_B)
        gradient_BTR = _gradient(fake_B, fake, "fake" in penalties)
        of_fake_B = self._send_back(fake_B, slopes.fake_B, weights_B, gradient_BTR, penalties.get("fake"))
        gradient_BTR = gradient_BTR.detach()  # lets go of the graph
        live_B = self.score(real)
        of_points = _gradient(live_B, real, True) if "real" in penalties else None
        of_real_B = self._send_back(live_B, slopes.real_B, weights_B, of_points, penalties.get("real"))
        penalty_B = of_real_B + of_fake_B + self._between(real, fake, weights_B)
        _bring_home((real_BTR, fake_BTR), (real.grad, fake.grad))
        return Played(scores, gradient_BTR, _statistics(scores, losses_B, penalty_B))

    def both_at_once(self, real_BTR: Tensor, fake_BTR: Tensor, weights_B: Tensor) -> Played:
        """The same in one pass over both points, of half the kernels, with both penalties' graphs in memory."""
        both_2BTR = torch.cat([real_BTR, fake_BTR]).detach().requires_grad_()
        score_2B, penalties = self.score(both_2BTR), self.game.penalties
        scores = Scores(*score_2B.detach().chunk(2))
        losses_B, slopes = self._losses_and_slopes(scores, weights_B)
        gradient_2BTR = _gradient(score_2B, both_2BTR, not penalties.keys().isdisjoint(("real", "fake")))
        penalty_2B = self._send_back(
            score_2B,
            torch.cat(slopes),
            weights_B.repeat(2),
            gradient_2BTR,
            penalties.get("real"),
            penalties.get("fake"),
        )
        of_real_B, of_fake_B = penalty_2B.chunk(2)
        real, fake = both_2BTR.chunk(2)
        penalty_B = of_real_B + of_fake_B + self._between(real, fake, weights_B)
        assert both_2BTR.grad is not None
        _bring_home((real_BTR, fake_BTR), both_2BTR.grad.chunk(2))
        return Played(scores, gradient_2BTR.detach().chunk(2)[1], _statistics(scores, losses_B, penalty_B))

    def _losses_and_slopes(self, scores: Scores, weights_B: Tensor) -> tuple[Tensor, Scores]:
        """The discriminator's losses `[B]`, and the gradient of their weighted sum at each point's scores."""
        real_B, fake_B = (score_B.detach().requires_grad_() for score_B in scores)
        losses_B = self.game.discriminator(fake_B, real_B)
        one_each(losses_B, len(fake_B), f"{type(self.game).__name__}.discriminator")
        return losses_B.detach(), Scores(*torch.autograd.grad((losses_B * weights_B).sum(), (real_B, fake_B)))

    def _between(self, real_BTR: Tensor, fake_BTR: Tensor, weights_B: Tensor) -> Tensor:
        """Adds the gradient of a penalty between the points, where the game has one; `[B]`."""
        penalty = self.game.penalties.get("between")
        if penalty is None:
            return torch.zeros_like(weights_B)
        # Readouts are linear, so what they give may be interpolated in place of what they read.
        between_BTR = torch.lerp(fake_BTR, real_BTR, torch.rand_like(weights_B).view(-1, 1, 1))
        score_B = self.score(between_BTR)
        gradient_BTR = _gradient(score_B, between_BTR, True)
        return self._send_back(score_B, torch.zeros_like(weights_B), weights_B, gradient_BTR, penalty)

    def _send_back(
        self,
        score_P: Tensor,
        slope_P: Tensor,
        weights_P: Tensor,
        gradient_PTR: Tensor | None,
        *penalties: Penalty | None,
    ) -> Tensor:
        """Adds the gradient of the scores of some points, and of their penalties, which are returned `[P]`.

        Each penalty is of an equal share of the points, in their order, and of each score's gradient at its point.
        """
        loss, penalty_P = (score_P * slope_P).sum(), torch.zeros_like(slope_P)
        if gradient_PTR is not None and any(penalty is not None for penalty in penalties):
            norms = self.squared_norm(gradient_PTR).chunk(len(penalties))
            penalty_P = torch.cat(
                [
                    torch.zeros_like(norms_B) if penalty is None else penalty(norms_B)
                    for penalty, norms_B in zip(penalties, norms, strict=True)
                ]
            )
            loss = loss + (penalty_P * weights_P).sum()
        loss.backward()
        return penalty_P.detach()


def _gradient(score_P: Tensor, points_PTR: Tensor, penalised: bool) -> Tensor:
    """Of each score at its point, with a graph where it is to be differentiated again."""
    (gradient_PTR,) = torch.autograd.grad(score_P.sum(), points_PTR, retain_graph=True, create_graph=penalised)
    return gradient_PTR


def _bring_home(readouts: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Gradients at readouts, to the map that they came through.

    A readout without parameters of the discriminator's side, of hidden states, leads nowhere.
    """
    for rows_BTR, gradient_BTR in zip(readouts, gradients, strict=True):
        if rows_BTR.requires_grad:
            rows_BTR.backward(gradient_BTR)


def _statistics(scores: Scores, losses_B: Tensor, penalty_B: Tensor) -> dict[str, Tensor]:
    margin_B = scores.real_B - scores.fake_B
    return {
        "discriminator": losses_B,
        "discriminator_penalty": penalty_B,
        "discriminator_margin": margin_B,
        "discriminator_accuracy": (margin_B > 0).float() + (margin_B == 0).float() / 2,
    }
