"""The policy gradients that rewards make, against autograd, by enumeration of all texts of a tiny vocabulary."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement, product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gakd.rewards import (
    DiscriminatorScore,
    GroupNormalize,
    KLPenalty,
    Reward,
    RewardToGo,
    Rollout,
    SingleStepDecomposition,
    TeacherLogRatio,
    Whiten,
)
from tests.sequences import Texts, gradient, kl, token_kl

DOUBLE = torch.float64


class Toy:
    """All texts of a student and a teacher, as rollouts."""

    def __init__(self, vocab_size: int, horizon: int, seed: int = 0) -> None:
        self.texts = texts = Texts(vocab_size, horizon)
        self.student, self.teacher, self.reference = (texts.table(3 * seed + index) for index in range(3))
        self.student.requires_grad_()
        self.scores_Y = torch.randn(len(texts.texts), dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
        self.mask_YT = torch.arange(horizon) < texts.lengths_Y[:, None]

    def log_probs(self, table_SV: Tensor, off_mask: float = math.nan) -> Tensor:
        """Of every text's tokens, `[Y, T]`."""
        values_N = table_SV.log_softmax(-1)[self.texts.prefix_N, self.texts.token_N]
        return torch.full(self.mask_YT.shape, off_mask, dtype=DOUBLE).masked_scatter(self.mask_YT, values_N)

    @property
    def Q(self) -> Tensor:
        return self.texts.log_probs(self.student).exp()

    def rollout(self, rows: Tensor | None = None, group_B: Tensor | None = None) -> Rollout:
        rows = torch.arange(len(self.texts.texts)) if rows is None else rows
        models = (self.log_probs(table.detach())[rows] for table in (self.student, self.teacher, self.reference))
        return Rollout(self.mask_YT[rows], *models, self.scores_Y[rows], group_B)

    def directions(self, advantages_BT: Tensor, weight_B: Tensor, rows: Tensor | None = None) -> Tensor:
        """`sum_b weight_b sum_t A_bt grad log q(y_bt)`, as a table."""
        log_probs_YT = self.log_probs(self.student, off_mask=0.0)
        log_probs_BT = log_probs_YT if rows is None else log_probs_YT[rows]
        return gradient((weight_B * (advantages_BT * log_probs_BT).sum(1)).sum(), self.student)

    def expected(self, reward: Reward) -> Tensor:
        """The policy gradient, exactly: the expectation over the student's texts."""
        return self.directions(reward(self.rollout()), self.Q.detach())

    def expected_over_groups(self, reward: Reward, size: int) -> Tensor:
        """The same, where every group of `size` independent texts is shaped by itself."""
        groups = torch.tensor(list(product(range(len(self.texts.texts)), repeat=size)))
        probs_G, rows = self.Q.detach()[groups].prod(1), groups.flatten()
        number_B = torch.arange(len(groups)).repeat_interleave(size)
        advantages_BT = reward(self.rollout(rows, number_B))
        return self.directions(advantages_BT, probs_G[number_B] / size, rows)

    def text_kl(self, other_SV: Tensor) -> Tensor:
        """KL(Q‖other) of whole texts."""
        return kl(self.Q, self.texts.log_probs(other_SV).exp())

    def token_kl_at_samples(self, other_SV: Tensor) -> Tensor:
        """Full-vocabulary KL(q_t‖other_t), summed over the tokens of the student's text; prefixes carry no gradient."""
        return (self.texts.reach(self.Q).detach() * token_kl(self.student, other_SV)).sum()


EACH_SIZE = pytest.mark.parametrize(
    "size", [(2, 4), (3, 3), (3, 4)], ids=lambda size: "{} tokens, {} steps".format(*size)
)


@EACH_SIZE
def test_reward_to_go_of_the_log_ratio_is_the_gradient_of_the_reverse_kl_of_texts(size):
    toy = Toy(*size)
    exact = -gradient(toy.text_kl(toy.teacher), toy.student)
    assert_close(toy.expected(TeacherLogRatio() >> RewardToGo(1)), exact)
    assert_close(toy.expected(TeacherLogRatio(2) >> RewardToGo(1)), 2 * exact)
    whole_ratio = toy.expected(TeacherLogRatio() >> total_everywhere)  # what came before a token does not matter
    assert_close(whole_ratio, exact)

    own_alone = -gradient(toy.token_kl_at_samples(toy.teacher), toy.student)
    assert_close(toy.expected(TeacherLogRatio()), own_alone)  # tinker's: prefixes taken as given
    assert (own_alone - exact).norm() > 0.1 * exact.norm()


