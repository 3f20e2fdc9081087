"""Divergences between next-token distributions: `[N, V]` log-probabilities in, unreduced `[N]` losses out, in nats.

`log_q` is the student's, `log_p` the teacher's, `q` and `p` their exponentials. Beside each differentiable value stands
`*_with_gradient`: the same value and `G [N, V]`, a fresh tensor, the derivative with respect to `log q` up to a multiple of
`q` in each row. The softmax cancels such a multiple: `logit_gradient(G, q)` is the gradient with respect to the logits
`z` of `log_q = log_softmax(z)`. Every divergence and its `G` is exactly zero where `log_q` equals `log_p`, and finite
where probabilities underflow.

Tokens of probability 0 (logits of -inf: banned, padded) count nothing where both models exclude them, and the loss is infinite
where one does that the other may need. The values take log-probabilities of -inf as they are; `*_with_gradient`, the
engine's, want them `floored`, and their losses made `honest`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

LOWEST_LOG_PROB = -1e30  # stands for log 0: its exponential is 0, and 0 times it is 0, as x log x is at 0
INFINITE = 1e20  # a loss above it holds the log-probability of a token that one model excludes and the other does not
MAX_LOG_RATIO = 80.0  # expm1 of it is finite in fp32; mixtures lose only terms of size exp(-80) by the bound
MAX_EXPONENT = 35.0  # a product of two such powers, summed over a vocabulary, is finite in fp32


def logit_gradient(gradient_NV: Tensor, q_NV: Tensor, out: Tensor | None = None) -> Tensor:
    """Through the log-softmax: a gradient with respect to `log q` becomes one with respect to logits, `G - q sum_v G`.

    Over `sum_v q`, which is 1 to 2e-5 at 150,000 tokens in fp32: the gradient of one row then sums to 0.
    """
    share_N1 = gradient_NV.sum(-1, keepdim=True).div_(q_NV.sum(-1, keepdim=True))
    return torch.addcmul(gradient_NV, q_NV, share_N1, value=-1, out=out)


def floored(log_probs_NV: Tensor) -> Tensor:
    """Log-probabilities with a finite number for log 0, so that a token that both models exclude counts nothing."""
    return log_probs_NV.clamp(min=LOWEST_LOG_PROB)


def honest(losses_N: Tensor) -> Tensor:
    """Losses with infinity where they are infinite: a token of one model (of probability above 1e-10) that the other excludes."""
    return losses_N.masked_fill(losses_N > INFINITE, math.inf)


def cross_entropy(log_q_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of the label, `-log q[label]`; its `G` is `-onehot(label)`."""
    return honest(-floored(log_q_NV.gather(-1, labels_N.unsqueeze(-1))).squeeze(-1))


