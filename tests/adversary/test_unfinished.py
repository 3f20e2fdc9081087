"""No optimizer steps a player whose game of the step was not played, or not flushed."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from gakd import (
    Adversarial,
    CenteredLogitReadout,
    Counts,
    CrossEntropy,
    Distiller,
    ExpectedEmbedding,
    HiddenReadout,
    LocalTeacher,
    LogProbReadout,
    MLPDiscriminator,
    RelativisticGAN,
    ramp,
)
from tests import tiny
from tests.test_distiller import VOCAB, batch_of, sequences

NEVER_PLAYED = r"not played on 1 of \d outputs of the distiller: call adversarial\(output, teacher_output, batch, coeff"
NOT_FLUSHED = r"has played and was not flushed: its readout would not train; call adversarial.flush\(\)"


class Game:
    """A student, its adversary and an optimizer each, whose step leaves something out."""

    def __init__(self, weight=0.1) -> None:
        self.adversarial = Adversarial(MLPDiscriminator(8, 16), RelativisticGAN(), CenteredLogitReadout(VOCAB))
        self.objective = CrossEntropy() + weight * self.adversarial
        self.distiller = Distiller(tiny.model(VOCAB, seed=1), self.objective)
        self.teacher = LocalTeacher(tiny.model(VOCAB, width=48, tied=False, seed=2))
        self.batch = batch_of(sequences(3))
        self.students, self.discriminators = (
            torch.optim.AdamW(module.parameters(), lr=1e-3) for module in (self.distiller, self.adversarial)
        )

    def micro_batch(self, step: int = 0, play: bool = True) -> None:
        coefficients, teacher = self.objective.coefficients(step, Counts.over(self.batch)), self.teacher(self.batch)
        output = self.distiller(self.batch, teacher, coefficients)
        loss = output.loss
        if play:
            loss = loss + self.adversarial(output, teacher, self.batch, coefficients).loss
        loss.backward()

    def update(self) -> None:
        for optimizer in (self.students, self.discriminators):
            optimizer.step()
            optimizer.zero_grad()


def moves(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step, if nothing refuses it, moves its weights."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    before = [weight.clone() for weight in weights]
    optimizer.step()
    optimizer.zero_grad()
    return not all(map(torch.equal, before, weights))


@pytest.mark.parametrize("of", ["students", "discriminators"])
def test_a_game_that_is_not_flushed_stops_both_optimizers_before_they_step(of):
    game = Game()
    game.micro_batch()
    optimizer = getattr(game, of)
    before = [weight.clone() for weight in optimizer.param_groups[0]["params"]]
    with pytest.raises(RuntimeError, match=NOT_FLUSHED):
        optimizer.step()
    assert all(map(torch.equal, before, optimizer.param_groups[0]["params"]))


def test_rows_that_nobody_plays_stop_an_optimizer_and_a_flush():
    game = Game()
    game.micro_batch(play=False)
    with pytest.raises(RuntimeError, match=NEVER_PLAYED):
        game.students.step()
    game.micro_batch()
    game.micro_batch(play=False)
    with pytest.raises(RuntimeError, match=NEVER_PLAYED):
        game.adversarial.flush()
    # Said once: who mends the cell of a notebook goes on.
    game.micro_batch()
    game.adversarial.flush()
    game.update()


def test_micro_batches_looks_and_other_optimizers_are_no_reason():
    game = Game()
    for step in range(2):
        game.micro_batch(step)
        game.micro_batch(step)
        game.adversarial.flush()
        assert moves(game.students)
        assert moves(game.discriminators)
        with torch.no_grad():
            game.distiller(
                game.batch, game.teacher(game.batch), game.objective.coefficients(step, Counts.over(game.batch))
            )
        game.distiller.eval()(
            game.batch, game.teacher(game.batch), game.objective.coefficients(step, Counts.over(game.batch))
        )
        game.distiller.train()
        game.update()
    game.micro_batch()
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    assert moves(torch.optim.SGD(other.parameters(), lr=0.1))
    game.adversarial.flush()
    assert moves(game.students)


def test_an_update_a_micro_batch_and_a_game_that_has_not_begun_are_no_reason():
    game = Game(ramp(0.1, start=1))
    game.micro_batch(0, play=False)
    assert moves(game.students)
    assert not moves(game.discriminators)
    for _ in range(2):
        game.micro_batch(1)
        game.adversarial.flush()
        assert moves(game.discriminators)
    game.adversarial.flush()
    assert moves(game.students)


def test_a_copy_and_a_game_that_is_gone_hold_nobody_up():
    game = Game()
    game.micro_batch()
    distiller = copy.deepcopy(game.distiller)
    for copied, weight in zip(distiller.parameters(), game.distiller.parameters(), strict=True):
        copied.grad = None if weight.grad is None else weight.grad.clone()
    assert moves(torch.optim.SGD(distiller.parameters(), lr=0.1))
    students = game.students
    del game
    gc.collect()
    assert moves(students)


def test_it_is_played_where_gradients_are():
    game = Game()
    coefficients, teacher = game.objective.coefficients(0, Counts.over(game.batch)), game.teacher(game.batch)
    with torch.no_grad():
        output = game.distiller(game.batch, teacher, coefficients)
        with pytest.raises(RuntimeError, match=r"outside of torch.no_grad\(\)"):
            game.adversarial(output, teacher, game.batch, coefficients)


# ---- parts that go together ----


class Column(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, readout_BTR, mask_BT):
        return self.score(readout_BTR).mean(1)  # [B, 1]


class Averaged(RelativisticGAN):
    def student(self, fake_B, real_B):
        return super().student(fake_B, real_B).mean()


class AveragedDiscriminator(RelativisticGAN):
    def discriminator(self, fake_B, real_B):
        return super().discriminator(fake_B, real_B).mean()


@pytest.mark.parametrize(
    ("discriminator", "game", "message"),
    [
        (Column(256), RelativisticGAN(), r"Column.forward must return one number a sequence, \(3,\), got \(3, 1\)"),
        (MLPDiscriminator(256), Averaged(), r"Averaged.student must return .* got \(\)"),
        (
            MLPDiscriminator(256),
            AveragedDiscriminator(),
            r"AveragedDiscriminator.discriminator must return .* got \(\)",
        ),
    ],
)
def test_what_would_be_broadcast_over_sequences_is_refused(discriminator, game, message):
    played = Game()
    played.adversarial = Adversarial(discriminator, game, CenteredLogitReadout(VOCAB))
    played.objective = CrossEntropy() + 0.1 * played.adversarial
    played.distiller = Distiller(tiny.model(VOCAB, seed=1), played.objective)
    with pytest.raises(ValueError, match=message):
        played.micro_batch()


@pytest.mark.parametrize("readout", [CenteredLogitReadout, LogProbReadout, ExpectedEmbedding])
def test_a_readout_without_a_width_takes_the_discriminators(readout):
    adversarial = Adversarial(MLPDiscriminator(24, 16), RelativisticGAN(), readout(VOCAB))
    assert adversarial.readout.width == 24
    weights: Iterable[nn.Parameter] = adversarial.readout.parameters()
    assert [tuple(weight.shape) for weight in weights] == [(24, VOCAB)]
    assert readout(VOCAB).width == 256
    with pytest.raises(
        ValueError, match=r"MLPDiscriminator reads rows of width 24, \w+ gives 16: build both with one width"
    ):
        Adversarial(MLPDiscriminator(24, 16), RelativisticGAN(), readout(VOCAB, 16))


def test_parts_that_are_none_are_named():
    parts = MLPDiscriminator(48), RelativisticGAN(), HiddenReadout(32, 48)
    Adversarial(*parts)
    for index, wrong, message in (
        (0, RelativisticGAN(), "a discriminator is a module of rows and mask, got RelativisticGAN"),
        (1, RelativisticGAN, r"as its game got the class RelativisticGAN: write RelativisticGAN\(...\)"),
        (1, object(), "as its game got object, which lacks student, discriminator, penalties"),
        (2, MLPDiscriminator(48), "as its readout got MLPDiscriminator, which lacks needs_log_normalizers"),
        (2, HiddenReadout(32, 40), "reads rows of width 48, HiddenReadout gives 40"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            Adversarial(*(wrong if place == index else part for place, part in enumerate(parts)))
