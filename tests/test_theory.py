"""Each claim of docs/theory.md, by enumeration of all texts of a tiny vocabulary; P is the teacher, Q the student."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.testing import assert_close

from gakd import (
    Adversarial,
    CrossEntropy,
    ForwardKL,
    HingeGAN,
    JensenShannon,
    MLPDiscriminator,
    NonSaturatingGAN,
    RelativisticGAN,
    ReverseKL,
    TotalVariation,
    TransformerDiscriminator,
    WassersteinGAN,
)
from gakd.adversary import Game
from gakd.losses.functional import logit_gradient, reverse_kl_with_gradient
from tests.sequences import (
    LinearDiscriminator,
    Texts,
    gradient,
    identity_game,
    jensen_shannon,
    kl,
    minimise,
    models,
    play,
    probs,
    token_kl,
    token_loss,
    total_variation,
)

EACH_SIZE = pytest.mark.parametrize(
    "size", [(2, 5), (3, 4), (4, 3)], ids=lambda size: "{} tokens, {} steps".format(*size)
)


pytestmark = pytest.mark.usefixtures("double")


@EACH_SIZE
def test_claim_01_kl_factorises(size):
    texts = Texts(*size)
    student, teacher = models(texts)
    P, Q = probs(texts, student, teacher)
    assert_close(P.sum(), torch.tensor(1.0))
    forward = (P * texts.losses(ForwardKL(), student, teacher)).sum()
    assert_close(forward, kl(P, Q))
    assert_close((Q * texts.losses(ReverseKL(), student, teacher)).sum(), kl(Q, P))

    cross_entropy = (P * texts.losses(CrossEntropy(), student, teacher)).sum()
    assert_close(cross_entropy, kl(P, Q) - (P * P.log()).sum())
    for value in (forward, cross_entropy):
        assert_close(gradient(value, student), gradient(kl(P, Q), student))

    for term, whole in ((JensenShannon(), jensen_shannon(P, Q)), (TotalVariation(), total_variation(P, Q))):
        for reader in (P, Q):
            assert abs((reader * texts.losses(term, student, teacher)).sum() / whole - 1) > 0.02


@EACH_SIZE
def test_claim_02_only_the_teacher_has_zero_loss(size):
    texts = Texts(*size)
    orders = set()
    for seed in range(8):
        student, teacher = models(texts, seed)
        P, Q = probs(texts, student, teacher)
        loss = token_loss(texts, student, teacher)
        assert loss > 0
        assert_close(loss, (texts.reach(P) * token_kl(student, teacher)).sum())
        log_ratio_N = (teacher.log_softmax(-1) - student.log_softmax(-1))[texts.prefix_N, texts.token_N]
        weighed_N = (texts.earlier_NN @ log_ratio_N).exp() * token_kl(student, teacher)[texts.prefix_N]
        assert_close(loss, (Q * texts.over_tokens(weighed_N)).sum())
        orders.add((bool(loss > kl(Q, P)), bool(loss > kl(P, Q))))
    assert all(len({order[other] for order in orders}) == 2 for other in (0, 1))  # above and below either KL of texts

    student, teacher = models(texts)
    same = teacher.clone().requires_grad_()
    loss = token_loss(texts, same, teacher)
    assert loss == 0
    assert_close(gradient(loss, same), torch.zeros_like(same), atol=1e-15, rtol=0)

    minimise(student, lambda: token_loss(texts, student, teacher))
    assert_close(*probs(texts, student.detach(), teacher), atol=1e-6, rtol=0)


def overlaps(texts: Texts, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`sum √(P Q)` of whole texts, and what single steps lose of it, expected over the teacher's text."""
    P, Q = probs(texts, student, teacher)
    lost_S = 1 - (teacher.softmax(-1) * student.softmax(-1)).sqrt().sum(-1)
    return (P * Q).sqrt().sum(), (texts.reach(P) * lost_S).sum()


def hostile_pair(texts: Texts) -> tuple[Tensor, Tensor]:
    """Models whose texts overlap as little, for what their steps lose, as ascent finds."""
    student, teacher = (table.detach().requires_grad_() for table in models(texts))
    optimizer = torch.optim.Adam([student, teacher], lr=0.1)
    for _ in range(100):
        overlap, lost = overlaps(texts, student, teacher)
        optimizer.zero_grad()
        (-(1 - overlap) / lost).backward()
        optimizer.step()
    return student.detach(), teacher.detach()


