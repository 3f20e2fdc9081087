"""The peers, called as their own recipes and trainers call them: hidden states and heads in, one loss to go backward from.

- torchtune (knowledge_distillation_single_device): logits of all rows, or 8 chunks of them; only the upcast is chunked.
- TRL: `GKDTrainer.generalized_jsd_loss` on all logits, as its GKD trainer does; and "chunked", its DistillationTrainer's
  `ChunkedDivergenceFunction`, which recomputes the logits in the backward. That trainer has no cross entropy, so the
  chunked log-probabilities of its SFT trainer stand beside it.
- Liger: `LigerFusedLinearJSDLoss`, chunks of 128 rows, eager and compiled. beta 0 and 1 are the two KLs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

if TYPE_CHECKING:
    from tests.benchmarks.token_cases import Inputs

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jensen_shannon": 0.5}
LIGER_CHUNK_ROWS = 128
COMPILE_WARM_UPS = 3  # compiled for the first shape, then again for dynamic ones, then once as it will run

Step = Callable[[], Tensor]


def step(implementation: str, inputs: Inputs) -> tuple[Step, int]:
    """One forward of a peer, and how many iterations it wants before it is measured."""
    builders: dict[str, Callable[[Inputs], Step]] = {
        "torchtune": torchtune_plain,
        "torchtune chunked": torchtune_chunked,
        "TRL": trl_plain,
        "TRL chunked": trl_chunked,
        "Liger": lambda inputs: liger(inputs, compiled=False),
        "Liger compiled": lambda inputs: liger(inputs, compiled=True),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return builders[implementation](inputs), COMPILE_WARM_UPS if implementation == "Liger compiled" else 1


def _student_logits(inputs: Inputs) -> Tensor:
    return linear(inputs.hidden_NH, inputs.weight_VH)


@torch.no_grad()
def _teacher_logits(inputs: Inputs) -> Tensor:
    return linear(inputs.teacher_hidden_NH, inputs.teacher_weight_VH)


def torchtune_plain(inputs: Inputs) -> Step:
    from torchtune.modules.loss import ForwardKLLoss, ReverseKLLoss, SymmetricKLLoss

    loss = {"forward_kl": ForwardKLLoss, "reverse_kl": ReverseKLLoss, "symmetric_kl": SymmetricKLLoss}
    divergence = loss[inputs.divergence]()

    def run() -> Tensor:
        student = _student_logits(inputs)
        return inputs.weighted(
            lambda: cross_entropy(student.float(), inputs.labels_N),
            lambda: divergence(student, _teacher_logits(inputs), inputs.labels_N),
        )

    return run


def torchtune_chunked(inputs: Inputs) -> Step:
    from torchtune.modules import loss as losses

    hard = losses.CEWithChunkedOutputLoss()
    soft = {
        "cross_entropy": losses.CEWithChunkedOutputLoss,  # weighs nothing there
        "forward_kl": losses.ForwardKLWithChunkedOutputLoss,
        "reverse_kl": losses.ReverseKLWithChunkedOutputLoss,
        "symmetric_kl": losses.SymmetricKLWithChunkedOutputLoss,
    }[inputs.divergence]()
    labels_BT = inputs.labels_N.unsqueeze(0)

    def chunks(hidden_NH: Tensor, weight_VH: Tensor) -> list[Tensor]:
        return [linear(chunk, weight_VH) for chunk in hidden_NH.unsqueeze(0).chunk(hard.num_output_chunks, dim=1)]

    def run() -> Tensor:
        student = chunks(inputs.hidden_NH, inputs.weight_VH)

        def divergence() -> Tensor:
            with torch.no_grad():
                teacher = chunks(inputs.teacher_hidden_NH, inputs.teacher_weight_VH)
            return soft(student, teacher, labels_BT)

        return inputs.weighted(lambda: hard(student, labels_BT), divergence)

    return run


def trl_plain(inputs: Inputs) -> Step:
    from trl.experimental.gkd import GKDTrainer

    def run() -> Tensor:
        student = _student_logits(inputs)
        return inputs.weighted(
            lambda: cross_entropy(student.float(), inputs.labels_N),
            lambda: GKDTrainer.generalized_jsd_loss(
                student.unsqueeze(0), _teacher_logits(inputs).unsqueeze(0), inputs.labels_N.unsqueeze(0),
                beta=BETA[inputs.divergence],
            ),
        )  # fmt: skip

    return run


def trl_chunked(inputs: Inputs) -> Step:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.distillation_trainer import _chunked_divergence_loss
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    mask_N = inputs.labels_N != -100

    def hard() -> Tensor:
        log_probs_N, *_ = ChunkedLogProbFunction.apply(
            inputs.hidden_NH, inputs.weight_VH, None, inputs.labels_N.clamp(min=0), 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE,
            None, 1.0, (),
        )  # fmt: skip
        return -(log_probs_N * mask_N).sum() / mask_N.sum()

    def soft() -> Tensor:
        return _chunked_divergence_loss(
            inputs.hidden_NH.unsqueeze(0), inputs.teacher_hidden_NH.unsqueeze(0), inputs.weight_VH,
            inputs.teacher_weight_VH, mask_N.unsqueeze(0), beta=BETA[inputs.divergence],
        )[0]  # fmt: skip

    return lambda: inputs.weighted(hard, soft)


def liger(inputs: Inputs, compiled: bool) -> Step:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    hard, soft = inputs.weights
    loss = LigerFusedLinearJSDLoss(
        hard, soft, beta=BETA[inputs.divergence], compiled=compiled, chunk_size=LIGER_CHUNK_ROWS
    )
    return lambda: loss(
        inputs.hidden_NH, inputs.weight_VH, inputs.teacher_hidden_NH, inputs.teacher_weight_VH, inputs.labels_N
    )
