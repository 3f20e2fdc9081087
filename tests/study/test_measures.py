"""Measures of generated text by hand, and a two-sample test that knows chance from difference."""

from __future__ import annotations

import numpy as np
import pytest

from gakd.study.text_measures import bucket_of, distinct_n, repetition
from gakd.study.two_sample import two_sample_correct


def test_distinct_n_counts_the_whole_corpus():
    # (1, 2) in both texts, (2, 3), (2, 1): four bigrams in all, three different ones.
    assert distinct_n([[1, 2, 3], [2, 1, 2]], 2) == 3 / 4
    assert distinct_n([[1, 2, 3], [2, 1, 2]], 1) == 3 / 6
    assert distinct_n([[1], []], 2) == 0.0


def test_repetition_is_the_share_of_n_grams_that_came_before():
    assert repetition("abcdabcd", 4) == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition("aaaaaa", 4) == pytest.approx(2 / 3)
    assert repetition("abcdefgh", 4) == 0.0
    assert repetition("abc", 4) == 0.0


def test_buckets_take_their_upper_bounds_in():
    assert [bucket_of(length, (24, 64)) for length in (1, 24, 25, 64, 65)] == [
        "short",
        "short",
        "medium",
        "medium",
        "long",
    ]


def texts(random: np.random.Generator, count: int, probabilities: np.ndarray) -> list[list[int]]:
    return [
        random.choice(len(probabilities), size=random.integers(5, 40), p=probabilities).tolist() for _ in range(count)
    ]


def test_two_samples_of_one_distribution_cannot_be_told_apart():
    random = np.random.default_rng(0)
    flat = np.full(200, 1 / 200)
    correct = two_sample_correct(texts(random, 300, flat), texts(random, 300, flat), list(range(300)))
    # 600 held-out guesses: their standard error is 0.02.
    assert correct.shape == (300,)
    assert abs(correct.mean() - 0.5) < 0.07


def test_what_is_the_same_for_each_prompt_is_not_remembered():
    """Prompts have words of their own in both samples; a test that split them over the folds would still be fair, one that
    was asked about its training texts would not: it would be right on nearly all.
    """
    random = np.random.default_rng(1)
    own = [texts(random, 3, np.eye(400)[group]) for group in range(60)]
    flat = [texts(random, 3, np.full(400, 1 / 400)) for _ in range(120)]
    first = [own[group][i] + flat[group][i] for group in range(60) for i in range(3)]
    second = [own[group][i] + flat[60 + group][i] for group in range(60) for i in range(3)]
    correct = two_sample_correct(first, second, [group for group in range(60) for _ in range(3)])
    assert abs(correct.mean() - 0.5) < 0.09


def test_two_samples_of_different_distributions_are_told_apart():
    random = np.random.default_rng(0)
    flat = np.full(200, 1 / 200)
    tilted = flat * np.linspace(0.2, 1.8, 200)
    correct = two_sample_correct(texts(random, 300, flat), texts(random, 300, tilted), list(range(300)))
    assert correct.mean() > 0.7


def test_order_alone_is_noticed():
    random = np.random.default_rng(0)
    rising = [(np.arange(20) + random.integers(0, 30)).tolist() for _ in range(200)]
    shuffled = [random.permutation(np.arange(20) + random.integers(0, 30)).tolist() for _ in range(200)]
    assert two_sample_correct(rising, shuffled, list(range(200))).mean() > 0.95


def test_one_prompt_leaves_nothing_to_hold_out():
    with pytest.raises(ValueError, match="at least two groups"):
        two_sample_correct([[1], [2]], [[1], [2]], [0, 0])