@pytest.mark.parametrize("pair", ["alike", "apart", "far apart", "hostile"])
def test_claim_03_loss_bounds_total_variation(pair):
    texts = Texts(2, 7)
    scale = {"alike": 0.2, "apart": 1.5, "far apart": 5.0}
    student, teacher = hostile_pair(texts) if pair == "hostile" else models(texts, scale=scale[pair])
    student = student.detach()
    P, Q = probs(texts, student, teacher)
    distance, loss = total_variation(P, Q), token_loss(texts, student, teacher)

    log_p_N, log_q_N = (table.log_softmax(-1)[texts.prefix_N, texts.token_N] for table in (teacher, student))
    before_N, after_N = (texts.earlier_NN @ log_p_N).exp(), (texts.earlier_NN.T @ log_q_N).exp()
    assert_close(texts.over_tokens(before_N * (log_p_N.exp() - log_q_N.exp()) * after_N), P - Q)
    token_distance = (P * texts.losses(TotalVariation(), student, teacher)).sum()
    assert distance <= token_distance <= ((P * texts.lengths_Y).sum() * loss / 2).sqrt()

    overlap, lost = overlaps(texts, student, teacher)
    assert overlap >= (1 - 4 * lost).clamp(min=0).square()
    assert 2 * lost <= loss
    assert distance <= (1 - overlap.square()).sqrt()
    assert distance <= (8 * loss).sqrt()
    if pair == "hostile":
        assert 1 - overlap > 2 * lost  # a factor is needed: what steps lose does not simply add up

    rewards = torch.cat([torch.rand(50, len(P)), (P > Q).double()[None]])
    gaps = (rewards * (P - Q)).sum(-1).abs()
    assert (gaps <= distance + 1e-12).all()
    assert_close(gaps[-1], distance)


def test_claim_03_step_of_the_induction():
    p, q = (torch.rand(3000, 1).mul(8).mul(torch.randn(3000, 4)).softmax(-1) for _ in range(2))
    lower = torch.rand(3000, 4).where(torch.rand(3000, 1) > 0.5, torch.rand(3000, 4).round())
    mean, lost = (p * lower).sum(-1), 1 - (p * q).sqrt().sum(-1)
    overlap = ((p * q).sqrt() * lower.square()).sum(-1)
    assert (overlap >= mean.square() - mean * (4 - mean) * lost - 1e-12).all()
    assert (overlap >= (mean - 4 * lost).clamp(min=0).square() - 1e-12).all()
    assert not (overlap >= (mean - 1.1 * lost).clamp(min=0).square()).all()


@EACH_SIZE
def test_claim_04_gradients(size):
    texts = Texts(*size)
    student, teacher = models(texts)
    P, Q = probs(texts, student, teacher)
    log_q_SV, q_SV = student.detach().log_softmax(-1), student.detach().softmax(-1)
    loss_S, log_gradient_SV = reverse_kl_with_gradient(log_q_SV, teacher.log_softmax(-1), q_SV)

    def mean_token_gradient(reader_Y: Tensor) -> Tensor:
        """The closed form of each token, as the engine uses it, averaged over the texts of a reader."""
        tokens_NV = logit_gradient(log_gradient_SV, q_SV)[texts.prefix_N] * reader_Y.detach()[texts.text_N, None]
        return torch.zeros_like(teacher).index_add(0, texts.prefix_N, tokens_NV)

    assert_close(mean_token_gradient(P), gradient(token_loss(texts, student, teacher), student))

    to_come_N = texts.earlier_NN.T @ loss_S[texts.prefix_N]
    score_N = student.log_softmax(-1)[texts.prefix_N, texts.token_N]
    missing = gradient((Q.detach() * texts.over_tokens(score_N * to_come_N)).sum(), student)
    exact = gradient(kl(Q, P), student)
    assert_close(mean_token_gradient(Q) + missing, exact)
    assert missing.norm() > 0.05 * exact.norm()


