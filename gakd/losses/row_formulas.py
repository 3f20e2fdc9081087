"""The closed forms of `functional.py` for the Triton kernel: of each token, what it adds to the loss, and its `G`.

`G` is the derivative with respect to `log q` up to a multiple of q, as in `functional.py`, exactly 0 where q = p.
Log-probabilities are floored. What a token contributes is 0 where both models exclude it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gakd.losses import functional

LOWEST_LOG_PROB = tl.constexpr(functional.LOWEST_LOG_PROB)
INFINITE = tl.constexpr(functional.INFINITE)
MAX_EXPONENT = tl.constexpr(functional.MAX_EXPONENT)
TINY = tl.constexpr(1.1754943508222875e-38)  # of fp32, for a probability that has underflowed to 0


@triton.jit
def log1p(x):
    """To an ulp or two where `log(1 + x)` has lost x: the rounding of `1 + x` cancels in `log(u) / (u - 1)`."""
    u = 1.0 + x
    rounded = u == 1.0
    return tl.where(rounded, x, tl.log(u) * (x / tl.where(rounded, 1.0, u - 1.0)))


@triton.jit
def expm1(x):
    u = tl.exp(x)
    rounded, below = u == 1.0, u - 1.0 == -1.0
    ratio = x / tl.where(rounded | below, 1.0, tl.log(u))
    return tl.where(rounded, x, tl.where(below, -1.0, (u - 1.0) * ratio))


@triton.jit
def excess_over(over, under, share):
    """`m / under - 1 = share (over - under) / under`, m the mixture of share `over`."""
    return (over - under) / (under + TINY) * share


@triton.jit
def power(log_prob, exponent):
    return tl.exp(tl.minimum(exponent * log_prob, MAX_EXPONENT))


@triton.jit
def power_difference(log_q, log_p, exponent):
    """`L_e = (p^e - q^e) / e`, whose limit at e = 0 is `log p - log q`."""
    divisor = tl.where(exponent == 0, 1.0, exponent)
    difference = (power(log_p, exponent) - power(log_q, exponent)) / divisor
    return tl.where(exponent == 0, log_p - log_q, difference)


@triton.jit
def loss_and_gradient(KIND: tl.constexpr, log_q, log_p, q, p, a, b):
    """Of each token, before any sum. `a` and `b` are the numbers of `RowFormula`: beta, alpha, or both exponents."""
    if KIND == "forward_kl":
        return p * (log_p - log_q), q - p
    elif KIND == "reverse_kl":
        gradient = q * (log_q - log_p)
        return gradient, gradient
    elif KIND == "jensen_shannon":
        gradient = (a - 1.0) * (q * log1p(excess_over(p, q, a)))
        return gradient - a * (p * log1p(excess_over(q, p, 1.0 - a))), gradient
    elif KIND == "skew_forward_kl":
        excess = excess_over(q, p, 1.0 - a)
        return -p * log1p(excess), (1.0 - a) * (q * (excess / (excess + 1.0)))
    elif KIND == "skew_reverse_kl" or KIND == "skew_reverse_kl_detached":
        excess = excess_over(p, q, 1.0 - a)
        loss = -q * log1p(excess)
        if KIND == "skew_reverse_kl_detached":
            return loss, loss
        else:
            return loss, loss + a * (q * (excess / (excess + 1.0)))
    elif KIND == "total_variation":
        difference = q - p
        sign = tl.where(difference > 0, 0.5, tl.where(difference < 0, -0.5, 0.0))
        return tl.abs(difference) * 0.5, sign * q
    elif KIND == "alpha_beta":
        of_alpha, of_beta = power_difference(log_q, log_p, a), power_difference(log_q, log_p, b)
        gradient = -of_alpha * power(log_q, b)
        return (power(log_p, a) * of_beta + gradient) / (a + b), gradient
    else:
        tl.static_assert(KIND == "alpha_beta_of_sum_zero")
        log_ratio = log_p - log_q
        exponent = tl.minimum(a * log_ratio, 2.0 * MAX_EXPONENT)
        excess, divisor = expm1(exponent), tl.where(a == 0, 1.0, a)
        loss = tl.where(a == 0, log_ratio * log_ratio * 0.5, (excess - exponent) / (divisor * divisor))
        return loss, tl.where(a == 0, -log_ratio, -excess / divisor)
