"""The adversary: the term that plays a game between a student and a discriminator.

Real is the teacher, fake the student, on the same tokens of the same sequence. Both updates use the networks as they were
at the start of the optimizer step and are applied together at its end (simultaneous updates), so that the result does
not depend on how the step is cut into micro-batches or ranks.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from gakd.adversary.checks import agree_on_width, check_parts, one_each
from gakd.adversary.discriminator_side import DiscriminatorSide
from gakd.adversary.games import Game
from gakd.adversary.packing import pack, pack_mask
from gakd.adversary.readouts.protocol import Readout
from gakd.adversary.unfinished import begun, finished
from gakd.models.sharding import inside
from gakd.objective import Coefficients, Term
from gakd.types import Batch, StudentOutput, TeacherOutput
from gakd.weights import Balanced, Weight

# Parameters of a discriminator below which a GPU waits for its launches, and one pass over both points pays.
LAUNCH_BOUND = 20_000_000


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
        side = DiscriminatorSide(self.game, readout.squared_norm, score)
        discriminate = side.both_at_once if self._waits_for_launches(real_BTR) else side.one_after_the_other
        played = discriminate(real_BTR, fake_BTR, valid_B * coefficients.per_sequence)

        fake_B = _KnownScore.apply(pack(rows.live_NR, batch), played.scores.fake_B, played.gradient_BTR)
        losses_B = self.game.student(fake_B, played.scores.real_B)
        losses_B = one_each(losses_B, len(fake_B), f"{type(self.game).__name__}.student") * valid_B
        statistics = {name: values_B * valid_B for name, values_B in played.statistics.items()}
        return AdversarialOutput(coefficient * losses_B.sum(), {self.name: losses_B.detach(), **statistics})

    def _waits_for_launches(self, readout_BTR: Tensor) -> bool:
        """Whether the discriminator is so small that a GPU takes longer to be asked than to answer."""
        size = sum(parameter.numel() for parameter in self.discriminator.parameters())
        return readout_BTR.device.type == "cuda" and size < LAUNCH_BOUND

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
