"""GAKD between two tiny Gemmas whose logits are soft-capped, against plain autograd on those logits, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus
from torch.nn.utils.rnn import pad_sequence
from transformers import Gemma2Config, Gemma2ForCausalLM

from gakd import (
    Adversarial,
    Batch,
    CrossEntropy,
    Distiller,
    LocalTeacher,
    RelativisticGAN,
    ReverseKL,
    TransformerDiscriminator,
    logit_readout,
)
from gakd.models import head_of
from gakd.objective import Counts
from gakd.types import IGNORE_INDEX

pytestmark = pytest.mark.usefixtures("double")


def gemma(seed: int, width: int, cap: float | None) -> Gemma2ForCausalLM:
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=97, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=4, final_logit_softcapping=cap, attn_implementation="eager",
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    return model


def text(lengths: tuple[int, ...]) -> list[tuple[Tensor, int]]:
    """Token ids, and how many of them are the prompt."""
    return [(torch.randint(3, 97, (length,)), 2 + index % 3) for index, length in enumerate(lengths)]


def batch_of(rows: list[tuple[Tensor, int]]) -> Batch:
    ids = pad_sequence([ids[:-1] for ids, _ in rows], batch_first=True)
    labels = pad_sequence([ids[1:] for ids, _ in rows], batch_first=True, padding_value=IGNORE_INDEX)
    mask = (labels != IGNORE_INDEX).long()
    for row, (_, prompt) in enumerate(rows):
        labels[row, : prompt - 1] = IGNORE_INDEX
    return Batch.of(ids, mask, labels)


def plain_losses(student, teacher, adversarial, rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """The student's of tokens and of the game, and the discriminator's, on logits, sequence by sequence."""
    weight, game = adversarial.readout.weight, adversarial.game
    weight = weight - weight.mean(-1, keepdim=True)

    def score(logits: Tensor) -> Tensor:
        return adversarial.discriminator((logits @ weight.T)[None], torch.ones(1, len(logits), dtype=torch.bool))[0]

    tokens, students, discriminators = [], [], []
    for ids, prompt in rows:
        read, taught = (model(input_ids=ids[None, :-1]).logits[0, prompt - 1 :] for model in (student, teacher))
        log_q, log_p = read.log_softmax(-1), taught.detach().log_softmax(-1)
        reverse_kl = (log_q.exp() * (log_q - log_p)).sum(-1)
        tokens.append(0.5 * cross_entropy(log_q, ids[prompt:], reduction="none") + 0.5 * reverse_kl)
        leaves = [logits.detach().requires_grad_() for logits in (taught, read)]
        real, fake = map(score, leaves)
        slopes = [
            torch.autograd.grad(value, leaf, create_graph=True)[0]
            for value, leaf in zip((real, fake), leaves, strict=True)
        ]
        penalty = game.r1 / 2 * slopes[0].square().sum() + game.r2 / 2 * slopes[1].square().sum()
        discriminators.append(softplus(fake - real) + penalty)
        students.append(softplus(real.detach() - score(read)))
    return torch.cat(tokens).mean(), 0.7 * torch.stack(students).mean(), torch.stack(discriminators).mean()


@pytest.mark.parametrize("caps", [(3.0, 3.0), (3.0, None), (None, 3.0)])
@pytest.mark.parametrize("head_trains", [True, False])
def test_two_steps_of_a_game_between_gemmas_are_those_of_plain_autograd(caps, head_trains):
    student, teacher = gemma(1, 16, caps[0]), gemma(2, 24, caps[1])
    student.get_output_embeddings().weight.requires_grad_(head_trains)
    held = LocalTeacher(teacher)
    adversarial = Adversarial(
        TransformerDiscriminator(5, width=8, heads=2), RelativisticGAN(2.0, 3.0),
        logit_readout(head_of(student), held.head, 5),
    )  # fmt: skip
    objective = 0.5 * CrossEntropy() + 0.5 * ReverseKL() + 0.7 * adversarial
    distiller = Distiller(student, objective).train()
    trained = [[p for p in module.parameters() if p.requires_grad] for module in (student, adversarial)]
    optimizers = [torch.optim.AdamW(parameters, lr=1e-2) for parameters in trained]
    for step in range(2):
        rows = text((9, 14, 5, 11, 20, 7))
        tokens, game, discriminator = plain_losses(student, teacher, adversarial, rows)
        of_game = torch.autograd.grad(game, trained[0], retain_graph=True)
        expected = [torch.autograd.grad(tokens + game, trained[0]), torch.autograd.grad(discriminator, trained[1])]
        assert all(part.norm() > 0.01 * whole.norm() for part, whole in zip(of_game, expected[0], strict=True))
        for cut in ((6,), (1, 2, 3), (1,) * 6):
            batches = [batch_of(rows[sum(cut[:part]) : sum(cut[: part + 1])]) for part in range(len(cut))]
            counts = Counts(sum(int(batch.mask.sum()) for batch in batches), 6)
            coefficients = objective.coefficients(step, counts)
            for optimizer in optimizers:
                optimizer.zero_grad()
            for batch in batches:
                taught = held(batch)
                output = distiller(batch, taught, coefficients)
                (output.loss + adversarial(output, taught, batch, coefficients).loss).backward()
            adversarial.flush()
            for parameters, gradients in zip(trained, expected, strict=True):
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    # Gemma's norms and attention are in fp32 whatever the model is.
                    assert (parameter.grad - gradient).norm() <= 1e-6 * gradient.norm() + 1e-12
        for optimizer in optimizers:
            optimizer.step()
