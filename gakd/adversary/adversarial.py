"""The adversary: the term that plays a game between a student and a discriminator.

Real is the teacher, fake the student, on the same tokens of the same sequence. Both updates use the networks as they were
at the start of the optimizer step and are applied together at its end (simultaneous updates), so that the result does
not depend on how the step is cut into micro-batches or ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from gakd.adversary.checks import agree_on_width, check_parts, one_each
from gakd.adversary.games import Game, Penalty
from gakd.adversary.readouts.protocol import Readout
from gakd.adversary.unfinished import begun, finished
from gakd.models.sharding import inside
from gakd.objective import Coefficients, Term
from gakd.types import Batch, StudentOutput, TeacherOutput
from gakd.weights import Balanced, Weight

Score = Callable[[Tensor], Tensor]  # readouts of one point or of several, [B, T, R] or [2B, T, R], to scores

# Parameters of a discriminator below which a GPU waits for its launches, and one pass over both points pays.
LAUNCH_BOUND = 20_000_000


class _Scores(NamedTuple):
    """`[B]` of each point, or what belongs to them."""

    real_B: Tensor
    fake_B: Tensor


class _Played(NamedTuple):
    """What the discriminator's side of a micro-batch leaves to the student's."""

    scores: _Scores
    gradient_BTR: Tensor  # of the fake score, at the fake readouts
    statistics: dict[str, Tensor]


class AdversarialOutput(NamedTuple):
    loss: Tensor  # scalar for the student: the coefficient times the summed losses, live
    losses: dict[str, Tensor]  # per sequence [B], detached: the student's loss, and `discriminator_*` statistics


class Adversarial(nn.Module, Term):
    """A sequence-level game against a discriminator of teacher and student readouts, as a term of an objective.

    One call plays both sides on one micro-batch: it adds the discriminator's gradient on detached rows to its parameters,
    and returns the student's loss, whose gradient goes back through live ones. The discriminator does not run again for it:
    how the fake score changes with what is read is known from the penalty on it.

    The module is replicated, fp32, outside any wrapper; its gradients are sums over sequences divided by the global sequence
    count, to be summed over ranks. `flush` ends the step: an optimizer that steps a player before, or where the rows of a
    forward were not played, raises RuntimeError. Whether the discriminator has an optimizer at all, nobody can tell.

    The discriminator scores the same rows more than once, so it must be deterministic: no dropout. A readout whose width was
    left open takes that which the discriminator reads. Raises ValueError where the two differ, and for scores or losses of
    a game that are not one a sequence.
    """

    unit: Literal["token", "sequence"] = "sequence"
    needs_teacher = True

    def __init__(self, discriminator: nn.Module, game: Game, readout: Readout, name: str = "adversarial") -> None:
        super().__init__()
        check_parts(discriminator, game, readout)
        agree_on_width(discriminator, readout)
        self.discriminator = discriminator
        self.game = game
        self.readout = readout
        self.name = name
        self.balance: Balanced | None = None
        # Since the last flush: outputs of the distiller that have rows for it, and games.
        self._handed_out = self._played = 0
        self._student: tuple[nn.Module, ...] = ()  # a tuple hides the module from registration

    def plays_for(self, student: nn.Module) -> None:
        """Take in whose head the readout projects: where it is sharded, `flush` needs it whole again."""
        self._student = (student,)

    def weigh(self, weight: Weight) -> None:
        """Take in the weight that the objective gives this term: the state of a balanced one is saved with the adversary's."""
        self.balance = weight if isinstance(weight, Balanced) else None

    def expect_play(self) -> None:
        """Take in that an output of a training distiller has rows for this term."""
        self._handed_out += 1
        begun(self)

    def __str__(self) -> str:
        # A user's own game may say nothing of itself, or, as a module, several lines.
        plain = type(self.game).__repr__ is object.__repr__ or isinstance(self.game, nn.Module)
        game = type(self.game).__name__ if plain else repr(self.game)
        return f"{self.name}({game}, {type(self.discriminator).__name__}, {type(self.readout).__name__})"

    def forward(
        self, output: StudentOutput, teacher: TeacherOutput, batch: Batch, coefficients: Coefficients
    ) -> AdversarialOutput:
        """Adds the discriminator's gradient, returns the student's loss; nothing at all while the weight is 0."""
        coefficient = coefficients.terms[self.name]
        if coefficient == 0 or output.readout is None:
            return AdversarialOutput(output.loss.new_zeros(()), {})
        if not torch.is_grad_enabled():
            raise RuntimeError(f"{self.name} trains the discriminator as it plays: call it outside of torch.no_grad()")
        self._played += 1
        begun(self)
        rows = output.readout
        packed_BT = pack_mask(batch)
        # A sequence without supervised tokens has no readout to score.
        valid_B = packed_BT.any(1).to(rows.live_NR.dtype)

        def score(readout_BTR: Tensor) -> Tensor:
            score_B = self.discriminator(readout_BTR, packed_BT.repeat(len(readout_BTR) // len(packed_BT), 1))
            return one_each(score_B, len(readout_BTR), f"{type(self.discriminator).__name__}.forward")

        step_rows, readout = coefficients.step_rows, self.readout
        real_NR = readout.detached(teacher.hidden_NH, teacher.head, step_rows, rows.teacher_log_normalizers_N)
        fake_NR = readout.detached(rows.hidden_NH, None, step_rows, rows.log_normalizers_N)
        real_BTR, fake_BTR = pack(real_NR, batch), pack(fake_NR, batch)
        discriminate = self._both_at_once if self._waits_for_launches(real_BTR) else self._one_after_the_other
        played = discriminate(real_BTR, fake_BTR, score, valid_B * coefficients.per_sequence)

        fake_B = _KnownScore.apply(pack(rows.live_NR, batch), played.scores.fake_B, played.gradient_BTR)
        losses_B = self.game.student(fake_B, played.scores.real_B)
        losses_B = one_each(losses_B, len(fake_B), f"{type(self.game).__name__}.student") * valid_B
        statistics = {name: values_B * valid_B for name, values_B in played.statistics.items()}
        return AdversarialOutput(coefficient * losses_B.sum(), {self.name: losses_B.detach(), **statistics})

    def _waits_for_launches(self, readout_BTR: Tensor) -> bool:
        """Whether the discriminator is so small that a GPU takes longer to be asked than to answer."""
        size = sum(parameter.numel() for parameter in self.discriminator.parameters())
        return readout_BTR.device.type == "cuda" and size < LAUNCH_BOUND

    def _one_after_the_other(self, real_BTR: Tensor, fake_BTR: Tensor, score: Score, weights_B: Tensor) -> _Played:
        """Adds the discriminator's gradient, one point after the other.

        A loss couples its points through their scores alone. So its slope at the known scores is enough to send each
        back by itself, and the graph of one penalty, the largest thing a step holds, is gone before the next is built.
        """
        with torch.no_grad():
            real_B = score(real_BTR)
        real, fake = real_BTR.detach().requires_grad_(), fake_BTR.detach().requires_grad_()
        fake_B, penalties = score(fake), self.game.penalties
        scores = _Scores(real_B, fake_B.detach())
        losses_B, slopes = self._losses_and_slopes(scores, weights_B)
        gradient_BTR = _gradient(fake_B, fake, "fake" in penalties)
        of_fake_B = self._send_back(fake_B, slopes.fake_B, weights_B, gradient_BTR, penalties.get("fake"))
        gradient_BTR = gradient_BTR.detach()  # lets go of the graph
        live_B = score(real)
        of_points = _gradient(live_B, real, True) if "real" in penalties else None
        of_real_B = self._send_back(live_B, slopes.real_B, weights_B, of_points, penalties.get("real"))
        penalty_B = of_real_B + of_fake_B + self._between(real, fake, score, weights_B)
        _bring_home((real_BTR, fake_BTR), (real.grad, fake.grad))
        return _Played(scores, gradient_BTR, _statistics(scores, losses_B, penalty_B))

    def _both_at_once(self, real_BTR: Tensor, fake_BTR: Tensor, score: Score, weights_B: Tensor) -> _Played:
        """The same in one pass over both points, of half the kernels, with both penalties' graphs in memory."""
        both_2BTR = torch.cat([real_BTR, fake_BTR]).detach().requires_grad_()
        score_2B, penalties = score(both_2BTR), self.game.penalties
        scores = _Scores(*score_2B.detach().chunk(2))
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
        penalty_B = of_real_B + of_fake_B + self._between(real, fake, score, weights_B)
        assert both_2BTR.grad is not None
        _bring_home((real_BTR, fake_BTR), both_2BTR.grad.chunk(2))
        return _Played(scores, gradient_2BTR.detach().chunk(2)[1], _statistics(scores, losses_B, penalty_B))

    def _losses_and_slopes(self, scores: _Scores, weights_B: Tensor) -> tuple[Tensor, _Scores]:
        """The discriminator's losses `[B]`, and the gradient of their weighted sum at each point's scores."""
        real_B, fake_B = (score_B.detach().requires_grad_() for score_B in scores)
        losses_B = self.game.discriminator(fake_B, real_B)
        one_each(losses_B, len(fake_B), f"{type(self.game).__name__}.discriminator")
        return losses_B.detach(), _Scores(*torch.autograd.grad((losses_B * weights_B).sum(), (real_B, fake_B)))

    def _between(self, real_BTR: Tensor, fake_BTR: Tensor, score: Score, weights_B: Tensor) -> Tensor:
        """Adds the gradient of a penalty between the points, where the game has one; `[B]`."""
        penalty = self.game.penalties.get("between")
        if penalty is None:
            return torch.zeros_like(weights_B)
        # Readouts are linear, so what they give may be interpolated in place of what they read.
        between_BTR = torch.lerp(fake_BTR, real_BTR, torch.rand_like(weights_B).view(-1, 1, 1))
        score_B = score(between_BTR)
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
            norms = self.readout.squared_norm(gradient_PTR).chunk(len(penalties))
            penalty_P = torch.cat(
                [
                    torch.zeros_like(norms_B) if penalty is None else penalty(norms_B)
                    for penalty, norms_B in zip(penalties, norms, strict=True)
                ]
            )
            loss = loss + (penalty_P * weights_P).sum()
        loss.backward()
        return penalty_P.detach()

    def flush(self) -> None:
        """Bring the step's gradients home to the readout's parameters; call after the last backward, before any update.

        RuntimeError where an output of the distiller had rows for this term and was not played.
        """
        if self._student:
            inside(self._student[0], self.readout.flush)
        else:
            self.readout.flush()
        self._end_step()

    def before_update(self, optimizer: Optimizer) -> None:
        """RuntimeError where it would step a player whose game was not played, or not flushed."""
        weights = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        players = self.parameters(), *(student.parameters() for student in self._student)
        if all(id(weight) not in weights for player in players for weight in player):
            return
        self._end_step()
        raise RuntimeError(
            f"{self.name} has played and was not flushed: its readout would not train; call {self.name}.flush() after the "
            f"last backward of a step, before any optimizer steps"
        )

    def _end_step(self) -> None:
        outputs, missing = self._handed_out, self._handed_out - self._played
        self._handed_out = self._played = 0  # said once, so that a notebook goes on
        finished(self)
        if missing > 0:
            raise RuntimeError(
                f"{self.name} was not played on {missing} of {outputs} outputs of the distiller: call {self.name}(output, "
                f"teacher_output, batch, coefficients) on each and add its loss to the student's; torch.no_grad() is for a look"
            )


def _gradient(score_P: Tensor, points_PTR: Tensor, penalised: bool) -> Tensor:
    """Of each score at its point, with a graph where it is to be differentiated again."""
    (gradient_PTR,) = torch.autograd.grad(score_P.sum(), points_PTR, retain_graph=True, create_graph=penalised)
    return gradient_PTR


class _KnownScore(torch.autograd.Function):
    """Scores `[B]` of live readouts `[B, T, R]`, known with their gradient from where these were scored before."""

    @staticmethod
    def forward(ctx: Any, live_BTR: Tensor, score_B: Tensor, gradient_BTR: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_BTR)
        return score_B.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_B: Tensor) -> Any:  # type: ignore[override]
        (gradient_BTR,) = ctx.saved_tensors
        return slope_B.view(-1, 1, 1) * gradient_BTR, None, None


def _bring_home(readouts: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Gradients at readouts, to the map that they came through.

    A readout without parameters of the discriminator's side, of hidden states, leads nowhere.
    """
    for rows_BTR, gradient_BTR in zip(readouts, gradients, strict=True):
        if rows_BTR.requires_grad:
            rows_BTR.backward(gradient_BTR)


def _statistics(scores: _Scores, losses_B: Tensor, penalty_B: Tensor) -> dict[str, Tensor]:
    margin_B = scores.real_B - scores.fake_B
    return {
        "discriminator": losses_B,
        "discriminator_penalty": penalty_B,
        "discriminator_margin": margin_B,
        "discriminator_accuracy": (margin_B > 0).float() + (margin_B == 0).float() / 2,
    }


class GameWatch:
    """Notices a game that is lost: every pair, or as good as a coin toss, told apart for `patience` steps on end."""

    def __init__(self, patience: int = 50) -> None:
        self.patience = patience
        self._verdict, self._steps = "", 0

    def observe(self, accuracy: float) -> str | None:
        """Once per spell, what is wrong and what to change."""
        verdict = {1.0: "won by the discriminator", 0.5: "undecided"}.get(accuracy, "")
        self._steps = self._steps + 1 if verdict == self._verdict else 1
        self._verdict = verdict
        if not verdict or self._steps != self.patience:
            return None
        if accuracy == 1.0:
            remedy = "lower --discriminator-learning-rate, or raise its penalties' weights"
        else:
            remedy = "raise --discriminator-learning-rate, or lower its penalties' weights"
        return f"the game has been {verdict} for {self.patience} steps: the student learns little from it; {remedy}"


def pack_mask(batch: Batch) -> Tensor:
    """Which positions of packed rows are real: each sequence's supervised ones, moved to the left, `[B, T']` bool."""
    shape = len(batch.lengths), max(batch.lengths)
    real = torch.zeros(math.prod(shape), dtype=torch.bool, device=batch.slots_N.device)
    return real.index_fill_(0, batch.slots_N, True).view(shape)


def pack(rows_NR: Tensor, batch: Batch) -> Tensor:
    """Supervised rows to `[B, T', R]`, left-aligned, zero on padding: no prompt, no padding, positions from 0."""
    shape = len(batch.lengths), max(batch.lengths)
    padded = rows_NR.new_zeros(math.prod(shape), rows_NR.shape[-1])
    return padded.index_copy(0, batch.slots_N, rows_NR).view(*shape, rows_NR.shape[-1])
