"""Measures of generated text, as token ids, without any model: variety and repetition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

BUCKETS = ("short", "medium", "long")


def ngrams(tokens: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    """All runs of n tokens, in order; none where there are fewer."""
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams over all n-grams of a corpus, 0 to 1 (Li et al., arXiv 1510.03055); 0 where there are none.

    It falls as a corpus grows: compare corpora of one size.
    """
    counts = Counter(gram for text in texts for gram in ngrams(text, n))
    return len(counts) / counts.total() if counts else 0.0


def repetition(tokens: Sequence[Hashable], n: int = 4) -> float:
    """Share of a text's n-grams that stood in it before, 0 to 1 (seq-rep-n of Welleck et al., arXiv 1908.04319)."""
    grams = list(ngrams(tokens, n))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def bucket_of(length: int, bounds: Sequence[int]) -> str:
    """short up to the first of two bounds, medium up to the second, long above."""
    return BUCKETS[sum(length > bound for bound in bounds)]
