"""A two-sample test: how often an independent classifier, on texts it was not trained on, tells whose a text is."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

FEATURES = 4096
DECAY = 0.01  # of the weights' squares, beside the mean loss
FOLDS = 5


def two_sample_correct(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], groups: Sequence[int]
) -> np.ndarray:
    """For each pair of texts (token ids) the share of its two that a held-out classifier assigns rightly: 0, 0.5 or 1.

    0.5 on average: the two sources cannot be told apart. A logistic classifier of hashed runs of one to three tokens, their
    counts damped by a logarithm, and of the length, trained on the texts of other groups, five folds; `groups` numbers the
    prompts, so that no prompt is on both sides. It knows neither model. Needs at least two groups: ValueError.
    """
    if len({*groups}) < 2 or not len(first) == len(second) == len(groups):
        raise ValueError(
            f"a held-out test needs pairs of at least two groups, got {len(first)} and {len(second)} texts of "
            f"{len({*groups})} groups for {len(groups)} pairs"
        )
    features_PF = [torch.stack([_features(text) for text in texts]) for texts in (first, second)]
    fold_P = torch.tensor([_folds(groups)[group] for group in groups])
    correct_P = torch.zeros(len(groups))
    for fold in range(int(fold_P.max()) + 1):
        held = fold_P == fold
        train_NF = torch.cat([features[~held] for features in features_PF])
        signs_N = torch.cat([torch.full((int((~held).sum()),), sign) for sign in (1.0, -1.0)])
        weight_F, bias = _fit(train_NF, signs_N)
        for features, sign in zip(features_PF, (1.0, -1.0), strict=True):
            score = sign * (features[held] @ weight_F + bias)
            correct_P[held] += ((score > 0).float() + (score == 0).float() / 2) / 2
    return correct_P.numpy()


def _folds(groups: Sequence[int]) -> dict[int, int]:
    """Group -> fold, the groups shuffled alike every time."""
    names = sorted(set(groups))
    order = np.random.default_rng(0).permutation(len(names))
    return {names[index]: position % min(FOLDS, len(names)) for position, index in enumerate(order)}


def _features(tokens: Sequence[int]) -> Tensor:
    counts = np.zeros(FEATURES, dtype=np.float32)
    ids = np.asarray(tokens, dtype="<i4")
    for n in (1, 2, 3):
        for start in range(len(ids) - n + 1):
            # Python's own hash of a tuple is not promised to stay; this one is.
            counts[zlib.crc32(ids[start : start + n].tobytes(), n) % (FEATURES - 1)] += 1
    counts = np.log1p(counts)
    counts[-1] = np.log1p(len(ids))
    return torch.from_numpy(counts)


def _fit(features_NF: Tensor, signs_N: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression by L-BFGS: a convex problem, so the start does not matter."""
    weight_F = torch.zeros(features_NF.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_F, bias], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = softplus(-signs_N * (features_NF @ weight_F + bias)).mean() + DECAY * weight_F.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight_F.detach(), bias.detach()
