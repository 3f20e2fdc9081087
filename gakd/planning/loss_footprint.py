"""What the losses hold beside the models: the game against the discriminator, and the rows of a chunk. On fake tensors."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gakd.adversary.adversarial import Adversarial
from gakd.adversary.discriminators import TransformerDiscriminator
from gakd.adversary.games import RelativisticGAN
from gakd.adversary.readouts.logits import CenteredLogitReadout
from gakd.losses.divergences import CrossEntropy, ReverseKL
from gakd.losses.kernel import row_losses_and_gradient
from gakd.objective import Coefficients
from gakd.planning.live_bytes import LiveBytes
from gakd.types import Batch, Head, LogitShape, StudentOutput, StudentRows, TeacherOutput


@dataclass(frozen=True)
class GameBytes:
    """Bytes of one micro-batch's game, weights and gradients of the discriminator apart."""

    forward: int  # the most, in the backward of a gradient penalty
    kept: int  # after it, for the student's backward


@functools.cache
def game_bytes(
    readout_width: int,
    discriminator_width: int,
    widths: tuple[int, int],
    sequences: int,
    supervised: int,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> GameBytes:
    """Of recipes/gakd.py's game; widths and types of hidden states are the student's and the teacher's."""
    with FakeTensorMode():
        vocabulary = 2  # what grows with it, weights and gradients of the map and of the head, is counted apart
        readout = CenteredLogitReadout(vocabulary, readout_width)
        adversarial = Adversarial(
            TransformerDiscriminator(readout_width, discriminator_width), RelativisticGAN(), readout
        )
        rows_N = torch.zeros(sequences * supervised, dtype=torch.int64)
        ids_BT = torch.zeros(sequences, supervised, dtype=torch.int64)
        batch = Batch(ids_BT, ids_BT, ids_BT, rows_N, rows_N, (supervised,) * sequences, len(rows_N))
        student_NH, teacher_NH = (
            torch.zeros(len(rows_N), width, dtype=dtype) for width, dtype in zip(widths, dtypes, strict=True)
        )
        student_head, teacher_head = (Head(torch.zeros(vocabulary, width)) for width in widths)
        student_head.weight.requires_grad_()
        owned: list[Tensor] = [student_NH, teacher_NH, rows_N, ids_BT, student_head.weight, teacher_head.weight]
        for parameter in adversarial.parameters():
            parameter.grad = torch.zeros_like(parameter)
            owned += [parameter, parameter.grad]
        coefficients = Coefficients({adversarial.name: 1.0}, 1.0, math.inf)
        with LiveBytes(owned) as live:
            live_NR = readout.live(student_NH.requires_grad_(), student_head, coefficients.step_rows)
            rows = StudentRows(live_NR, student_NH.detach())
            output = StudentOutput(live_NR.new_zeros(()), {}, rows)
            played = adversarial(output, TeacherOutput(teacher_NH, teacher_head), batch, coefficients)
            kept = live.now
        del played
    return GameBytes(live.peak, kept)


def discriminator_entries(readout_width: int, discriminator_width: int) -> int:
    """Parameters of the discriminator behind its map."""
    with torch.device("meta"):
        discriminator = TransformerDiscriminator(readout_width, discriminator_width)
        return sum(parameter.numel() for parameter in discriminator.parameters())


@dataclass(frozen=True)
class RowBytes:
    """Bytes of some rows' losses, their logits apart."""

    peak: int
    kept: int  # of what they result in: nothing of the logits' size where the gradient takes their place


@functools.cache
def row_bytes(rows: int, vocab_size: int, compared: int) -> RowBytes:
    """Of cross entropy and, where some tokens are compared with a teacher's, reverse KL, computed eagerly."""
    with FakeTensorMode():
        student_NV, labels_N = torch.zeros(rows, vocab_size), torch.zeros(rows, dtype=torch.int64)
        teacher_NV = torch.zeros(rows, compared) if compared else None
        terms = [CrossEntropy(), ReverseKL()] if compared else [CrossEntropy()]
        owned = [student_NV, labels_N, *([] if teacher_NV is None else [teacher_NV])]
        with LiveBytes(owned) as live:
            result = row_losses_and_gradient(
                student_NV, teacher_NV, labels_N, terms, [1.0] * len(terms), LogitShape(), LogitShape(),
                compared=compared or None,
            )  # fmt: skip
            kept = live.now
        del result
    return RowBytes(live.peak, kept)
