"""Token terms of sampled text: what a policy gradient asks of the tokens that were drawn, and no others.

They read row values (`Batch.with_row_values`): what was known of each sampled token when it was drawn, made by
`samplers/rollouts.py`. Only the label's log-probability has a gradient, so nothing of size V is kept beyond the fused pass's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gakd.losses.formula import RowFormula
from gakd.losses.term import TokenChunk
from gakd.losses.token_loss import Temperature, TokenLoss


class SampledTokenLoss(TokenLoss):
    """A token term of the label's log-probability alone; write `of_labels`, and autograd or a closed form follows from it.

    Beside one, `Distiller` switches off the student's dropout: old and new log-probabilities are of one mode.
    """

    needs_teacher = False

    def __init__(self, temperature: Temperature = 1.0, name: str | None = None) -> None:
        super().__init__(temperature, temperature_squared=False, name=name)

    def of_labels(self, chunk: TokenChunk, log_probs_N: Tensor) -> Tensor:
        """Losses `[N]`, differentiable, from the student's log-probabilities of the labels."""
        raise NotImplementedError(f"{type(self).__name__} must define of_labels(chunk, log_probs_N) -> [N]")

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        return self.of_labels(chunk, chunk.student_log_probs_of_labels())

    def accumulate_(
        self, chunk: TokenChunk, coefficient: float | Tensor, total_NV: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            log_probs_N = chunk.student_log_probs_of_labels().detach().requires_grad_()
            losses_N = self.of_labels(chunk, log_probs_N)
            (gradient_N,) = torch.autograd.grad(losses_N.sum(), log_probs_N)
        if total_NV is None:
            total_NV = torch.zeros_like(chunk.student_probs_NV)
        scaled_N1 = (gradient_N * coefficient).to(total_NV.dtype).unsqueeze(-1)
        return losses_N.detach(), total_NV.scatter_add_(-1, chunk.labels_N.unsqueeze(-1), scaled_N1)


class PolicyGradient(SampledTokenLoss):
    """PPO's clipped surrogate: `w max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip))`, `ratio = q(y) / q_old(y)`.

    Row values: `advantages` A, `old_log_probs` log q_old(y), both without gradient, and `importance_weights` w of text that
    was drawn from another distribution than q_old (1 where there are none). At `ratio = 1` the gradient is that of
    `-w A log q(y)`; with `clip=None` it stays unclipped at any ratio. w stands outside the clip, where a single token's
    surrogate stays unbiased; MiniLLM's release clips `w * ratio`, and so cuts tokens that the student never moved.
    `temperature` is that at which the text was drawn: q, q_old and the teacher of the reward are all at it.
    Raises ValueError for a clip outside (0, 1). PPO, arXiv 1707.06347, equation 7; MiniLLM, arXiv 2306.08543, section 2.2.
    """

    name = "policy_gradient"

    def __init__(self, clip: float | None = 0.2, temperature: Temperature = 1.0, name: str | None = None) -> None:
        super().__init__(temperature, name)
        if clip is not None and not 0 < clip < 1:
            raise ValueError(f"ratios are clipped to [1 - clip, 1 + clip], clip in (0, 1) or None, got {clip}")
        self.clip = clip

    def of_labels(self, chunk: TokenChunk, log_probs_N: Tensor) -> Tensor:
        advantages_N = chunk.row_value("advantages")
        ratio_N = (log_probs_N - chunk.row_value("old_log_probs")).exp()
        losses_N = -advantages_N * ratio_N
        if self.clip is not None:
            losses_N = torch.maximum(losses_N, -advantages_N * ratio_N.clamp(1 - self.clip, 1 + self.clip))
        return losses_N * chunk.row_value("importance_weights", 1.0)

    def row_formula(self) -> RowFormula:
        return RowFormula("sampled")


class KLToReference(SampledTokenLoss):
    """Stays near a reference model, at the sampled tokens: k3, `exp(d) - 1 - d`, `d = log ref(y) - log q(y)`.

    Never negative, and in expectation over y ~ q the KL(student‖reference) at that position; its gradient is
    `(1 - exp(d)) grad log q(y)`, whose expectation is that of KL(reference‖student): the two agree where q = ref, to first
    order. As GRPO adds it to its loss (arXiv 2402.03300, equation 4; k3: joschu.net/blog/kl-approx.html), and verl's low_var_kl
    without that one's clamp. Row value: `reference_log_probs`.
    """

    name = "kl_to_reference"

    def of_labels(self, chunk: TokenChunk, log_probs_N: Tensor) -> Tensor:
        difference_N = chunk.row_value("reference_log_probs") - log_probs_N
        return difference_N.exp() - 1 - difference_N

    def row_formula(self) -> RowFormula:
        return RowFormula("sampled")
