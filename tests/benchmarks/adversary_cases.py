"""The adversary alone: both players' updates on given last hidden states, R1 + R2 with gradient, no token terms.

- direct: logits `[B, T, V]` of both models once, E a linear layer on them, penalties through `autograd.grad` with respect
  to the logits; the discriminator's phase on detached logits, the student's on live ones.
- ours: `Adversarial` on the same rows, and `flush`: the same mathematics, so the gradient norms agree. The readout of raw
  logits is a `LogitReadout` where the student's head trains, a `FrozenHeadsReadout` where it does not (LoRA, or a frozen tied
  embedding); the latter's basis is set-up, once a run, and not in the time.
- ours, centred: the default readouts, blind to the offset of the logits.
- ours, with V: a `LogitReadout` between frozen heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from tests.benchmarks.work import Work, normal, working_dtype

R1 = R2 = 10.0


def build(parameters: dict[str, Any], implementation: str, device: torch.device) -> Work:
    from gakd import TransformerDiscriminator

    batch, length, width = parameters["batch"], parameters["length"], parameters["width"]
    vocabulary, readout_width = parameters["vocabulary"], parameters["readout_width"]
    options = {"device": device, "dtype": working_dtype(device)}
    hidden_BTH, teacher_hidden_BTH = (normal(batch, length, width, scale=1.0, seed=s, **options) for s in (0, 1))
    weight_VH, teacher_weight_VH = (
        normal(vocabulary, width, scale=2.0 * width**-0.5, seed=s, **options) for s in (2, 3)
    )
    weight_VH.requires_grad_(not parameters["frozen"])
    hidden_BTH.requires_grad_()
    torch.manual_seed(5)
    discriminator = TransformerDiscriminator(readout_width).to(device)
    make = _direct if implementation == "direct" else _ours
    iterate, trained = make(
        implementation, discriminator, hidden_BTH, weight_VH, teacher_hidden_BTH, teacher_weight_VH, readout_width
    )
    return Work(iterate, [hidden_BTH, weight_VH, *trained], hidden_BTH)


def _direct(
    _: str, discriminator: nn.Module, hidden_BTH: Tensor, weight_VH: Tensor, teacher_hidden_BTH: Tensor,
    teacher_weight_VH: Tensor, readout_width: int,
) -> Any:  # fmt: skip
    vocabulary = len(weight_VH)
    map_VR = nn.Linear(vocabulary, readout_width, bias=False, device=hidden_BTH.device)
    _set_map(map_VR.weight)
    mask_BT = torch.ones(hidden_BTH.shape[:2], dtype=torch.bool, device=hidden_BTH.device)
    trained = [*discriminator.parameters(), map_VR.weight]

    def score(logits_BTV: Tensor) -> Tensor:
        return discriminator(map_VR(logits_BTV), mask_BT)

    def iterate() -> Tensor:
        live = linear(hidden_BTH, weight_VH).float()
        with torch.no_grad():
            teacher = linear(teacher_hidden_BTH, teacher_weight_VH).float()
        real_logits, fake_logits = teacher.requires_grad_(), live.detach().requires_grad_()
        real_B, fake_B = score(real_logits), score(fake_logits)
        real_gradient, fake_gradient = torch.autograd.grad(
            real_B.sum() + fake_B.sum(), (real_logits, fake_logits), create_graph=True
        )
        penalty_B = R1 / 2 * real_gradient.square().sum((1, 2)) + R2 / 2 * fake_gradient.square().sum((1, 2))
        loss = (softplus(fake_B - real_B) + penalty_B).mean()
        gradients = torch.autograd.grad(loss, trained)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
            parameter.requires_grad_(False)
        del loss, penalty_B, real_gradient, fake_gradient, real_B, fake_B
        with torch.no_grad():
            real_B = score(real_logits)
        student_loss = softplus(real_B - score(live)).mean()
        student_loss.backward()
        for parameter in trained:
            parameter.requires_grad_(True)
        return student_loss.detach()

    return iterate, trained


def _ours(
    implementation: str, discriminator: nn.Module, hidden_BTH: Tensor, weight_VH: Tensor, teacher_hidden_BTH: Tensor,
    teacher_weight_VH: Tensor, readout_width: int,
) -> Any:  # fmt: skip
    from gakd import Adversarial, Batch, FrozenHeadsReadout, Head, LogitReadout, RelativisticGAN, TeacherOutput
    from gakd.objective import Counts
    from gakd.types import StudentOutput, StudentRows

    (batch, length, _), device = hidden_BTH.shape, hidden_BTH.device
    head, teacher_head = Head(weight_VH), Head(teacher_weight_VH)
    readout = LogitReadout(len(weight_VH), readout_width, centered=implementation == "ours, centred").to(device)
    _set_map(readout.weight)
    if not weight_VH.requires_grad and implementation != "ours, with V":
        readout = FrozenHeadsReadout(head, teacher_head, readout)
    adversarial = Adversarial(discriminator, RelativisticGAN(R1, R2), readout)
    tokens_BT = torch.zeros(batch, length, dtype=torch.long, device=device)
    rows = Batch.of(tokens_BT, torch.ones_like(tokens_BT), tokens_BT)
    coefficients = (1.0 * adversarial).coefficients(0, Counts(batch * length, batch))

    def iterate() -> Tensor:
        hidden_NH = hidden_BTH.flatten(0, 1)
        live = readout.live(hidden_NH, head, coefficients.step_rows)
        output = StudentOutput(live.new_zeros(()), {}, StudentRows(live, hidden_NH.detach()))
        teacher = TeacherOutput(teacher_hidden_BTH.flatten(0, 1), teacher_head)
        game = adversarial(output, teacher, rows, coefficients)
        game.loss.backward()
        adversarial.flush()
        return game.loss.detach()

    return iterate, list(adversarial.parameters())


def _set_map(weight_RV: Tensor) -> None:
    """The same map in every implementation, as `LogitReadout` starts it."""
    with torch.no_grad():
        weight_RV.copy_(
            normal(*weight_RV.shape, scale=weight_RV.shape[1] ** -0.5, seed=6, device=weight_RV.device,
                   dtype=weight_RV.dtype)
        )  # fmt: skip
