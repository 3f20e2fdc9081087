"""Games against their formulas in plain Python floats, slopes against differences, and what a slope must never do."""

from __future__ import annotations

import math

import pytest
import torch

from gakd import HingeGAN, NonSaturatingGAN, RelativisticGAN, WassersteinGAN


def log_sigmoid(score: float) -> float:
    return -math.log1p(math.exp(-score))


# name -> game, the student's loss and the discriminator's, of one fake and one real score
GAMES = {
    "relativistic": (
        RelativisticGAN(),
        lambda fake, real: -log_sigmoid(fake - real),
        lambda fake, real: -log_sigmoid(real - fake),
    ),
    "non_saturating": (
        NonSaturatingGAN(),
        lambda fake, real: -log_sigmoid(fake),
        lambda fake, real: -log_sigmoid(real) - math.log(1 - 1 / (1 + math.exp(-fake))),
    ),
    "hinge": (
        HingeGAN(),
        lambda fake, real: -fake,
        lambda fake, real: max(0.0, 1 - real) + max(0.0, 1 + fake),
    ),
    "wasserstein": (WassersteinGAN(), lambda fake, real: -fake, lambda fake, real: fake - real),
}
EVERY = pytest.mark.parametrize("name", GAMES)
SCORES = [(0.3, -0.4), (-1.7, 2.2), (3.0, 0.1), (0.0, 0.0), (-0.6, 0.5), (1.4, -3.0)]


def score_tensors() -> tuple[torch.Tensor, torch.Tensor]:
    fake, real = (torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in zip(*SCORES, strict=True))
    return fake, real


@EVERY
def test_losses_are_their_formulas_unreduced(name):
    game, student, discriminator = GAMES[name]
    fake, real = score_tensors()
    for losses, formula in ((game.student(fake, real), student), (game.discriminator(fake, real), discriminator)):
        assert losses.tolist() == pytest.approx([formula(*pair) for pair in SCORES], abs=1e-14)


@EVERY
def test_slopes_are_those_of_the_formulas(name):
    game, student, discriminator = GAMES[name]
    for losses_of, formula in ((game.student, student), (game.discriminator, discriminator)):
        fake, real = score_tensors()
        gradients = torch.autograd.grad(losses_of(fake, real).sum(), (fake, real), allow_unused=True)
        for index, gradient in enumerate(gradients):
            found = torch.zeros(len(SCORES)) if gradient is None else gradient
            for pair, slope in zip(SCORES, found.tolist(), strict=True):
                moved = [
                    [score + sign * 1e-6 * (place == index) for place, score in enumerate(pair)] for sign in (1, -1)
                ]
                assert slope == pytest.approx((formula(*moved[0]) - formula(*moved[1])) / 2e-6, abs=1e-8)


@EVERY
def test_a_student_wants_a_higher_score_and_a_discriminator_a_larger_margin(name):
    game = GAMES[name][0]
    fake, real = score_tensors()
    assert (torch.autograd.grad(game.student(fake, real).sum(), fake)[0] < 0).all()
    for_fake, for_real = torch.autograd.grad(game.discriminator(fake, real).sum(), (fake, real))
    assert (for_fake >= 0).all()
    assert (for_real <= 0).all()


@EVERY
def test_scores_of_any_size_stay_finite(name):
    game = GAMES[name][0]
    fake, real = torch.tensor([1e4, -1e4], requires_grad=True), torch.tensor([-1e4, 1e4], requires_grad=True)
    for losses in (game.student(fake, real), game.discriminator(fake, real)):
        assert torch.isfinite(losses).all()
        assert all(
            torch.isfinite(g).all()
            for g in torch.autograd.grad(losses.sum(), (fake, real), allow_unused=True)
            if g is not None
        )


@pytest.mark.parametrize("kind", [RelativisticGAN, NonSaturatingGAN, HingeGAN])
def test_r1_and_r2_are_half_a_weighted_square_at_their_own_point(kind):
    squares = torch.tensor([0.0, 2.0, 5.0])
    penalties = kind(r1=4.0, r2=6.0).penalties
    assert set(penalties) == {"real", "fake"}
    assert penalties["real"](squares).tolist() == [0, 4, 10]
    assert penalties["fake"](squares).tolist() == [0, 6, 15]
    assert set(kind(r1=4.0, r2=0.0).penalties) == {"real"}
    assert kind(r1=0.0, r2=0.0).penalties == {}


def test_the_wasserstein_penalty_is_zero_at_slope_one_and_has_a_gradient_at_zero():
    penalty = WassersteinGAN(penalty_weight=3.0).penalties["between"]
    squares = torch.tensor([1.0, 4.0, 0.0], requires_grad=True)
    assert penalty(squares).tolist() == pytest.approx([0, 3, 3], abs=1e-5)
    assert torch.isfinite(torch.autograd.grad(penalty(squares).sum(), squares)[0]).all()
    assert WassersteinGAN(penalty_weight=0.0).penalties == {}
