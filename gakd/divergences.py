"""Token terms: what a student is asked to match at each supervised position. The maths is in `functional.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from gakd import functional
from gakd.objective import Term
from gakd.types import TokenChunk


class Divergence(Term):
    """A token term that compares two next-token distributions; subclass it and write `losses`.

    `losses` alone is enough: the engine differentiates it by autograd, one chunk of rows at a time. A closed form, where
    there is one, goes into `losses_and_gradient` and saves memory and time.
    """

    needs_teacher = True

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        """Loss of each row `[N]`, in nats, from fp32 log-probabilities `[N, V]`."""
        raise NotImplementedError(
            f"{type(self).__name__} must define losses(student_log_probs_NV, teacher_log_probs_NV) -> [N]"
        )

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        return self.losses(chunk.student_log_probs_NV, chunk.teacher_log_probs_NV)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            log_probs_NV = chunk.student_log_probs_NV.detach().requires_grad_()
            losses_N = self.losses(log_probs_NV, chunk.teacher_log_probs_NV)
            if losses_N.shape != chunk.labels_N.shape:
                raise ValueError(
                    f"{self.name}.losses must return one loss a row, {tuple(chunk.labels_N.shape)}, "
                    f"got {tuple(losses_N.shape)}: sum over the vocabulary only"
                )
            (gradient_NV,) = torch.autograd.grad(losses_N.sum(), log_probs_NV)
        return losses_N.detach(), functional.logit_gradient(gradient_NV, chunk.student_probs_NV)


class CrossEntropy(Term):
    """`-log q[label]`: supervised fine-tuning, on the dataset's or on the teacher's text."""

    name = "cross_entropy"
    needs_teacher = False

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        return functional.cross_entropy(chunk.student_log_probs_NV, chunk.labels_N)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return functional.cross_entropy_with_gradient(
            chunk.student_log_probs_NV, chunk.student_probs_NV, chunk.labels_N
        )


class ForwardKL(Divergence):
    """KL(teacher‖student), the classical distillation loss (Hinton et al., arXiv 1503.02531), temperature 1."""

    name = "forward_kl"

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.forward_kl(student_log_probs_NV, teacher_log_probs_NV)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return functional.forward_kl_with_gradient(
            chunk.student_log_probs_NV, chunk.teacher_log_probs_NV, chunk.student_probs_NV, chunk.teacher_probs_NV
        )


class ReverseKL(Divergence):
    """KL(student‖teacher) (MiniLLM, arXiv 2306.08543; the token term of GAKD), over the whole vocabulary."""

    name = "reverse_kl"

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.reverse_kl(student_log_probs_NV, teacher_log_probs_NV)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return functional.reverse_kl_with_gradient(
            chunk.student_log_probs_NV, chunk.teacher_log_probs_NV, chunk.student_probs_NV
        )


class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence in GKD's convention (arXiv 2306.13649): beta 0 forward KL, 1 reverse KL.

    Other codebases write `1 - beta` where this writes `beta`; `functional.jensen_shannon` states the formula.
    """

    name = "jensen_shannon"

    def __init__(self, beta: float = 0.5) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta weighs the teacher in the mixture and lies in [0, 1], got {beta}")
        self.beta = beta

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return functional.jensen_shannon(student_log_probs_NV, teacher_log_probs_NV, self.beta)

    def losses_and_gradient(self, chunk: TokenChunk) -> tuple[Tensor, Tensor]:
        return functional.jensen_shannon_with_gradient(
            chunk.student_log_probs_NV,
            chunk.teacher_log_probs_NV,
            chunk.student_probs_NV,
            chunk.teacher_probs_NV,
            self.beta,
        )
