"""A whole GAKD step on tiny Qwen3 models: forwards, cross entropy, reverse KL, the game, both optimizers.

- release: the step as the paper's release computes it, micro-batch by micro-batch: two forwards of the teacher and two of
  the student, all with logits `[B, T, V]`; a discriminator that is a causal LM of the student's size behind Linear(V -> H),
  with its own unused LM head, scored at the last position, run four times; penalties whose gradients are dropped
  (`create_graph=False`); softmax and log(x + 1e-9).
- ours: the loop of recipes/gakd.py without Fabric. The discriminator has the same width and depth as the release's: a
  Transformer of 4 blocks of the student's width behind a readout of that width.
- ours, cached teacher: the same, with the teacher's last hidden states at hand.

The prompt is the first part of each sequence; nothing is padding. Gradient clipping is left out of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from tests.benchmarks.work import Work, working_dtype

R1 = R2 = 10.0
CE_WEIGHT, KL_WEIGHT, GAME_WEIGHT = 0.5, 0.5, 0.1
WARM_UPS = 2  # the optimizers' states, and what the second step frees of the first


def build(parameters: dict[str, Any], implementation: str, device: torch.device) -> Work:
    from tests import tiny

    vocabulary, layers = parameters["vocabulary"], parameters["layers"]
    student, teacher = (
        tiny.model(vocabulary, parameters[f"{who}_width"], layers, seed=seed).to(device, working_dtype(device))
        for seed, who in enumerate(("student", "teacher"))
    )
    teacher.requires_grad_(False)
    input_ids, labels = _tokens(parameters, device)
    if implementation == "release":
        return _release(student, teacher, input_ids, labels, parameters)
    return _ours(student, teacher, input_ids, labels, parameters, cached=implementation == "ours, cached teacher")


def _tokens(parameters: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(7)
    shape = parameters["batch"], parameters["length"]
    input_ids, labels = (
        torch.randint(parameters["vocabulary"], shape, generator=generator, device=device) for _ in range(2)
    )
    prompt = round((1 - parameters["supervised"]) * parameters["length"])
    labels[:, :prompt] = -100
    return input_ids, labels


class ReleaseDiscriminator(nn.Module):
    """A causal LM on a linear map of the logits, scored at the last position; its own LM head runs too."""

    def __init__(self, backbone: nn.Module, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(vocabulary, width)
        self.backbone = backbone
        self.score = nn.Linear(width, 1)

    def forward(self, logits_BTV: Tensor) -> Tensor:
        output = self.backbone(inputs_embeds=self.embed(logits_BTV), output_hidden_states=True, use_cache=False)
        return self.score(output.hidden_states[-1][:, -1]).squeeze(-1)


def _release(
    student: nn.Module, teacher: nn.Module, input_ids: Tensor, labels: Tensor, parameters: dict[str, Any]
) -> Work:
    from tests import tiny

    vocabulary, width = parameters["vocabulary"], parameters["student_width"]
    backbone = tiny.model(vocabulary, width, parameters["layers"], seed=2)
    discriminator = ReleaseDiscriminator(backbone, vocabulary, width).to(input_ids.device, student.dtype)
    student_optimizer, discriminator_optimizer = _optimizers(student, discriminator)
    mask = labels != -100

    def logits(model: nn.Module) -> Tensor:
        return model(input_ids=input_ids, use_cache=False).logits

    def iterate() -> Tensor:
        with torch.no_grad():
            teacher_logits, student_logits = logits(teacher), logits(student)
        teacher_logits.requires_grad_()
        student_logits.requires_grad_()
        real_B, fake_B = discriminator(teacher_logits), discriminator(student_logits)
        (real_gradient,) = torch.autograd.grad(real_B.sum(), teacher_logits, retain_graph=True)
        (fake_gradient,) = torch.autograd.grad(fake_B.sum(), student_logits, retain_graph=True)
        penalty = R1 / 2 * real_gradient.square().sum((1, 2)) + R2 / 2 * fake_gradient.square().sum((1, 2))
        (softplus(fake_B - real_B) + penalty).mean().backward()
        discriminator_optimizer.step()
        discriminator_optimizer.zero_grad()

        with torch.no_grad():
            teacher_logits = logits(teacher)
        teacher_logits.requires_grad_()
        student_logits = logits(student)
        hard = cross_entropy(student_logits.float().flatten(0, 1), labels.flatten())
        p, q = teacher_logits.detach().float().softmax(-1), student_logits.float().softmax(-1)
        soft = ((q * (torch.log(q + 1e-9) - torch.log(p + 1e-9))).sum(-1) * mask).sum() / mask.sum()
        game = softplus(discriminator(teacher_logits) - discriminator(student_logits)).mean()
        loss = CE_WEIGHT * hard + KL_WEIGHT * soft + GAME_WEIGHT * game
        loss.backward()
        student_optimizer.step()
        student_optimizer.zero_grad()
        discriminator_optimizer.zero_grad()  # what the student's loss left there
        return loss.detach()

    return Work(iterate, warm_ups=WARM_UPS)


def _ours(
    student: nn.Module, teacher_model: nn.Module, input_ids: Tensor, labels: Tensor, parameters: dict[str, Any],
    cached: bool,
) -> Work:  # fmt: skip
    import gakd
    from gakd.objective import Counts

    width = parameters["student_width"]
    adversarial = gakd.Adversarial(
        gakd.TransformerDiscriminator(width, width, parameters["layers"]),
        gakd.RelativisticGAN(R1, R2),
        readout=gakd.CenteredLogitReadout(parameters["vocabulary"], width),
    ).to(input_ids.device)
    objective = CE_WEIGHT * gakd.CrossEntropy() + KL_WEIGHT * gakd.ReverseKL() + GAME_WEIGHT * adversarial
    distiller = gakd.Distiller(student, objective).train()
    student_optimizer, discriminator_optimizer = _optimizers(distiller, adversarial)
    batch = gakd.Batch.of(input_ids, torch.ones_like(input_ids), labels)
    coefficients = objective.coefficients(0, Counts(int(batch.mask.sum()), len(labels)))
    local = gakd.LocalTeacher(teacher_model)
    teacher: Callable[[Any], Any] = local
    if cached:
        output_at_hand = local(batch)

        def teacher(_: Any) -> Any:
            return output_at_hand

    def iterate() -> Tensor:
        teacher_output = teacher(batch)
        output = distiller(batch, teacher_output, coefficients)
        game = adversarial(output, teacher_output, batch, coefficients)
        loss = output.loss + game.loss
        loss.backward()
        adversarial.flush()
        for optimizer in (student_optimizer, discriminator_optimizer):
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return Work(iterate, warm_ups=WARM_UPS)


def _optimizers(student: nn.Module, discriminator: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return torch.optim.AdamW(student.parameters(), lr=1e-4), torch.optim.AdamW(
        discriminator.parameters(), lr=2e-4, betas=(0.0, 0.99)
    )
