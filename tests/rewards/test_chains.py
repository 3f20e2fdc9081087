"""Rewards and their shapers against loops over Python lists, wherever tokens stand and whatever stands between them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from threading import Barrier, Thread
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gakd.rewards import (
    Clip,
    DiscriminatorScore,
    GroupNormalize,
    KLPenalty,
    LengthNormalize,
    Reward,
    RewardToGo,
    Rollout,
    SingleStepDecomposition,
    TeacherLogRatio,
    Whiten,
)
from gakd.rewards.sources import on_mask

Lists = list[list[float]]
DOUBLE = torch.float64


class Ragged(NamedTuple):
    """Rollouts as lists, one of each sequence, without padding."""

    student: Lists
    teacher: Lists
    reference: Lists
    scores: list[float]
    groups: list[int]


def ragged(lengths: tuple[int, ...] = (3, 1, 7, 4, 0, 5), groups: tuple[int, ...] = (4, 9, 4, 9, 9, 4)) -> Ragged:
    draw = random.Random(0)
    student, teacher, reference = (
        [[-draw.expovariate(0.7) for _ in range(length)] for length in lengths] for _ in range(3)
    )
    return Ragged(student, teacher, reference, [draw.gauss(0, 2) for _ in lengths], list(groups))


def places(lengths: list[int], layout: str) -> list[list[int]]:
    """Columns of each sequence's tokens."""
    longest, draw = max(lengths), random.Random(1)
    return {
        "left": lambda: [list(range(length)) for length in lengths],
        "right": lambda: [list(range(longest - length, longest)) for length in lengths],
        "wide": lambda: [list(range(5, 5 + length)) for length in lengths],
        "gaps": lambda: [sorted(draw.sample(range(2 * longest), length)) for length in lengths],
    }[layout]()


LAYOUTS = ("left", "right", "wide", "gaps")
WIDTH = {"wide": 29, "gaps": 14}


def rollout_of(data: Ragged, layout: str = "left", dtype: torch.dtype = DOUBLE) -> Rollout:
    """As tensors; NaN and infinities off the mask, NaN for the score of a sequence without tokens."""
    lengths = [len(row) for row in data.student]
    columns = places(lengths, layout)
    shape = (len(lengths), WIDTH.get(layout, max(lengths)))
    mask_BT = torch.zeros(shape, dtype=torch.bool)
    for row, own in enumerate(columns):
        mask_BT[row, own] = True

    def filled(values: Lists) -> Tensor:
        garbage = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
        tensor = garbage[torch.arange(shape[0] * shape[1]) % 3].reshape(shape).clone()
        for row, own in enumerate(columns):
            tensor[row, own] = torch.tensor(values[row], dtype=dtype)
        return tensor

    scores = [score if length else math.nan for score, length in zip(data.scores, lengths, strict=True)]
    return Rollout(
        mask_BT, filled(data.student), filled(data.teacher), filled(data.reference),
        torch.tensor(scores, dtype=dtype), torch.tensor(data.groups),
    )  # fmt: skip


def lists_of(values_BT: Tensor, rollout: Rollout) -> Lists:
    assert (values_BT[~rollout.mask_BT] == 0).all()  # NaN is not 0 either
    return [row[mask].tolist() for row, mask in zip(values_BT, rollout.mask_BT, strict=True)]


def log_ratios(data: Ragged, scale: float = 1.0) -> Lists:
    rows = zip(data.teacher, data.student, strict=True)
    return [[scale * (p - q) for p, q in zip(*row, strict=True)] for row in rows]


def discounted(row: list[float], gamma: float) -> list[float]:
    return [sum(gamma ** (k - t) * row[k] for k in range(t, len(row))) for t in range(len(row))]


def whitened(rows: Lists, shift_mean: bool = True) -> Lists:
    every = [value for row in rows for value in row]
    mean = math.fsum(every) / len(every)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in every) / len(every) + 1e-8)
    return [[(value - mean) / std + (0 if shift_mean else mean) for value in row] for row in rows]


def against_group(rows: Lists, data: Ragged, scale: bool) -> Lists:
    found = []
    for row, group in zip(rows, data.groups, strict=True):
        totals = [math.fsum(o) for o, other in zip(rows, data.groups, strict=True) if other == group and o]
        mean = sum(totals) / len(totals)
        std = math.sqrt(sum((total - mean) ** 2 for total in totals) / (len(totals) - 1)) + 1e-4 if scale else 1.0
        found.append([(value - mean * (t == len(row) - 1)) / std for t, value in enumerate(row)])
    return found


