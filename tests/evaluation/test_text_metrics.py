"""ROUGE-L against an independent implementation and hand-computed values; exact match."""

from __future__ import annotations

import re
from functools import cache

import pytest
from nltk.stem.porter import PorterStemmer

from gakd.evaluation import corpus_exact_match, corpus_rouge_l, exact_match, rouge_l

TEXTS = [
    "The cats were running quickly across the gardens.",
    "A cat runs across a garden; it's quick!",
    "Generalisations, generalization and GENERALIZED organisers: 3.14 is not 3,14",
    "café naïve – 北京 is a city",
    "repeat repeat repeat the words, the words the words",
    "the words repeat",
    "x",
]


def words(text: str) -> list[str]:
    stemmer = PorterStemmer()
    return [stemmer.stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower())]


def rouge_by_recursion(prediction: str, reference: str) -> float:
    left, right = words(prediction), words(reference)

    @cache
    def common(i: int, j: int) -> int:
        if i == len(left) or j == len(right):
            return 0
        return common(i + 1, j + 1) + 1 if left[i] == right[j] else max(common(i + 1, j), common(i, j + 1))

    length = common(0, 0)
    return 0.0 if length == 0 else 100 * 2 * length / (len(left) + len(right))


@pytest.mark.parametrize("prediction", TEXTS)
def test_rouge_l_against_recursion(prediction):
    for reference in TEXTS:
        assert rouge_l(prediction, [reference]) == pytest.approx(rouge_by_recursion(prediction, reference))
    assert rouge_l(prediction, TEXTS) == pytest.approx(100)


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("the cat sat", ["the cat sat"], 100),
        ("a b c d", ["a c"], 200 / 3),  # LCS 2, P 1/2, R 1
        ("c a", ["a c"], 50),  # order counts: LCS 1 of 2 and 2
        ("running", ["runs"], 100),  # both stem to run
        ("ran", ["runs"], 0),
        ("a b c d", ["x y", "a c", "a"], 200 / 3),  # the best reference
        ("", ["a c"], 0),
        ("?!", ["a c"], 0),
        ("a", [""], 0),
    ],
)
def test_rouge_l_by_hand(prediction, references, expected):
    assert rouge_l(prediction, references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("  Paris. ", ["paris"], 100),
        ("it's  New-York", ["its newyork"], 100),
        ("the paris", ["paris"], 0),  # articles stay, unlike in SQuAD
        ("Paris", ["London", "PARIS!"], 100),
        ("", ["."], 100),
        ("Paris", ["London"], 0),
    ],
)
def test_exact_match(prediction, references, expected):
    assert exact_match(prediction, references) == expected


def test_corpus_means():
    predictions, references = ["a b c d", "Paris", ""], [["a c", "x"], ["paris"], ["a"]]
    assert corpus_rouge_l(predictions, references) == pytest.approx((200 / 3 + 100 + 0) / 3)
    assert corpus_exact_match(predictions, references) == pytest.approx(100 / 3)


def test_refusals():
    with pytest.raises(ValueError, match="non-empty list of reference texts, got 'paris'"):
        rouge_l("paris", "paris")
    with pytest.raises(ValueError, match=r"got \[\]"):
        exact_match("paris", [])
    with pytest.raises(ValueError, match="got 1 predictions and 2 lists"):
        corpus_rouge_l(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="got 0 predictions"):
        corpus_exact_match([], [])