def total_everywhere(rewards_BT: Tensor, rollout: Rollout) -> Tensor:
    return rewards_BT.sum(1, keepdim=True) * rollout.mask_BT


@EACH_SIZE
@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_single_step_decomposition_and_closed_form_are_the_whole_gradient(size, gamma):
    toy = Toy(*size)
    single = -gradient(toy.token_kl_at_samples(toy.teacher), toy.student)
    long = toy.expected(TeacherLogRatio() >> RewardToGo(gamma) >> SingleStepDecomposition(gamma))
    whole = toy.expected(TeacherLogRatio() >> RewardToGo(gamma))
    assert_close(long + single, whole)
    if gamma == 1:
        assert_close(long + single, -gradient(toy.text_kl(toy.teacher), toy.student))
    assert min(long.norm(), single.norm()) > 0.05 * whole.norm()  # counting either twice would show


@EACH_SIZE
def test_scores_and_penalties_are_gradients_of_their_expectations(size):
    toy = Toy(*size)
    score = gradient((toy.Q * toy.scores_Y).sum(), toy.student)
    assert_close(toy.expected(DiscriminatorScore() >> RewardToGo(1)), score)
    for against, table in (("reference", toy.reference), ("teacher", toy.teacher)):
        chain = DiscriminatorScore() >> KLPenalty(0.3, against=against) >> RewardToGo(1)
        assert_close(toy.expected(chain), score - 0.3 * gradient(toy.text_kl(table), toy.student))


@pytest.mark.parametrize("seed", range(3))
def test_estimators_of_the_kl_and_the_gradients_they_give_as_rewards(seed):
    toy = Toy(3, 1, seed)
    q, ref = toy.student.softmax(-1)[0], toy.reference.softmax(-1)[0]
    reverse, forward = kl(q, ref), kl(ref, q)
    half_square = (q * (ref.log() - q.log()).square()).sum() / 2
    of_reverse, of_forward, of_half_square = (gradient(value, toy.student) for value in (reverse, forward, half_square))
    directions = {"k1": of_reverse, "k2": of_half_square - of_reverse, "k3": of_reverse - of_forward}
    values = {"k1": reverse, "k2": half_square, "k3": reverse}
    for estimator, direction in directions.items():
        penalty = TeacherLogRatio(0) >> KLPenalty(1.0, estimator)
        assert_close((toy.Q * -penalty(toy.rollout()).sum(1)).sum(), values[estimator])
        assert_close(toy.expected(penalty), -direction)
    assert (directions["k3"] - of_reverse).norm() > 0.1 * of_reverse.norm()

    sizes = []
    for step in (0.02, 0.01):  # near the reference k3's direction is of second order, the KL's of first
        toy.student = (toy.reference + step * toy.teacher).requires_grad_()
        k1, k3 = (toy.expected(TeacherLogRatio(0) >> KLPenalty(1.0, name)).norm().item() for name in ("k1", "k3"))
        sizes.append(k3 / k1)
    assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("source", [DiscriminatorScore(), TeacherLogRatio()], ids=repr)
@pytest.mark.parametrize("size", [2, 3])
def test_a_group_mean_takes_one_part_in_n_from_the_expected_gradient(source, size):
    toy = Toy(2, 3)
    whole = toy.expected(source >> RewardToGo(1))
    found = toy.expected_over_groups(source >> GroupNormalize(scale=False) >> RewardToGo(1), size)
    assert_close(found, (size - 1) / size * whole)
    scaled = toy.expected_over_groups(source >> GroupNormalize() >> RewardToGo(1), size)
    assert torch.cosine_similarity(scaled.flatten(), whole.flatten(), dim=0) < 1 - 1e-6  # not a multiple of it


