"""Token terms: what a student is asked to match at each supervised position. The maths is in `functional.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gakd.losses import adaptive, functional
from gakd.losses.formula import RowFormula
from gakd.losses.term import TokenChunk
from gakd.losses.token_loss import Divergence, Temperature, TokenLoss, is_number


class CrossEntropy(TokenLoss):
    """`-log q[label]`: supervised fine-tuning, on the dataset's or on the teacher's text."""

    name = "cross_entropy"
    needs_teacher = False

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        return functional.honest(-functional.floored(chunk.student_log_probs_of_labels()))

    def accumulate_(
        self, chunk: TokenChunk, coefficient: float | Tensor, total_NV: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if total_NV is None:
            total_NV = torch.zeros_like(chunk.student_probs_NV)
        labels_N1 = chunk.labels_N.unsqueeze(-1)
        minus_N1 = torch.zeros_like(labels_N1, dtype=total_NV.dtype) - coefficient
        return self.chunk_losses(chunk), total_NV.scatter_add_(-1, labels_N1, minus_N1)

    def row_formula(self) -> RowFormula:
        return RowFormula("cross_entropy")


def _arrays(chunk: TokenChunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`log q, log p, q, p`, in the order of `functional`."""
    return chunk.student_log_probs_NV, chunk.teacher_log_probs_NV, chunk.student_probs_NV, chunk.teacher_probs_NV


