"""DistiLLM-2's alpha of each response, against the formula written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from gakd.rewards import Rollout, adaptive_skew

LENGTHS = [3, 1, 4, 2]


def rollout(seed: int = 0, far: float = 1.0) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    mask_BT = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    student_BT, teacher_BT = -torch.rand(2, *mask_BT.shape, generator=generator, dtype=torch.float64)
    return Rollout(mask_BT, (far * student_BT).where(mask_BT, math.nan), teacher_BT.where(mask_BT, math.nan))


def loop(given: Rollout, teachers_text: bool, alpha: float) -> list[float]:
    differences = []
    for row, length in enumerate(LENGTHS):
        p, q = (
            math.exp(sum(values_BT[row, :length].tolist()) / length)
            for values_BT in (given.teacher_log_probs_BT, given.student_log_probs_BT)
        )
        differences.append(p - q if teachers_text else q - p)
    mean = sum(differences) / len(differences)
    return [min(max(1 - (1 - alpha) * mean / d, 0.01), alpha) if d > 0 else alpha for d in differences]


@pytest.mark.parametrize(("teachers_text", "far"), [(True, 2.0), (False, 0.2)])
@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_alphas_are_those_of_the_formula(teachers_text, far, alpha):
    given = rollout(far=far)
    found_BT = adaptive_skew(given, teachers_text, alpha)
    expected = loop(given, teachers_text, alpha)
    assert len(set(expected)) > 1
    assert_close(found_BT[:, 0], torch.tensor(expected, dtype=torch.float64))
    assert found_BT.shape == given.mask_BT.shape


def test_the_farther_the_models_the_larger_the_alpha():
    given = rollout(far=2.0)
    alphas = adaptive_skew(given, True, 0.5)[:, 0]
    assert given.teacher_log_probs_BT is not None
    p_B, q_B = ((values.nan_to_num().sum(1) / given.mask_BT.sum(1)).exp()
                for values in (given.teacher_log_probs_BT, given.student_log_probs_BT))  # fmt: skip
    order = [row for row in (p_B - q_B).argsort().tolist() if (p_B - q_B)[row] > 0]
    assert len(order) > 2
    assert alphas[order].tolist() == sorted(alphas[order].tolist())


def test_the_mean_is_that_of_all_ranks():
    given = rollout(far=2.0)
    halves = [Rollout(*(part[rows] for part in given[:3] if part is not None)) for rows in (slice(0, 1), slice(1, 4))]
    sums = []
    for half in halves:
        adaptive_skew(half, True, 0.5, lambda own: sums.append(own) or own)
    for half, rows in zip(halves, (slice(0, 1), slice(1, 4)), strict=True):
        found_BT = adaptive_skew(half, True, 0.5, lambda own: sums[0] + sums[1])
        assert_close(found_BT, adaptive_skew(given, True, 0.5)[rows])


def test_alphas_out_of_range_are_refused():
    for alpha in (0.0, 0.01, 1.0):
        with pytest.raises(ValueError, match=r"lies in \(0.01, 1\), got"):
            adaptive_skew(rollout(), True, alpha)