def in_proportion() -> tuple[Toy, Tensor]:
    """A student that halves at every step, and texts as often as it says: a batch that is its own expectation."""
    toy = Toy(2, 3)
    toy.student = torch.zeros_like(toy.student).requires_grad_()
    return toy, torch.arange(len(toy.texts.texts)).repeat_interleave((8 * toy.Q.detach()).round().long())


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_divides_the_gradient_of_a_batch_that_is_its_own_expectation(shift_mean):
    toy, rows = in_proportion()
    assert len(rows) == 8
    to_go = TeacherLogRatio() >> RewardToGo(1)
    weight_B = torch.full((8,), 1 / 8, dtype=DOUBLE)
    assert_close(toy.directions(to_go(toy.rollout(rows)), weight_B, rows), toy.expected(to_go))
    whitened_BT = (to_go >> Whiten(shift_mean))(toy.rollout(rows))
    std = to_go(toy.rollout(rows))[toy.mask_YT[rows]].std(correction=0)
    assert_close(toy.directions(whitened_BT, weight_B, rows), toy.expected(to_go) / std, rtol=1e-6, atol=1e-8)


def test_scaled_groups_divide_by_their_own_spread():
    toy, rows = in_proportion()
    source = DiscriminatorScore()
    rollout = toy.rollout(rows.repeat(2), torch.arange(2).repeat_interleave(8))
    rollout = rollout._replace(scores_B=rollout.scores_B * torch.tensor([1.0, 5.0]).repeat_interleave(8))
    advantages_BT = (source >> GroupNormalize() >> RewardToGo(1))(rollout)
    whole = toy.expected(source >> RewardToGo(1))
    for group, factor in enumerate((1.0, 5.0)):
        own = slice(8 * group, 8 * group + 8)
        std = factor * toy.scores_Y[rows].std() + 1e-4
        found = toy.directions(advantages_BT[own], torch.full((8,), 1 / 8, dtype=DOUBLE), rows)
        assert_close(found, factor * whole / std)


def test_whitening_turns_the_expected_gradient_by_one_part_in_the_batch():
    toy = Toy(2, 2, seed=1)
    chain = TeacherLogRatio() >> RewardToGo(1)
    exact, angles = toy.expected(chain).flatten(), []
    for count in (16, 32):
        total = torch.zeros_like(exact)
        for batch in combinations_with_replacement(range(len(toy.texts.texts)), count):
            rows = torch.tensor(batch)
            orders = math.factorial(count) // math.prod(math.factorial(batch.count(text)) for text in set(batch))
            weight = orders * toy.Q.detach()[rows].prod() / count
            total += toy.directions((chain >> Whiten())(toy.rollout(rows)), weight.expand(count), rows).flatten()
        angles.append(torch.acos(torch.cosine_similarity(total, exact, dim=0)).item())
    assert angles[1] > 1e-3  # there is a bias
    assert angles[1] / angles[0] == pytest.approx(0.5, abs=0.1)


def test_a_monte_carlo_estimate_agrees_within_its_standard_error():
    toy, count = Toy(3, 4), 20_000
    drawn = torch.multinomial(toy.Q.detach(), count, replacement=True, generator=torch.Generator().manual_seed(0))
    share_YSV = (torch.bincount(drawn, minlength=len(toy.texts.texts)).double() / count)[:, None, None]
    exact = -gradient(toy.text_kl(toy.teacher), toy.student)

    def estimate(chain: Reward, closed_form_S: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean over the drawn texts of what each gives, and its standard error."""
        advantages_YT = chain(toy.rollout())
        given_YSV = torch.stack([toy.directions(advantages_YT, one) for one in torch.eye(len(share_YSV), dtype=DOUBLE)])
        if closed_form_S is not None:
            sums_Y = toy.texts.over_tokens(closed_form_S[toy.texts.prefix_N])
            given_YSV = given_YSV + torch.stack([gradient(value, toy.student) for value in sums_Y])
        mean = (share_YSV * given_YSV).sum(0)
        return mean, ((share_YSV * (given_YSV - mean).square()).sum(0) / count).sqrt()

    to_go = TeacherLogRatio() >> RewardToGo(1)
    for mean, error in (
        estimate(to_go),
        estimate(to_go >> SingleStepDecomposition(1), -token_kl(toy.student, toy.teacher)),
    ):
        assert ((mean - exact).abs() <= 4 * error + 1e-12).all()
        assert error.norm() < 0.1 * exact.norm()
    mean, error = estimate(TeacherLogRatio())
    assert ((mean - exact).abs() > 4 * error + 1e-12).any()  # a wrong chain is told apart