def _forward_kl(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
    return functional.forward_kl_with_gradient(*_arrays(chunk))


def _reverse_kl(chunk: TokenChunk) -> tuple[Tensor, Tensor]:
    return functional.reverse_kl_with_gradient(
        chunk.student_log_probs_NV, chunk.teacher_log_probs_NV, chunk.student_probs_NV
    )


class ForwardKL(Divergence):
    """KL(teacher‖student), the classical distillation loss (Hinton et al., arXiv 1503.02531)."""

    name = "forward_kl"

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.forward_kl(student_log_probs_NV, teacher_log_probs_NV)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return _forward_kl(chunk)

    def row_formula(self) -> RowFormula:
        return RowFormula("forward_kl")


class ReverseKL(Divergence):
    """KL(student‖teacher) (MiniLLM, arXiv 2306.08543; the token term of GAKD), over the whole vocabulary."""

    name = "reverse_kl"

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.reverse_kl(student_log_probs_NV, teacher_log_probs_NV)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return _reverse_kl(chunk)

    def row_formula(self) -> RowFormula:
        return RowFormula("reverse_kl")


class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence in GKD's convention (arXiv 2306.13649): beta 0 forward KL, 1 reverse KL.

    TRL and ms-swift write the same `beta`, KDFlow `jsd_beta = 1 - beta`, DistiLLM `lam = 1 - beta`; DistiLLM-2 fixes it at 0.9.
    `functional.jensen_shannon` states the formula.
    """

    name = "jensen_shannon"

    def __init__(
        self,
        beta: float = 0.5,
        temperature: Temperature = 1.0,
        temperature_squared: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(temperature, temperature_squared, name)
        if not (is_number(beta) and 0 <= beta <= 1):
            raise ValueError(f"beta weighs the teacher in the mixture and lies in [0, 1], got {beta}")
        self.beta = beta

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.jensen_shannon(student_log_probs_NV, teacher_log_probs_NV, self.beta)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        if self.beta in (0, 1):
            return _reverse_kl(chunk) if self.beta else _forward_kl(chunk)
        return functional.jensen_shannon_with_gradient(chunk.student_probs_NV, chunk.teacher_probs_NV, self.beta)

    def row_formula(self) -> RowFormula:
        if self.beta in (0, 1):
            return RowFormula("forward_kl" if self.beta == 0 else "reverse_kl")
        return RowFormula("jensen_shannon", self.beta)


class SkewForwardKL(Divergence):
    """KL(teacher‖alpha teacher + (1 - alpha) student) (DistiLLM, arXiv 2402.03898); alpha 0 is forward KL.

    DistiLLM writes `lam` for alpha and leaves out the teacher's entropy: same gradient, a loss that is not 0 at its minimum.
    A batch with the row value `skew_alpha` has an alpha of its own for each row, in (0, 1).
    """

    name = "skew_forward_kl"

    def __init__(
        self,
        alpha: float = 0.1,
        temperature: Temperature = 1.0,
        temperature_squared: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(temperature, temperature_squared, name)
        self.alpha = _skew(alpha)

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.skew_forward_kl(student_log_probs_NV, teacher_log_probs_NV, self.alpha)

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        return functional.skew_forward_kl(
            chunk.student_log_probs_NV, chunk.teacher_log_probs_NV, _skew_of(chunk, self.alpha)
        )

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        alpha = _skew_of(chunk, self.alpha)
        if not isinstance(alpha, Tensor) and alpha == 0:
            return _forward_kl(chunk)
        return functional.skew_forward_kl_with_gradient(chunk.student_probs_NV, chunk.teacher_probs_NV, alpha)

    def row_formula(self) -> RowFormula:
        return RowFormula("skew_forward_kl", self.alpha, row_value="skew_alpha")


class SkewReverseKL(Divergence):
    """KL(student‖(1 - alpha) teacher + alpha student) (DistiLLM, arXiv 2402.03898); alpha 0 is reverse KL.

    The gradient flows through the mixture as in DistiLLM; DistiLLM-2 (arXiv 2503.07067) stops it there: `detach_mixture`.
    `skew_alpha` as at `SkewForwardKL`.
    """

    name = "skew_reverse_kl"

    def __init__(
        self,
        alpha: float = 0.1,
        detach_mixture: bool = False,
        temperature: Temperature = 1.0,
        temperature_squared: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(temperature, temperature_squared, name)
        self.alpha = _skew(alpha)
        self.detach_mixture = detach_mixture

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.skew_reverse_kl(student_log_probs_NV, teacher_log_probs_NV, self.alpha)

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        return functional.skew_reverse_kl(
            chunk.student_log_probs_NV, chunk.teacher_log_probs_NV, _skew_of(chunk, self.alpha)
        )

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        alpha = _skew_of(chunk, self.alpha)
        if not isinstance(alpha, Tensor) and alpha == 0:
            return _reverse_kl(chunk)
        return functional.skew_reverse_kl_with_gradient(
            chunk.student_probs_NV, chunk.teacher_probs_NV, alpha, self.detach_mixture
        )

    def row_formula(self) -> RowFormula:
        kind = "skew_reverse_kl_detached" if self.detach_mixture else "skew_reverse_kl"
        return RowFormula(kind, self.alpha, row_value="skew_alpha")


def _skew_of(chunk: TokenChunk, alpha: float) -> float | Tensor:
    """The rows' own alpha, `[N, 1]`, where the batch has one."""
    own = chunk.row_value("skew_alpha", alpha)
    return own.unsqueeze(-1) if isinstance(own, Tensor) else own


def _skew(alpha: float) -> float:
    if not (is_number(alpha) and 0 <= alpha < 1):
        raise ValueError(
            f"alpha is the share of a distribution in its own mixture and lies in [0, 1), got {alpha}: at 1 the loss is 0"
        )
    return alpha


class AdaptiveKL(Divergence):
    """Forward and reverse KL, weighed by where the models differ (AKL, arXiv 2404.02657); mu 1 is forward KL.

    `g_h / (g_h + g_t) KL(teacher‖student) + g_t / (g_h + g_t) KL(student‖teacher)`, g = `sum |p - q|`, without gradient,
    over the teacher's head (its most probable tokens, summing to at most `mu`, at least one) and over the rest. Tokens of
    equal probability are together in one of them, where the authors' code cuts as its sort left them.
    """

    name = "adaptive_kl"

    def __init__(
        self, mu: float = 0.5, temperature: Temperature = 1.0, temperature_squared: bool = True, name: str | None = None
    ) -> None:
        super().__init__(temperature, temperature_squared, name)
        if not (is_number(mu) and 0 <= mu <= 1):
            raise ValueError(f"mu is the teacher's probability in the head and lies in [0, 1], got {mu}")
        self.mu = mu

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return adaptive.adaptive_kl(student_log_probs_NV, teacher_log_probs_NV, self.mu)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return adaptive.adaptive_kl_with_gradient(*_arrays(chunk), self.mu)


class AlphaBeta(Divergence):
    """Alpha-beta divergence (ABKD, arXiv 2505.04560): (1, 0) is forward KL, (0, 1) reverse KL, (0.5, 0.5) 4 times Hellinger^2.

    Continuous in both; ABKD's code has 1/alpha, 1/beta for 1/alpha^2, 1/beta^2 where one of them or their sum is 0 (alike
    at 1). `functional.alpha_beta` states the formula. Both are meant to be at least 0, or to sum to 0.
    """

    name = "alpha_beta"

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        temperature: Temperature = 1.0,
        temperature_squared: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(temperature, temperature_squared, name)
        if not all(is_number(one) and math.isfinite(one) for one in (alpha, beta)):
            raise ValueError(f"alpha and beta are exponents and finite, got {alpha} and {beta}")
        self.alpha = alpha
        self.beta = beta

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.alpha_beta(student_log_probs_NV, teacher_log_probs_NV, self.alpha, self.beta)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return functional.alpha_beta_with_gradient(
            lambda: chunk.student_log_probs_NV, lambda: chunk.teacher_log_probs_NV, chunk.student_probs_NV,
            chunk.teacher_probs_NV, self.alpha, self.beta,
        )  # fmt: skip

    def row_formula(self) -> RowFormula:
        kind = "alpha_beta" if self.alpha + self.beta != 0 else "alpha_beta_of_sum_zero"
        return RowFormula(kind, self.alpha, self.beta)


class TotalVariation(Divergence):
    """`1/2 sum |p - q|` (f-distill, arXiv 2307.15190): bounded, and blind to how small a probability is."""

    name = "total_variation"

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.total_variation(student_log_probs_NV, teacher_log_probs_NV)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return functional.total_variation_with_gradient(chunk.student_probs_NV, chunk.teacher_probs_NV)

    def row_formula(self) -> RowFormula:
        return RowFormula("total_variation")


class UniversalLogit(Divergence):
    """Distance of sorted probabilities, for a teacher of any vocabulary (ULD, arXiv 2402.12030; its weight there is 1.5).

    `functional.universal_logit` states the formula. Like every token term it is divided by all supervised tokens of the
    step: a position that the teacher says nothing about (`TeacherOutput.rows`) counts as 0.
    """

    name = "universal_logit"
    needs_shared_vocabulary = False

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.universal_logit(student_log_probs_NV, teacher_log_probs_NV)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return functional.universal_logit_with_gradient(chunk.student_probs_NV, chunk.teacher_probs_NV)