@EACH_SIZE
def test_claim_05_second_order(size):
    texts = Texts(*size)
    _, teacher = models(texts)
    directions = torch.randn(3, *teacher.shape)
    P, origin = texts.log_probs(teacher).exp(), torch.zeros(3)

    def student(theta: Tensor) -> Tensor:
        return teacher + torch.einsum("k,ksv->sv", theta.sin() + theta.square(), directions)

    def Q(theta: Tensor) -> Tensor:
        return texts.log_probs(student(theta)).exp()

    scores_YK = jacobian(lambda theta: Q(theta).log(), origin)
    fisher = torch.einsum("y,yk,yl->kl", P, scores_YK, scores_YK)
    p_SV = teacher.softmax(-1)
    means_SK = torch.einsum("sv,ksv->sk", p_SV, directions)
    token_fisher_SKL = torch.einsum("sv,ksv,lsv->skl", p_SV, directions, directions)
    token_fisher_SKL -= means_SK[:, :, None] * means_SK[:, None, :]
    assert_close(fisher, torch.einsum("s,skl->kl", texts.reach(P), token_fisher_SKL))

    for loss, factor in (
        (lambda theta: token_loss(texts, student(theta), teacher), 1.0),
        (lambda theta: kl(P, Q(theta)), 1.0),
        (lambda theta: kl(Q(theta), P), 1.0),
        (lambda theta: (P * texts.losses(JensenShannon(0.3), student(theta), teacher)).sum(), 0.3 * 0.7),
        (lambda theta: jensen_shannon(P, Q(theta)), 0.25),
    ):
        assert_close(jacobian(loss, origin), torch.zeros(3), atol=1e-12, rtol=0)
        assert_close(hessian(loss, origin), factor * fisher)


def test_claim_06_dataset_text():
    texts = Texts(3, 4)
    after_2 = texts.prefixes.index((2,))
    teacher = texts.table(0)
    teacher[0], teacher[after_2] = torch.tensor([0.0, 0.0, 5.0]), torch.tensor([0.0, 5.0, 5.0])
    student = teacher.clone()
    student[after_2] = torch.tensor([5.0, 0.0, 0.0])
    student.requires_grad_()
    P, Q = probs(texts, student, teacher)
    losses_Y, nothing = texts.losses(ReverseKL(), student, teacher), torch.zeros_like(teacher)

    # A dataset whose texts never begin with token 2, as the teacher's do: no loss, no gradient, another model.
    elsewhere_Y = torch.tensor([2 not in text[:1] for text in texts.texts]).double()
    D = elsewhere_Y / elsewhere_Y.sum()
    assert (D * losses_Y).sum() == 0
    assert_close(gradient((D * losses_Y).sum(), student), nothing, atol=1e-15, rtol=0)
    assert total_variation(P, Q) > 0.9

    # A dataset that goes wherever the teacher does.
    D = torch.rand(len(P)).softmax(0)
    ratio = (texts.reach(P) / texts.reach(D)).max()
    assert token_loss(texts, student, teacher) <= ratio * (D * losses_Y).sum()

    # Cross entropy moves a student that equals the teacher, unless the text is the teacher's.
    same = teacher.clone().requires_grad_()
    joint_SV = torch.zeros_like(teacher).index_put((texts.prefix_N, texts.token_N), D[texts.text_N], accumulate=True)
    towards_data = joint_SV - texts.reach(D)[:, None] * teacher.softmax(-1)
    assert towards_data.abs().max() > 0.01
    mixed_Y = 0.5 * texts.losses(CrossEntropy(), same, teacher) + 0.5 * texts.losses(ReverseKL(), same, teacher)
    assert_close(gradient((P * mixed_Y).sum(), same), nothing, atol=1e-14, rtol=0)
    assert_close(gradient((D * mixed_Y).sum(), same), -0.5 * towards_data)


def test_claim_07_equal_loss_other_texts():
    texts, teacher = Texts(3, 2), torch.zeros(3, 3)
    measured = []
    for erring in (1, 2):  # both lean to token 1; one errs after it, the other after token 2
        student = teacher.clone()
        student[0] = torch.tensor([0.0, 2.0, 0.0])
        student[texts.prefixes.index((erring,))] = torch.tensor([3.0, 0.0, 0.0])
        P, Q = probs(texts, student, teacher)
        loss, loss_S = token_loss(texts, student, teacher), token_kl(student, teacher)
        assert_close(kl(Q, P) - loss, ((texts.reach(Q) - texts.reach(P)) * loss_S).sum())
        assert abs(kl(Q, P) - loss) <= loss_S.max() * (texts.horizon - 1) * total_variation(P, Q)
        measured.append(torch.stack([loss, kl(Q, P), total_variation(P, Q), jensen_shannon(P, Q)]))
    after_1, after_2 = measured
    assert_close(after_1[0], after_2[0])
    assert after_2[1] + 0.1 < after_1[0] < after_1[1] - 0.3
    assert (after_1[1:] > 1.1 * after_2[1:]).all()


