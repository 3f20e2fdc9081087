"""The ways to one divergence: gakd's by each kernel, whole logits, TRL's chunked divergence, Liger's fused losses.

Every way takes the same hidden states and heads and gives the mean over rows of KL(teacher‖student), KL(student‖teacher) or
Jensen-Shannon with beta 0.5, ready for backward. TRL and Liger write beta as gakd's `JensenShannon` does, 0 and 1 being the
two KLs. Read in their 1.16.0 and 0.8.5:

- TRL `_chunked_divergence_loss` is its DistillationTrainer's: logits in the forward and once more in the backward, in fp32;
  twice in the forward for Jensen-Shannon.
- Liger `LigerFusedLinearJSD` is the Triton one, gradient in the forward, chunks by its own rule, fp32 logits.
- Liger `LigerFusedLinearJSDLoss` is the one of torch operations, compiled, chunks of 1,024 rows by default.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import kl_div, linear

from gakd import ForwardKL, Head, JensenShannon, ReverseKL, TeacherOutput
from gakd.losses import token_pass
from gakd.losses.row_pass import Kernel

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jensen_shannon": 0.5}
TERMS = {"forward_kl": ForwardKL(), "reverse_kl": ReverseKL(), "jensen_shannon": JensenShannon(0.5)}


class Rows(NamedTuple):
    hidden_NH: Tensor  # a leaf
    weight_VH: Tensor  # a leaf
    teacher_hidden_NH: Tensor
    teacher_weight_VH: Tensor
    labels_N: Tensor
    divergence: str

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden_NH, self.weight_VH

    @property
    def product_flops(self) -> int:
        """Of the four products that nobody can leave out: both models' logits, gradients of hidden states and head."""
        return 8 * self.hidden_NH.shape[0] * self.weight_VH.numel()


Forward = Callable[[Rows], Callable[[], Tensor]]


def gakd(kernel: Kernel) -> Forward:
    def prepare(rows: Rows) -> Callable[[], Tensor]:
        term = TERMS[rows.divergence]
        teacher = TeacherOutput(rows.teacher_hidden_NH, Head(rows.teacher_weight_VH))
        factor = {term.name: 1 / len(rows.labels_N)}
        head = Head(rows.weight_VH)
        return lambda: token_pass(rows.hidden_NH, head, rows.labels_N, [term], factor, teacher, kernel=kernel).loss

    return prepare


def naive(rows: Rows) -> Callable[[], Tensor]:
    """Whole logits of both models, then torch's own functions in fp32, then autograd."""
    beta, count = BETA[rows.divergence], len(rows.labels_N)

    def run() -> Tensor:
        log_q_NV = linear(rows.hidden_NH, rows.weight_VH).float().log_softmax(-1)
        with torch.no_grad():
            log_p_NV = linear(rows.teacher_hidden_NH, rows.teacher_weight_VH).float().log_softmax(-1)
        if beta == 0:
            return kl_div(log_q_NV, log_p_NV, log_target=True, reduction="sum") / count
        if beta == 1:
            return kl_div(log_p_NV, log_q_NV, log_target=True, reduction="sum") / count
        log_m_NV = torch.logaddexp(log_q_NV, log_p_NV) - math.log(2)
        halves = [kl_div(log_m_NV, own, log_target=True, reduction="sum") for own in (log_q_NV, log_p_NV)]
        return (halves[0] + halves[1]) / (2 * count)

    return run


def trl(rows: Rows) -> Callable[[], Tensor]:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask_1N = torch.ones_like(rows.labels_N).unsqueeze(0)
    return lambda: _chunked_divergence_loss(
        rows.hidden_NH.unsqueeze(0), rows.teacher_hidden_NH.unsqueeze(0), rows.weight_VH, rows.teacher_weight_VH,
        mask_1N, beta=BETA[rows.divergence],
    )[0]  # fmt: skip


def liger_triton(rows: Rows) -> Callable[[], Tensor]:
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=BETA[rows.divergence], accum_dtype=torch.float32)
    return lambda: loss(rows.hidden_NH, rows.weight_VH, rows.teacher_hidden_NH, rows.teacher_weight_VH, rows.labels_N)


def liger_chunked(rows: Rows) -> Callable[[], Tensor]:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    compiled = rows.hidden_NH.device.type == "cuda"
    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=BETA[rows.divergence], compiled=compiled)
    return lambda: loss(rows.hidden_NH, rows.weight_VH, rows.teacher_hidden_NH, rows.teacher_weight_VH, rows.labels_N)


class Way(NamedTuple):
    name: str
    prepare: Forward
    needs: str = "torch"  # the package it is of
    cuda_alone: bool = False
    peer: bool = True

    def missing(self, device: torch.device) -> str | None:
        """Why it cannot run here, if so."""
        try:
            importlib.import_module(self.needs)
        except ImportError as error:
            return "not installed" if getattr(error, "name", None) == self.needs else f"import fails: {error}"
        return "needs CUDA" if self.cuda_alone and device.type != "cuda" else None


def kernels(device: torch.device) -> list[Kernel]:
    """On a CPU those that take no minute of a compiler."""
    return [one for one in get_args(Kernel) if device.type == "cuda" or one in ("auto", "eager")]


def ways(device: torch.device) -> list[Way]:
    """The first is what all others are compared with."""
    return [
        *(Way(f"gakd {kernel}", gakd(kernel), peer=False) for kernel in kernels(device)),
        Way("TRL chunked", trl, "trl"),
        Way("Liger Triton", liger_triton, "liger_kernel", cuda_alone=True),
        Way("Liger chunked", liger_chunked, "liger_kernel"),
        Way("naive", naive),
    ]