def forward_kl(log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
    """KL(p‖q) = `sum_v p (log p - log q)`: mass-covering; the teacher's entropy is included."""
    log_q_NV, log_p_NV = floored(log_q_NV), floored(log_p_NV)
    return honest((log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1))


def forward_kl_with_gradient(log_q_NV: Tensor, log_p_NV: Tensor, q_NV: Tensor, p_NV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p‖q) and `G = q - p`."""
    return (log_p_NV - log_q_NV).mul_(p_NV).sum(-1), q_NV - p_NV


def reverse_kl(log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
    """KL(q‖p) = `sum_v q (log q - log p)`: mode-seeking; the divergence of MiniLLM and GAKD."""
    log_q_NV, log_p_NV = floored(log_q_NV), floored(log_p_NV)
    return honest((log_q_NV.exp() * (log_q_NV - log_p_NV)).sum(-1))


def reverse_kl_with_gradient(log_q_NV: Tensor, log_p_NV: Tensor, q_NV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q‖p) and `G = q (log q - log p)`, whose sum is the loss."""
    gradient_NV = (log_q_NV - log_p_NV).mul_(q_NV)
    return gradient_NV.sum(-1), gradient_NV


def log_ratios_to_mixture(log_q_NV: Tensor, log_p_NV: Tensor, beta: float | Tensor) -> tuple[Tensor, Tensor]:
    """`log q - log m` and `log p - log m` for `m = beta p + (1 - beta) q`, with 0 < beta < 1; differentiable.

    With `d = log p - log q`, `log m = log q + log1p(beta expm1(d))`: both are exactly 0 where p = q, and neither overflows.
    """
    log_ratio_NV = (log_p_NV - log_q_NV).clamp(max=MAX_LOG_RATIO)
    log_m_over_q_NV = torch.log1p(beta * torch.expm1(log_ratio_NV))
    return -log_m_over_q_NV, log_ratio_NV - log_m_over_q_NV


def _excess(over_NV: Tensor, under_NV: Tensor, share: float | Tensor) -> Tensor:
    """`m / under - 1 = share (over - under) / under`, m the mixture of share `over`; a fresh tensor, to be written to.

    From the probabilities, which are there already: `expm1` of their log-ratio costs more than all else together. Finite
    where `under` has underflowed to 0: at most 1 over the smallest normal number.
    """
    return (over_NV - under_NV).div_(under_NV + torch.finfo(under_NV.dtype).tiny).mul_(share)


def jensen_shannon(log_q_NV: Tensor, log_p_NV: Tensor, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence, `beta KL(p‖m) + (1 - beta) KL(q‖m)` with `m = beta p + (1 - beta) q`.

    GKD's convention (arXiv 2306.13649): 0 is forward KL and 1 reverse KL, by definition, since the expression
    itself vanishes there; `beta` and the losses are unscaled.
    """
    if beta == 0:
        return forward_kl(log_q_NV, log_p_NV)
    if beta == 1:
        return reverse_kl(log_q_NV, log_p_NV)
    log_q_NV, log_p_NV = floored(log_q_NV), floored(log_p_NV)
    log_q_over_m_NV, log_p_over_m_NV = log_ratios_to_mixture(log_q_NV, log_p_NV, beta)
    return (beta * log_p_NV.exp() * log_p_over_m_NV + (1 - beta) * log_q_NV.exp() * log_q_over_m_NV).sum(-1)


def jensen_shannon_with_gradient(q_NV: Tensor, p_NV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Generalised JSD at 0 < beta < 1 and `G = (1 - beta) q (log q - log m)`.

    The derivatives of `m` in its two summands cancel to a constant.
    """
    teacher_kl_N = _excess(q_NV, p_NV, 1 - beta).log1p_().mul_(p_NV).sum(-1)  # times -1
    gradient_NV = _excess(p_NV, q_NV, beta).log1p_().mul_(q_NV).mul_(beta - 1)
    return gradient_NV.sum(-1) - beta * teacher_kl_N, gradient_NV


def skew_forward_kl(log_q_NV: Tensor, log_p_NV: Tensor, alpha: float | Tensor = 0.1) -> Tensor:
    """KL(p‖m) with `m = alpha p + (1 - alpha) q`, 0 <= alpha < 1 (DistiLLM, arXiv 2402.03898).

    Here and below, an alpha for each row is a tensor `[N, 1]`, above 0.
    """
    if not isinstance(alpha, Tensor) and alpha == 0:
        return forward_kl(log_q_NV, log_p_NV)
    log_q_NV, log_p_NV = floored(log_q_NV), floored(log_p_NV)
    return (log_p_NV.exp() * log_ratios_to_mixture(log_q_NV, log_p_NV, alpha)[1]).sum(-1)


def skew_forward_kl_with_gradient(q_NV: Tensor, p_NV: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """Skew forward KL at alpha above 0 and `G = -(1 - alpha) q (p / m - 1)`; `1 - p / m = e / (1 + e)` with `e = m / p - 1`."""
    excess_NV = _excess(q_NV, p_NV, 1 - alpha)
    losses_N = torch.log1p(excess_NV).mul_(p_NV).sum(-1).neg_()
    gradient_NV = excess_NV.div_(excess_NV + 1).mul_(q_NV)
    return losses_N, gradient_NV.mul_(1 - alpha)


def skew_reverse_kl(log_q_NV: Tensor, log_p_NV: Tensor, alpha: float | Tensor = 0.1) -> Tensor:
    """KL(q‖m) with `m = (1 - alpha) p + alpha q`, 0 <= alpha < 1 (DistiLLM, arXiv 2402.03898)."""
    if not isinstance(alpha, Tensor) and alpha == 0:
        return reverse_kl(log_q_NV, log_p_NV)
    log_q_NV, log_p_NV = floored(log_q_NV), floored(log_p_NV)
    return (log_q_NV.exp() * log_ratios_to_mixture(log_q_NV, log_p_NV, 1 - alpha)[0]).sum(-1)


def skew_reverse_kl_with_gradient(
    q_NV: Tensor, p_NV: Tensor, alpha: float | Tensor, detach_mixture: bool = False
) -> tuple[Tensor, Tensor]:
    """Skew reverse KL at alpha above 0 and `G = q (log q - log m - alpha (q / m - 1))`.

    Its last part is the mixture's, left out on request.
    """
    excess_NV = _excess(p_NV, q_NV, 1 - alpha)
    gradient_NV = torch.log1p(excess_NV).mul_(q_NV).neg_()
    losses_N = gradient_NV.sum(-1)
    if not detach_mixture:
        excess_NV.div_(excess_NV + 1)
        if isinstance(alpha, Tensor):
            gradient_NV.addcmul_(q_NV, excess_NV.mul_(alpha))
        else:
            gradient_NV.addcmul_(q_NV, excess_NV, value=alpha)
    return losses_N, gradient_NV


def _power(log_prob_NV: Tensor, exponent: float) -> Tensor:
    """`prob^exponent`, cut at exp(35), which only negative exponents reach."""
    exponent_NV = exponent * log_prob_NV
    return (exponent_NV.clamp(max=MAX_EXPONENT) if exponent < 0 else exponent_NV).exp_()


def _powers(log_q_NV: Tensor, log_p_NV: Tensor, exponent: float) -> tuple[Tensor | float, Tensor | float, Tensor]:
    """`q^e`, `p^e` and `L_e = (p^e - q^e) / e`, whose limit at e = 0 is `log p - log q`."""
    if exponent == 0:
        return 1.0, 1.0, log_p_NV - log_q_NV
    return _with_difference(_power(log_q_NV, exponent), _power(log_p_NV, exponent), exponent)


def _with_difference(q_power_NV: Tensor, p_power_NV: Tensor, exponent: float) -> tuple[Tensor, Tensor, Tensor]:
    return q_power_NV, p_power_NV, (p_power_NV - q_power_NV).div_(exponent)


def alpha_beta(log_q_NV: Tensor, log_p_NV: Tensor, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """Alpha-beta divergence (ABKD, arXiv 2505.04560), continuous in both numbers; (1, 0) forward, (0, 1) reverse KL.

    `-1/(ab) sum_v [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)]`, computed as `sum_v [p^a L_b - q^b L_a] / (a+b)` with
    `L_e = (p^e - q^e) / e`, which is exactly 0 where p = q and contains the limits `L_0 = log p - log q`; at a + b = 0,
    `sum_v [(p/q)^a - 1 - a log(p/q)] / a^2`. Powers are cut at exp(35), ratios at exp(70): negative exponents stay finite.
    """
    log_q_NV, log_p_NV = floored(log_q_NV), floored(log_p_NV)
    total = alpha + beta
    if total != 0:
        _, p_alpha_NV, difference_alpha_NV = _powers(log_q_NV, log_p_NV, alpha)
        q_beta_NV, _, difference_beta_NV = _powers(log_q_NV, log_p_NV, beta)
        return honest((p_alpha_NV * difference_beta_NV - q_beta_NV * difference_alpha_NV).sum(-1) / total)
    log_ratio_NV = log_p_NV - log_q_NV
    if alpha == 0:
        return honest(log_ratio_NV.square().sum(-1) / 2)
    exponent_NV = (alpha * log_ratio_NV).clamp(max=2 * MAX_EXPONENT)
    return (torch.expm1(exponent_NV) - exponent_NV).sum(-1) / alpha**2


def alpha_beta_with_gradient(
    log_q: Callable[[], Tensor], log_p: Callable[[], Tensor], q_NV: Tensor, p_NV: Tensor, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Alpha-beta divergence and `G = -q^b L_a = q^b (q^a - p^a) / a`; at a + b = 0, `G = (1 - (p/q)^a) / a`.

    Log-probabilities as functions, since exponents 1 and 1/2 do without.
    """

    def powers(exponent: float) -> tuple[Tensor | float, Tensor | float, Tensor]:
        if exponent == 1:
            return _with_difference(q_NV, p_NV, exponent)
        if exponent == 0.5:  # a root is half as much work as an exponential
            return _with_difference(q_NV.sqrt(), p_NV.sqrt(), exponent)
        return _powers(log_q(), log_p(), exponent)

    total = alpha + beta
    if total != 0:
        of_alpha = powers(alpha)
        of_beta = of_alpha if alpha == beta else powers(beta)
        gradient_NV = (of_alpha[2] * of_beta[0]).neg_()
        return of_beta[2].mul_(of_alpha[1]).add_(gradient_NV).sum(-1) / total, gradient_NV
    log_ratio_NV = log_p() - log_q()
    if alpha == 0:
        return log_ratio_NV.square().sum(-1) / 2, log_ratio_NV.neg_()
    exponent_NV = log_ratio_NV.mul_(alpha).clamp_(max=2 * MAX_EXPONENT)
    power_NV = torch.expm1(exponent_NV)
    return (power_NV - exponent_NV).sum(-1) / alpha**2, power_NV.div_(-alpha)


def total_variation(log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
    """`1/2 sum_v |p - q|`, at most 1."""
    return (log_q_NV.exp() - log_p_NV.exp()).abs().sum(-1) / 2


def total_variation_with_gradient(q_NV: Tensor, p_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation and `G = q sign(q - p) / 2`, with sign(0) = 0."""
    difference_NV = q_NV - p_NV
    losses_N = difference_NV.abs().sum(-1) / 2
    return losses_N, difference_NV.sign_().mul_(q_NV).mul_(0.5)


def universal_logit(log_q_NV: Tensor, log_p_NU: Tensor) -> Tensor:
    """`sum_i |q_(i) - p_(i)|`, at most 2: both sorted downwards, the shorter padded with zeros; V and U may differ.

    The Wasserstein distance of ULD (Boizard et al., arXiv 2402.12030, equations 4 and 5), where moving probability costs
    the same between any two tokens. Blind to which token is meant: 0 where p is q in any other order of its vocabulary.
    """
    sorted_NV, sorted_NU = (log_NV.exp().sort(dim=-1, descending=True).values for log_NV in (log_q_NV, log_p_NU))
    return _sorted_difference(sorted_NV, sorted_NU).abs().sum(-1)


def universal_logit_with_gradient(q_NV: Tensor, p_NU: Tensor) -> tuple[Tensor, Tensor]:
    """ULD and `G = q sign(q - p)` with p at the token's own rank, sign(0) = 0. Rounding turns the sign of differences near 0."""
    sorted_NV, order_NV = q_NV.sort(dim=-1, descending=True)
    difference = _sorted_difference(sorted_NV, p_NU.to(q_NV.dtype).sort(dim=-1, descending=True).values)
    signed_NV = difference[..., : q_NV.shape[-1]].sign().mul_(sorted_NV)
    return difference.abs_().sum(-1), torch.empty_like(q_NV).scatter_(-1, order_NV, signed_NV)


def _sorted_difference(sorted_NV: Tensor, sorted_NU: Tensor) -> Tensor:
    """`[N, max(V, U)]`, a fresh tensor."""
    missing = sorted_NU.shape[-1] - sorted_NV.shape[-1]
    return pad(sorted_NV, (0, max(missing, 0))) - pad(sorted_NU, (0, max(-missing, 0)))
