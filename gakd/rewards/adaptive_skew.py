"""DistiLLM-2's curriculum of the skew: text on which the models are far apart is compared more gently."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gakd.rewards.sources import Rollout, needed, on_mask

LOWEST = 0.01


def adaptive_skew(
    rollout: Rollout,
    teachers_text: bool,
    alpha: float = 0.1,
    over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """An alpha for each sequence, in `[0.01, alpha]`, as `[B, T]`: `1 - (1 - alpha) m / d`, cut to that range.

    `d = p - q` on the teacher's text and `q - p` on the student's, p and q the geometric means of a response's token
    probabilities; `m` is the mean of d over all sequences of the step, with `over_ranks` those of all ranks. To first order
    `(1 - alpha) d`, what the skewed ratio has left of the distance, is then the same everywhere, and the smaller alpha goes
    where the models agree. Where d is 0 or less, alpha stays. Row value `skew_alpha` of `SkewForwardKL` and
    `SkewReverseKL`. DistiLLM-2, arXiv 2503.07067, section 3.3; its release has this switched off.
    Raises ValueError where the rollout has no teacher, and for an alpha outside (0.01, 1).
    """
    if not LOWEST < alpha < 1:
        raise ValueError(f"the largest alpha of the curriculum lies in ({LOWEST}, 1), got {alpha}")
    teacher_BT = on_mask(needed(rollout, "teacher_log_probs_BT", "adaptive_skew"), rollout)
    lengths_B = rollout.mask_BT.sum(1).clamp(min=1)
    p_B, q_B = (
        (values_BT.sum(1) / lengths_B).exp()
        for values_BT in (teacher_BT, on_mask(rollout.student_log_probs_BT, rollout))
    )
    difference_B = p_B - q_B if teachers_text else q_B - p_B
    real_B = rollout.mask_BT.any(1)
    total, count = (over_ranks or torch.clone)(
        torch.stack([(difference_B * real_B).sum(), real_B.sum().to(difference_B.dtype)])
    ).unbind()
    mean = total / count.clamp(min=1)
    alpha_B = (1 - (1 - alpha) * mean / difference_B.clamp(min=1e-5)).clamp(LOWEST, alpha)
    alpha_B = torch.where(difference_B > 0, alpha_B, alpha)
    return alpha_B.unsqueeze(1).expand_as(rollout.mask_BT)
