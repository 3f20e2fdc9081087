"""ROUGE-L and exact match of a text against its references, as MiniLLM's tables and GAKD's release have them."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

from rouge_score.rouge_scorer import RougeScorer

_ROUGE_L = RougeScorer(["rougeL"], use_stemmer=True)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure in percent, the best over the references: `100 * 2PR / (P + R)`, `P = LCS / |prediction|`.

    Words are runs of a-z and 0-9 in lower case, Porter-stemmed from four letters on (`rouge_score` with
    `use_stemmer=True`); a text in another script therefore has none, and an empty prediction scores 0. Raises
    ValueError without references.
    """
    _check_references(references)
    return 100 * max(
        _ROUGE_L.score(target=reference, prediction=prediction)["rougeL"].fmeasure for reference in references
    )


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """100 where the prediction equals a reference up to case, punctuation and white space, else 0."""
    _check_references(references)
    return 100.0 * (_normalised(prediction) in {_normalised(reference) for reference in references})


def corpus_rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over rows of `rouge_l`, in percent."""
    return _mean(rouge_l, predictions, references)


def corpus_exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over rows of `exact_match`: the percentage of rows that match."""
    return _mean(exact_match, predictions, references)


def _mean(
    metric: Callable[[str, Sequence[str]], float], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            f"a corpus needs one list of references a prediction, got {len(predictions)} predictions "
            f"and {len(references)} lists"
        )
    return sum(map(metric, predictions, references)) / len(predictions)


def _normalised(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise ValueError(f"expected a non-empty list of reference texts, got {references!r}")
