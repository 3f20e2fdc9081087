"""Divergences between next-token distributions: `[N, V]` log-probabilities in, unreduced `[N]` losses out, in nats.

`log_q` is the student's, `log_p` the teacher's. Beside each value stands the same value with its closed-form gradient
with respect to the student's *logits* `z` (any logits with `log_q = log_softmax(z)`); for a loss `f(q)`,
`df/dz = q * (df/dq - sum_v q df/dq)`. Every divergence and its gradient is exactly zero where `log_q` equals `log_p`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(log_q_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of the label, `-log q[label]`."""
    return -log_q_NV.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)


def cross_entropy_with_gradient(log_q_NV: Tensor, q_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and `q - onehot(label)`."""
    ones = torch.ones_like(labels_N, dtype=q_NV.dtype).unsqueeze(-1)
    return cross_entropy(log_q_NV, labels_N), q_NV.clone().scatter_add_(-1, labels_N.unsqueeze(-1), -ones)


def forward_kl(log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
    """KL(p‖q) = `sum_v p (log p - log q)`: mass-covering; the teacher's entropy is included."""
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)


def forward_kl_with_gradient(log_q_NV: Tensor, log_p_NV: Tensor, q_NV: Tensor, p_NV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p‖q) and `q - p`."""
    return (p_NV * (log_p_NV - log_q_NV)).sum(-1), q_NV - p_NV


def reverse_kl(log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
    """KL(q‖p) = `sum_v q (log q - log p)`: mode-seeking; the divergence of MiniLLM and GAKD."""
    return (log_q_NV.exp() * (log_q_NV - log_p_NV)).sum(-1)


def reverse_kl_with_gradient(log_q_NV: Tensor, log_p_NV: Tensor, q_NV: Tensor) -> tuple[Tensor, Tensor]:
    """K = KL(q‖p) and `q (log q - log p - K)`."""
    log_ratio_NV = log_q_NV - log_p_NV
    losses_N = (q_NV * log_ratio_NV).sum(-1)
    return losses_N, log_ratio_NV.sub_(losses_N.unsqueeze(-1)).mul_(q_NV)


def log_ratios_to_mixture(log_q_NV: Tensor, log_p_NV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """`log q - log m` and `log p - log m` for `m = beta p + (1 - beta) q`, with 0 < beta < 1.

    Written from the difference of the log-probabilities, so that both are exactly 0 where p = q and neither overflows:
    with `d = log p - log q`, `log m = max(log p, log q) + log1p(w expm1(-|d|))`, w the weight of the smaller one.
    """
    difference_NV = log_p_NV - log_q_NV
    # Tensors, since `where` of two numbers would round them to the default dtype.
    weight_NV = torch.where(difference_NV <= 0, difference_NV.new_tensor(beta), difference_NV.new_tensor(1 - beta))
    log_m_over_max_NV = torch.log1p(weight_NV * torch.expm1(-difference_NV.abs()))
    return (-difference_NV).clamp(max=0) - log_m_over_max_NV, difference_NV.clamp(max=0) - log_m_over_max_NV


def jensen_shannon(log_q_NV: Tensor, log_p_NV: Tensor, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence, `beta KL(p‖m) + (1 - beta) KL(q‖m)` with `m = beta p + (1 - beta) q`.

    GKD's convention (arXiv 2306.13649): 0 is forward KL and 1 reverse KL, by definition, since the expression
    itself vanishes there; `beta` and the losses are unscaled.
    """
    if beta == 0:
        return forward_kl(log_q_NV, log_p_NV)
    if beta == 1:
        return reverse_kl(log_q_NV, log_p_NV)
    log_q_over_m_NV, log_p_over_m_NV = log_ratios_to_mixture(log_q_NV, log_p_NV, beta)
    return (beta * log_p_NV.exp() * log_p_over_m_NV + (1 - beta) * log_q_NV.exp() * log_q_over_m_NV).sum(-1)


def jensen_shannon_with_gradient(
    log_q_NV: Tensor, log_p_NV: Tensor, q_NV: Tensor, p_NV: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Generalised JSD and `(1 - beta) q (r - sum_v q r)` with `r = log q - log m`.

    The derivatives of `KL(p‖m)` and of `m` inside `KL(q‖m)` cancel to this.
    """
    if beta == 0:
        return forward_kl_with_gradient(log_q_NV, log_p_NV, q_NV, p_NV)
    if beta == 1:
        return reverse_kl_with_gradient(log_q_NV, log_p_NV, q_NV)
    log_q_over_m_NV, log_p_over_m_NV = log_ratios_to_mixture(log_q_NV, log_p_NV, beta)
    student_kl_N = (q_NV * log_q_over_m_NV).sum(-1)
    losses_N = beta * log_p_over_m_NV.mul_(p_NV).sum(-1) + (1 - beta) * student_kl_N
    return losses_N, log_q_over_m_NV.sub_(student_kl_N.unsqueeze(-1)).mul_(q_NV).mul_(1 - beta)


def logit_gradient(log_prob_gradient_NV: Tensor, q_NV: Tensor) -> Tensor:
    """Through the log-softmax: a gradient with respect to `log q` becomes one with respect to the logits, `g - q sum_v g`."""
    return log_prob_gradient_NV - q_NV * log_prob_gradient_NV.sum(-1, keepdim=True)
