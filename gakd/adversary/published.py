"""The arithmetic of GAKD's published code where it differs from this package's, defects included.

For recipes/ablations/released.py, whose docstring says what each of them does. On whole logits `[B, T, V]` of all positions,
prompt and padding among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, softplus

from gakd.models.unpacked import one_sequence_a_row
from gakd.types import IGNORE_INDEX, Batch


def padded(batch: Batch, length: int, eos_token_id: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, attention mask, labels and supervised rows at `length` positions.

    Padding is end of text, and the last position always is.
    """
    width = batch.input_ids.shape[1]
    more = 0, length - width
    input_ids_BT = batch.input_ids.masked_fill(batch.attention_mask == 0, eos_token_id)
    return (
        pad(input_ids_BT, more, value=eos_token_id),
        pad(batch.attention_mask, more),
        pad(batch.labels, more, value=IGNORE_INDEX),
        batch.rows_N // width * length + batch.rows_N % width,
    )


def whole_logits(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, vocab_size: int) -> Tensor:
    """A model's logits of every position, cut to the shared vocabulary."""
    with one_sequence_a_row(padded=True):
        return model(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False).logits[..., :vocab_size]


def last_position_scores(discriminator: nn.Module, logits_BTV: Tensor) -> Tensor:
    """Scores `[B]` at the last position, whatever stands there: every position counts as real."""
    everywhere_BT = torch.ones(logits_BTV.shape[:2], dtype=torch.bool, device=logits_BTV.device)
    return discriminator(logits_BTV.float(), everywhere_BT)


def discriminator_losses(
    discriminator: nn.Module, fake_BTV: Tensor, real_BTV: Tensor, r1: float, r2: float
) -> dict[str, Tensor]:
    """The relativistic loss with its graph, R1 and R2 as constants, and what is logged of the game, `[B]` each."""
    fake_BTV, real_BTV = fake_BTV.detach().requires_grad_(), real_BTV.detach().requires_grad_()
    fake_B, real_B = (last_position_scores(discriminator, logits_BTV) for logits_BTV in (fake_BTV, real_BTV))
    return {
        "discriminator": softplus(fake_B - real_B),
        "discriminator_penalty": r1 / 2 * _squared_norm(real_B, real_BTV) + r2 / 2 * _squared_norm(fake_B, fake_BTV),
        "discriminator_margin": real_B - fake_B,
        "discriminator_accuracy": (real_B > fake_B).float(),
    }


def student_losses(
    discriminator: nn.Module, live_BTV: Tensor, real_BTV: Tensor, labels_BT: Tensor, rows_N: Tensor
) -> dict[str, Tensor]:
    """Cross entropy and floored reverse KL of the supervised tokens `[N]`, and the student's side of the game `[B]`."""
    with frozen(discriminator):
        real_B, fake_B = (last_position_scores(discriminator, logits_BTV) for logits_BTV in (real_BTV, live_BTV))
    live_NV, real_NV = (logits_BTV.flatten(0, 1).index_select(0, rows_N) for logits_BTV in (live_BTV, real_BTV))
    return {
        "cross_entropy": cross_entropy(live_NV.float(), labels_BT.flatten()[rows_N], reduction="none"),
        "reverse_kl": floored_reverse_kl(live_NV, real_NV),
        "adversarial": softplus(real_B - fake_B),
    }


def floored_reverse_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """`sum q (log(q + 1e-9) - log(p + 1e-9))` `[N]`, without the tokens that have an infinite logit of either model."""
    q_NV, p_NV = (logits_NV.softmax(-1, dtype=torch.float32) for logits_NV in (student_NV, teacher_NV))
    losses_NV = q_NV * (torch.log(q_NV + 1e-9) - torch.log(p_NV + 1e-9))
    return losses_NV.masked_fill(student_NV.isinf() | teacher_NV.isinf(), 0.0).sum(-1)


def _squared_norm(score_B: Tensor, logits_BTV: Tensor) -> Tensor:
    """`||d score / d logits||^2` `[B]`, without a graph (create_graph=False)."""
    (gradient_BTV,) = torch.autograd.grad(score_B.sum(), logits_BTV, retain_graph=True)
    return gradient_BTV.square().sum((1, 2))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Build graphs through a module without its parameters in them."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