def penalised(rows: Lists, student: Lists, other: Lists, weight: float, k: Callable[[float, float], float]) -> Lists:
    return [
        [r - weight * k(log_q, log_ref) for r, log_q, log_ref in zip(*row, strict=True)]
        for row in zip(rows, student, other, strict=True)
    ]


def k3(log_q: float, log_ref: float) -> float:
    return math.exp(log_ref) / math.exp(log_q) - 1 - (log_ref - log_q)


# shaper -> its formula on lists of rewards
SHAPERS: dict[str, tuple[Callable, Callable[[Lists, Ragged], Lists]]] = {
    **{
        f"RewardToGo({gamma:g})": (
            RewardToGo(gamma),
            lambda rows, data, gamma=gamma: [discounted(row, gamma) for row in rows],
        )
        for gamma in (0.0, 0.3, 0.95, 1.0)
    },
    "LengthNormalize": (
        LengthNormalize(),
        lambda rows, data: [[value / (len(row) - t) for t, value in enumerate(row)] for row in rows],
    ),
    "SingleStepDecomposition": (
        SingleStepDecomposition(0.9),
        lambda rows, data: [[0.9 * value for value in row[1:]] + [0.0] * bool(row) for row in rows],
    ),
    "Clip": (Clip(-1, 0.5), lambda rows, data: [[min(max(value, -1), 0.5) for value in row] for row in rows]),
    "Clip above 0": (Clip(1, 2), lambda rows, data: [[min(max(value, 1), 2) for value in row] for row in rows]),
    "Whiten": (Whiten(), lambda rows, data: whitened(rows)),
    "Whiten, mean kept": (Whiten(shift_mean=False), lambda rows, data: whitened(rows, shift_mean=False)),
    "GroupNormalize": (GroupNormalize(), lambda rows, data: against_group(rows, data, True)),
    "GroupNormalize, unscaled": (GroupNormalize(scale=False), lambda rows, data: against_group(rows, data, False)),
    "KLPenalty k1": (
        KLPenalty(0.3),
        lambda rows, data: penalised(rows, data.student, data.reference, 0.3, lambda log_q, log_ref: log_q - log_ref),
    ),
    "KLPenalty k2": (
        KLPenalty(0.3, "k2", "teacher"),
        lambda rows, data: penalised(rows, data.student, data.teacher, 0.3, lambda a, b: (a - b) ** 2 / 2),
    ),
    "KLPenalty k3": (
        KLPenalty(0.3, "k3"),
        lambda rows, data: penalised(rows, data.student, data.reference, 0.3, k3),
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", SHAPERS)


def assert_lists_close(found: Lists, expected: Lists, tolerance: float = 1e-12) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sources_are_their_formulas(layout):
    data = ragged()
    rollout = rollout_of(data, layout)
    assert_lists_close(lists_of(TeacherLogRatio(2)(rollout), rollout), log_ratios(data, 2))
    at_last = [
        [0.0] * (len(row) - 1) + [score] * bool(row) for row, score in zip(data.student, data.scores, strict=True)
    ]
    assert_lists_close(lists_of(DiscriminatorScore()(rollout), rollout), at_last)
    spread = (DiscriminatorScore() >> RewardToGo(1))(rollout)
    everywhere = [[score] * len(row) for row, score in zip(data.student, data.scores, strict=True)]
    assert_lists_close(lists_of(spread, rollout), everywhere)


@EVERY
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapers_are_their_formulas_wherever_tokens_stand(name, layout):
    shaper, formula = SHAPERS[name]
    data = ragged()
    rollout = rollout_of(data, layout)
    garbage_BT = torch.where(rollout.mask_BT, TeacherLogRatio()(rollout), math.nan)
    assert_lists_close(lists_of(shaper(garbage_BT, rollout), rollout), formula(log_ratios(data), data))


@EVERY
def test_order_of_sequences_and_precision(name):
    reward = TeacherLogRatio() >> SHAPERS[name][0]
    data, order = ragged(), [3, 5, 0, 4, 2, 1]
    moved = Ragged(*([values[row] for row in order] for values in data))
    whole = lists_of(reward(rollout_of(data)), rollout_of(data))
    assert_lists_close(lists_of(reward(rollout_of(moved)), rollout_of(moved)), [whole[row] for row in order])
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (DOUBLE, DOUBLE)):
        assert reward(rollout_of(data, dtype=dtype)).dtype == expected


@EVERY
def test_parts_of_a_step_give_what_the_whole_gives_where_no_sequence_sees_another(name):
    reward = TeacherLogRatio() >> SHAPERS[name][0]
    whole = rollout_of(ragged())
    parts = [Rollout(*(values[rows] for values in whole)) for rows in ([0, 2, 5], [1, 3, 4])]  # whole groups
    apart_BT = torch.cat([reward(part) for part in parts])[[0, 3, 1, 4, 5, 2]]
    if name.startswith("Whiten"):
        assert (apart_BT - reward(whole)).abs().max() > 0.01
    else:
        assert_close(apart_BT, reward(whole), rtol=0, atol=1e-14)


def on_ranks(parts: list[Rollout], chain: Callable[[Callable[[Tensor], Tensor]], Reward]) -> list[Tensor]:
    """A reward on each part at once, with sums over all of them."""
    barrier, given, found = Barrier(len(parts), timeout=60), {}, {}

    def work(rank: int) -> None:
        def over_ranks(own: Tensor) -> Tensor:
            given[rank] = own
            barrier.wait()
            total = sum(given.values(), torch.zeros_like(own))
            barrier.wait()
            return total

        found[rank] = chain(over_ranks)(parts[rank])

    threads = [Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(len(parts))]


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("split", [([0, 1], [2, 3, 4, 5]), ([4], [5, 3, 0], [1, 2])])  # sequence 4 is empty
def test_ranks_whiten_together(shift_mean, split):
    whole = rollout_of(ragged())
    expected_BT = (TeacherLogRatio() >> RewardToGo(1) >> Whiten(shift_mean))(whole)
    parts = [Rollout(*(values[rows] for values in whole)) for rows in split]
    found = on_ranks(parts, lambda over: TeacherLogRatio() >> RewardToGo(1) >> Whiten(shift_mean, over))
    for rows, part_BT in zip(split, found, strict=True):
        assert_close(part_BT, expected_BT[rows], rtol=0, atol=1e-13)


def test_whitening_counts_response_tokens_alone_and_survives_a_large_mean():
    rollout = rollout_of(ragged(), "gaps", torch.float32)
    mask = rollout.mask_BT
    advantages_BT = (TeacherLogRatio() >> Whiten())(rollout)
    assert advantages_BT[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert advantages_BT[mask].var(correction=0).item() == pytest.approx(1, abs=1e-6)
    far_BT = Whiten()(TeacherLogRatio()(rollout) + 4096, rollout)
    assert_close(far_BT, advantages_BT, rtol=0, atol=1e-3)
    assert (Whiten()(torch.full_like(far_BT, 7.0), rollout) == 0).all()
    nothing = Rollout(torch.zeros(2, 3, dtype=torch.bool), torch.full((2, 3), math.nan))
    assert (Whiten(shift_mean=False)(nothing.student_log_probs_BT, nothing) == 0).all()


@pytest.mark.parametrize("gamma", [0.5, 0.95, 1.0])
def test_reward_to_go_of_a_long_response_depends_on_what_follows_alone(gamma):
    """Weights gamma^t from the start, divided out again, would end in 0 / 0."""
    length = 5000
    rewards_BT = torch.randn(1, length, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    rollout = Rollout(torch.ones(1, length, dtype=torch.bool), rewards_BT)
    found = RewardToGo(gamma)(rewards_BT, rollout)[0].tolist()
    expected, following = [], 0.0
    for reward in reversed(rewards_BT[0].tolist()):
        following = reward + gamma * following
        expected.append(following)
    assert found == pytest.approx(expected[::-1], rel=1e-10, abs=1e-10)
    tail = Rollout(rollout.mask_BT[:, 4900:], rewards_BT[:, 4900:])
    assert RewardToGo(gamma)(rewards_BT[:, 4900:], tail)[0].tolist() == pytest.approx(
        found[4900:], rel=1e-12, abs=1e-12
    )


def test_minillm_chain_on_lists():
    """The release's advantages, with the factor 1 / 0.5, its clip, its discount and its lengths, padding left out."""
    data = ragged()
    data.teacher[2][3] = -1000.0
    rollout = rollout_of(data, "gaps")
    chain = TeacherLogRatio(2) >> Clip(-100, 100) >> RewardToGo(0.95) >> LengthNormalize() >> Whiten()
    rows = [[min(max(value, -100), 100) for value in row] for row in log_ratios(data, 2)]
    to_go = [discounted(row, 0.95) for row in rows]
    expected = whitened([[value / (len(row) - t) for t, value in enumerate(row)] for row in to_go])
    assert_lists_close(lists_of(chain(rollout), rollout), expected)

    paper = TeacherLogRatio() >> RewardToGo(1) >> LengthNormalize() >> SingleStepDecomposition(1)
    means = [
        [sum(row[t + 1 :]) / max(len(row) - t - 1, 1) for t in range(len(row))] for row in log_ratios(data)
    ]  # fmt: skip
    assert_lists_close(lists_of(paper(rollout), rollout), means)
    to_go = TeacherLogRatio() >> RewardToGo(0.9)
    assert_close((to_go >> SingleStepDecomposition(0.9))(rollout), to_go(rollout) - TeacherLogRatio()(rollout))


def test_a_token_that_the_teacher_excludes_is_clipped():
    data = ragged()
    data.teacher[2][3] = -math.inf
    rollout = rollout_of(data)
    rewards_BT = (TeacherLogRatio() >> Clip(-50, 50))(rollout)
    assert rewards_BT[2, 3] == -50
    assert torch.isfinite(rewards_BT).all()
    assert_close((TeacherLogRatio() >> RewardToGo(0))(rollout), TeacherLogRatio()(rollout))


def test_group_advantages_have_mean_zero_and_spread_one_and_equal_groups_none():
    data = ragged(lengths=(3, 1, 7, 4, 2, 5), groups=(4, 9, 4, 9, 9, 4))
    rollout = rollout_of(data)
    advantages_BT = (DiscriminatorScore() >> GroupNormalize() >> RewardToGo(1))(rollout)
    for members in ([0, 2, 5], [1, 3, 4]):
        own = torch.stack(
            [advantages_BT[row][rollout.mask_BT[row]].unique() for row in members]
        )  # one value a sequence
        assert own.mean().item() == pytest.approx(0, abs=1e-12)
        assert own.std().item() == pytest.approx(1, abs=1e-3)
    equal = rollout._replace(scores_B=torch.tensor([0.1, 0.7, 0.1, 0.7, 0.7, 0.1]))
    for scale in (True, False):
        assert ((DiscriminatorScore() >> GroupNormalize(scale) >> RewardToGo(1))(equal) == 0).all()


def test_nothing_carries_a_gradient():
    data = ragged()
    live = Rollout(
        *(v.requires_grad_() if torch.is_tensor(v) and v.is_floating_point() else v for v in rollout_of(data))
    )
    for source in (TeacherLogRatio(), DiscriminatorScore()):
        assert not source(live).requires_grad
    rewards_BT = live.teacher_log_probs_BT - live.student_log_probs_BT
    for name, (shaper, _) in SHAPERS.items():
        assert not shaper(rewards_BT, live).requires_grad, name


def halved(rewards_BT: Tensor, rollout: Rollout) -> Tensor:
    return on_mask(rewards_BT, rollout) / 2


def test_chains_print_as_they_are_written():
    text = (
        "TeacherLogRatio(scale=2) >> Clip(low=-100, high=100) >> RewardToGo(gamma=0.95) >> LengthNormalize()"
        " >> SingleStepDecomposition(gamma=0.95) >> Whiten(shift_mean=False) >> halved"
    )
    chain = eval(text)
    assert str(chain) == text
    assert eval(repr(chain)) == chain
    other = "DiscriminatorScore() >> GroupNormalize(scale=False) >> KLPenalty(weight=0.001, estimator='k3', against='teacher')"
    assert str(eval(other)) == other
    assert (
        str(TeacherLogRatio() >> Whiten(over_ranks=torch.clone))
        == "TeacherLogRatio(scale=1.0) >> Whiten(shift_mean=True)"
    )


def test_errors_say_what_was_got():
    bare = Rollout(torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="TeacherLogRatio reads teacher_log_probs_BT"):
        TeacherLogRatio()(bare)
    with pytest.raises(ValueError, match="KLPenalty reads reference_log_probs_BT"):
        KLPenalty(1.0)(torch.zeros(2, 3), bare)
    with pytest.raises(ValueError, match=r"one score a sequence, got \[2, 1\] for 2"):
        DiscriminatorScore()(bare._replace(scores_B=torch.zeros(2, 1)))
    with pytest.raises(ValueError, match=r"\[2, 3\] as the mask, got \[2, 1\]"):
        TeacherLogRatio()(bare._replace(teacher_log_probs_BT=torch.zeros(2, 1)))
    with pytest.raises(ValueError, match="a single sequence of group 5"):
        GroupNormalize()(
            torch.zeros(3, 2), Rollout(torch.ones(3, 2) > 0, torch.zeros(3, 2), group_B=torch.tensor([7, 5, 7]))
        )
    for gamma in (-0.1, 1.1):
        for shaper in (RewardToGo, SingleStepDecomposition):
            with pytest.raises(ValueError, match=f"got gamma={gamma}"):
                shaper(gamma)
    with pytest.raises(ValueError, match="got low=1, high=0"):
        Clip(1, 0)
    with pytest.raises(ValueError, match="estimator='k4'"):
        KLPenalty(0.1, "k4")
    for wrong in (Whiten, DiscriminatorScore(), 0.5):
        with pytest.raises(TypeError, match="after >> stands a shaper"):
            TeacherLogRatio() >> wrong