def scores_of_pairs(scores_Y: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of real and fake for every pair, `[Y, Y]`: rows are the real text, columns the fake one."""
    return scores_Y[:, None].expand(-1, len(scores_Y)), scores_Y[None, :].expand(len(scores_Y), -1)


def discriminator_loss(game: Game, pairs_YY: Tensor, scores_Y: Tensor) -> Tensor:
    real, fake = scores_of_pairs(scores_Y)
    return (pairs_YY * game.discriminator(fake, real)).sum()


def both_orders(P: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.outer(P, Q).flatten(), torch.outer(Q, P).flatten()


GAMES = {
    "non-saturating": (
        NonSaturatingGAN(),
        lambda P, Q: (P / Q).log(),
        lambda P, Q: log(4) - 2 * jensen_shannon(P, Q),
    ),
    "relativistic": (
        RelativisticGAN(),
        lambda P, Q: (P / Q).log() + 0.7,
        lambda P, Q: log(2) - jensen_shannon(*both_orders(P, Q)),
    ),
    "hinge": (HingeGAN(), lambda P, Q: (P - Q).sign(), lambda P, Q: 2 - 2 * total_variation(P, Q)),
    "wasserstein": (WassersteinGAN(), lambda P, Q: (P > Q).double(), lambda P, Q: -total_variation(P, Q)),
}


@EACH_SIZE
@pytest.mark.parametrize("name", GAMES)
def test_claim_08_best_discriminator_of_texts(size, name):
    texts, (game, optimum, value) = Texts(*size), GAMES[name]
    student, teacher = models(texts)
    P, Q = probs(texts, student.detach(), teacher)
    best = optimum(P, Q).requires_grad_()
    loss = discriminator_loss(game, torch.outer(P, Q), best)
    assert_close(loss, value(P, Q))
    if name in ("non-saturating", "relativistic"):
        assert_close(gradient(loss, best), torch.zeros_like(best), atol=1e-14, rtol=0)
    for distance in (1e-3, 0.1, 1.0) * 20:
        if name == "wasserstein":  # 1-Lipschitz where any two texts are 1 apart: scores within a range of 1
            other = torch.lerp(best.detach(), torch.rand_like(best), distance)
        else:
            other = best.detach() + distance * torch.randn_like(best)
        assert discriminator_loss(game, torch.outer(P, Q), other) > loss


def student_gradient(game: Game, P: Tensor, Q: Tensor, scores_Y: Tensor, of: Tensor) -> Tensor:
    """Of the student's expected loss over independent pairs, scores held."""
    real, fake = scores_of_pairs(scores_Y.detach())
    return gradient((torch.outer(P, Q) * game.student(fake, real)).sum(), of)


@EACH_SIZE
def test_claim_09_what_the_student_descends(size):
    texts = Texts(*size)
    student, teacher = models(texts)
    P, Q = probs(texts, student, teacher)
    ratio = (P / Q).log()
    for game, scores_Y, divergence in (
        (HingeGAN(), ratio, kl(Q, P)),
        (NonSaturatingGAN(), ratio, 2 * kl((P + Q) / 2, P)),
        (NonSaturatingGAN(), ratio, kl(Q, P) - 2 * jensen_shannon(P, Q)),
        (HingeGAN(), (P - Q).sign(), 2 * total_variation(P, Q)),
        (WassersteinGAN(), (P > Q).double(), total_variation(P, Q)),
    ):
        assert_close(student_gradient(game, P, Q, scores_Y, student), gradient(divergence, student))

    # Relativistic: half of the gradient of KL(Q‖P) near the teacher, up to second order.
    errors = []
    for distance in (1e-2, 1e-3):
        near = (teacher + distance * texts.table(9)).requires_grad_()
        P, Q = probs(texts, near, teacher)
        half = gradient(kl(Q, P), near) / 2
        played = student_gradient(RelativisticGAN(), P, Q, (P / Q).log(), near)
        errors.append(((played - half).norm() / half.norm()).item())
    assert errors[0] < 0.05
    assert errors[1] < 0.15 * errors[0]

    # And everywhere: mass that moves from texts of high loss to texts of low loss lowers KL(Q‖P).
    P, Q = (values.detach() for values in probs(texts, student, teacher))
    for game in (RelativisticGAN(), NonSaturatingGAN()):
        real, fake = scores_of_pairs((P / Q).log())
        loss_Y = (P[:, None] * game.student(fake, real)).sum(0)
        rate = torch.zeros((), requires_grad=True)
        slope = gradient(kl((Q.log() - rate * loss_Y).softmax(0), P), rate)
        assert_close(slope, -(Q * (loss_Y - (Q * loss_Y).sum()) * (Q / P).log()).sum())
        assert slope < -0.01


COUNT, LENGTH, VOCAB = 6, 3, 4  # of GAKD's own game below: texts, tokens of each, vocabulary


def logits(seed: int) -> Tensor:
    return torch.randn(COUNT, LENGTH, VOCAB, generator=torch.Generator().manual_seed(seed))


def players(r1: float, r2: float) -> Iterator[Adversarial]:
    for build in (MLPDiscriminator, TransformerDiscriminator):
        torch.manual_seed(0)
        yield identity_game(build(VOCAB, width=8), RelativisticGAN(r1, r2), VOCAB)


def linear_player(weight: Tensor, r1: float = 0.0, r2: float = 0.0, centered: bool = False) -> Adversarial:
    player = identity_game(LinearDiscriminator(*weight.shape), RelativisticGAN(r1, r2), VOCAB, centered)
    player.discriminator.weight.data = weight.detach().clone()
    return player


def mean_token_loss(fake: Tensor, real: Tensor) -> Tensor:
    return ReverseKL().losses(fake.log_softmax(-1), real.log_softmax(-1)).mean()


def test_claim_10_equilibrium():
    real, flat = logits(0), torch.zeros(LENGTH, VOCAB)
    fake = real.clone().requires_grad_()
    for player in players(0, 0):
        played = play(player, fake, real)
        assert_close(played.losses["adversarial"], torch.full((COUNT,), 2.0).log(), atol=0, rtol=0)
        for parameter in player.discriminator.parameters():
            assert parameter.grad.abs().max() < 1e-15
        scores = player.discriminator(fake, torch.ones(COUNT, LENGTH, dtype=torch.bool))
        assert_close(gradient(played.loss, fake), -gradient(scores.sum(), fake) / (2 * COUNT))
        assert gradient(played.loss, fake).abs().max() > 1e-5

    slanted = linear_player(torch.randn(LENGTH, VOCAB), r1=3, r2=5)
    play(slanted, fake, real)
    assert_close(slanted.discriminator.weight.grad, 8 * slanted.discriminator.weight.detach())
    level = linear_player(flat, r1=3, r2=5)
    assert (gradient(play(level, fake, real).loss, fake) == 0).all()
    assert (level.discriminator.weight.grad == 0).all()

    # An offset of the logits changes no probability: a raw reading sees it, a centred one does not.
    for centered in (False, True):
        player = linear_player(flat, centered=centered)
        play(player, real + 1.0, real)
        assert torch.allclose(player.discriminator.weight.grad, flat, atol=1e-12) is centered


def test_claim_11_distributions_of_logits():
    # The texts' answers exchanged: the same distribution of logits, and a student that is wrong on every text.
    real, flat = logits(0), torch.zeros(LENGTH, VOCAB)
    exchanged = real.roll(1, 0)
    assert mean_token_loss(exchanged, real) > 0.5
    for player in players(0, 0):
        assert play(player, exchanged, real).losses["discriminator"].mean() > log(2)
    player = linear_player(flat)
    play(player, exchanged, real)
    assert_close(player.discriminator.weight.grad, flat, atol=1e-15, rtol=0)

    # As wrong for the token loss, and seen by the game.
    low, high = 0.0, 10.0
    for _ in range(60):
        shifted = real + (low + high) / 2 * (torch.arange(VOCAB) - 1.5)
        less = mean_token_loss(shifted, real) < mean_token_loss(exchanged, real)
        low, high = ((low + high) / 2, high) if less else (low, (low + high) / 2)
    assert_close(mean_token_loss(shifted, real), mean_token_loss(exchanged, real))
    player = linear_player(0.1 * (real - shifted).mean(0))
    assert play(player, shifted, real).losses["discriminator"].mean() < log(2) - 0.1
    assert play(player, exchanged, real).losses["discriminator"].mean() > log(2)

    # Any pairing of any points: flat is best if and only if real and fake have the same distribution.
    game, flat = RelativisticGAN(), torch.zeros(5, requires_grad=True)
    unlike = torch.rand(25).softmax(0).view(5, 5)
    alike = torch.stack([torch.eye(5).roll(shift, 1) * weight for shift, weight in enumerate(torch.rand(5))]).sum(0)
    alike /= alike.sum()
    for pairs in (unlike, alike):
        difference = pairs.sum(1) - pairs.sum(0)
        assert_close(gradient(discriminator_loss(game, pairs, flat), flat), -difference / 2, atol=1e-15, rtol=1e-9)
    assert discriminator_loss(game, unlike, 0.05 * (unlike.sum(1) - unlike.sum(0))) < log(2)
    for _ in range(50):
        assert discriminator_loss(game, alike, torch.randn(5)) > log(2)

    # An unbounded discriminator that is right on every pair wins outright, however near the student is.
    for distance in (1.0, 1e-4):
        near = real - distance * torch.arange(VOCAB)
        player = linear_player(torch.full((LENGTH, VOCAB), 100 / distance))
        assert play(player, near, real).losses["discriminator"].max() < 1e-9
    assert mean_token_loss(near, real) < 1e-7


@pytest.mark.parametrize(
    ("build", "silent"),
    [(RelativisticGAN, log(2)), (NonSaturatingGAN, log(4)), (HingeGAN, 2.0)],
    ids=["relativistic", "non-saturating", "hinge"],
)
def test_claim_12_penalties_bound_the_game(build, silent):
    real, r1, r2 = logits(0), 0.5, 2.0
    for fake in (real, real.roll(1, 0)):
        for player in players(r1, r2):
            player.game = build(r1, r2)
            losses = play(player, fake, real).losses
            assert losses["discriminator"].mean() + losses["discriminator_penalty"].mean() > silent

    fake = (0.5 * logits(1) + 1.0).requires_grad_()
    sizes = []
    for penalties in ((r1, r2), (0.0, 0.0)):
        player = next(players(*penalties))
        player.game = build(*penalties)
        optimizer = torch.optim.Adam(player.discriminator.parameters(), lr=0.03)
        for _ in range(80):
            play(player, fake, real)
            optimizer.step()
        played = play(player, fake, real)
        sizes.append((COUNT * gradient(played.loss, fake)).square().sum((1, 2)).mean())
        if penalties == (r1, r2):
            penalty = played.losses["discriminator_penalty"].mean()
            assert played.losses["discriminator"].mean() + penalty < silent
            assert 0 < sizes[0] <= 2 * penalty / r2 <= 2 * silent / r2
    assert sizes[1] > 10 * sizes[0]


@pytest.mark.parametrize("strength", [200.0, 2000.0])
def test_claim_13_matching_of_means(strength):
    real, fake = logits(0), (0.5 * logits(1) + 0.3).requires_grad_()
    player = linear_player(torch.zeros(LENGTH, VOCAB), r1=0.3 * strength, r2=0.7 * strength)
    weight = player.discriminator.weight
    for _ in range(30):  # a contraction
        play(player, fake, real)
        weight.data -= weight.grad / strength
    difference = (real - fake).detach()
    mean, length = difference.mean(0), difference.flatten(1).norm(dim=1)
    bound = length.square().mean() * length.mean() / (4 * strength**2)
    error = (weight.detach() - mean / (2 * strength)).norm()
    assert 0 < error <= bound < 0.2 * mean.norm() / (2 * strength)

    played = play(player, fake, real)
    gained = log(2) - played.losses["discriminator"].mean() - played.losses["discriminator_penalty"].mean()
    quadratic = mean.square().sum() / (8 * strength)
    remainder = (difference * mean).sum((1, 2)).square().mean() / (32 * strength**2)
    assert quadratic - remainder <= gained <= quadratic

    matched = (real - fake).mean(0).square().sum() / (8 * strength)
    assert_close(gradient(played.loss, fake), gradient(matched, fake), rtol=0, atol=0.3 * bound)


@pytest.mark.parametrize(("r1", "r2", "token_weight"), [(0, 0, 0), (0.2, 0.1, 0), (2, 3, 0), (0, 0, 0.5)])
def test_claim_14_simultaneous_play(r1, r2, token_weight):
    real, r = logits(0)[:1, :1], r1 + r2

    def velocity(state: Tensor) -> Tensor:
        """Of both players under gradient descent: the discriminator's weights, the student's logits less the teacher's."""
        player = linear_player(state[None, :VOCAB], r1, r2, centered=token_weight > 0)
        fake = (real + state[VOCAB:]).requires_grad_()
        loss = play(player, fake, real).loss + token_weight * mean_token_loss(fake, real)
        return -torch.cat([player.discriminator.weight.grad.flatten(), gradient(loss, fake).flatten()])

    def after(steps: int, state: Tensor) -> Tensor:
        for _ in range(steps):
            state = state + 0.2 * velocity(state)
        return state

    steps = 1e-5 * torch.eye(2 * VOCAB)
    linear = torch.stack([(velocity(step) - velocity(-step)) / 2e-5 for step in steps], 1)
    one = torch.eye(VOCAB)
    curvature = token_weight * hessian(lambda fake: mean_token_loss(fake, real), real).view(VOCAB, VOCAB)
    seen = one - 1 / VOCAB if token_weight > 0 else one
    expected = torch.cat([torch.cat([-r * one, -seen / 2], 1), torch.cat([seen / 2, -curvature], 1)])
    assert_close(linear, expected, atol=1e-8, rtol=0)

    rates = torch.linalg.eigvals(expected)
    start = 0.3 * torch.randn(2 * VOCAB)
    if token_weight > 0:  # no offset is seen by a centred reading, or by probabilities: two rates are 0
        assert sorted(rates.real < -1e-3) == [False] * 2 + [True] * (2 * VOCAB - 2)
    elif r > 0:
        roots = ((torch.tensor([-1.0, 1.0]) * torch.tensor(r**2 - 1 + 0j).sqrt()) - r) / 2
        assert all((rates - root).abs().min() < 1e-8 for root in roots)
        assert (rates.real < 0).all()
        assert after(200, start).norm() < 0.3 * start.norm()
    else:
        assert_close(rates.imag.abs(), torch.full((2 * VOCAB,), 0.5))
        near = 1e-6 * start
        assert_close(after(1, near).norm() / near.norm(), torch.tensor(1 + 0.2**2 / 4).sqrt())
        assert after(200, start).norm() > 1.5 * start.norm()


def test_claim_15_penalties_without_a_graph():
    real, fake, game = logits(0), logits(0) - 0.5, RelativisticGAN(r1=3, r2=5)
    weight = torch.randn(LENGTH, VOCAB, requires_grad=True)

    def direct(create_graph: bool) -> Tensor:
        points = {"real": real.clone().requires_grad_(), "fake": fake.clone().requires_grad_()}
        scores = {name: (point * weight).sum((1, 2)) for name, point in points.items()}
        loss = game.discriminator(scores["fake"], scores["real"]).mean()
        for name, point in points.items():
            (slope,) = torch.autograd.grad(scores[name].sum(), point, create_graph=create_graph, retain_graph=True)
            loss = loss + game.penalties[name](slope.square().sum((1, 2))).mean()
        return gradient(loss, weight)

    def ours(r1: float, r2: float) -> Tensor:
        player = linear_player(weight, r1, r2)
        play(player, fake, real)
        return player.discriminator.weight.grad

    assert_close(direct(create_graph=False), ours(0, 0))
    assert_close(direct(create_graph=True), ours(3, 5))
    assert_close(ours(3, 5) - ours(0, 0), 8 * weight.detach())

    # Without a graph, a discriminator that is right on every pair gains by growing, always.
    for scale in (1.0, 3.0, 10.0):
        weight.data[:] = scale
        assert (weight.detach() * direct(create_graph=False)).sum() < 0
        assert (weight.detach() * direct(create_graph=True)).sum() > 0


def test_the_page_names_every_test_and_no_other():
    page = (Path(__file__).parent.parent / "docs" / "theory.md").read_text()
    assert set(re.findall(r"test_claim_\w+", page)) == {name for name in globals() if name.startswith("test_claim_")}
