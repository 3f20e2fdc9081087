"""A researcher has a loss that no library has, a discriminator of her own, and a loop of her own: nothing here needs a recipe.

STUDENT, TEACHER: folders of models. rows.jsonl, 64 rows, lies where this runs.
"""

import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gakd
from gakd import (
    Adversarial,
    CrossEntropy,
    Distiller,
    Divergence,
    LocalTeacher,
    RelativisticGAN,
    Term,
    logit_readout,
    ramp,
)
from gakd.data import DataConfig, collate, load_data
from gakd.models import head_of
from gakd.objective import Counts


class Hellinger(Divergence):
    name = "hellinger"

    def losses(self, student_log_probs_NV, teacher_log_probs_NV):
        return (student_log_probs_NV.mul(0.5).exp() - teacher_log_probs_NV.mul(0.5).exp()).square().sum(-1) / 2


class Feature(Term):
    """Last hidden states of small size, a loss a sequence."""

    name, unit = "feature", "sequence"

    def sequence_losses(self, rows):
        return rows.batch.sequence_means(rows.hidden_NH.square().mean(-1))


class MeanDiscriminator(torch.nn.Module):
    def __init__(self, readout_width):
        super().__init__()
        self.readout_width = readout_width
        self.score = torch.nn.Sequential(torch.nn.Linear(readout_width, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

    def forward(self, readout_BTR, mask_BT):
        mask_BT1 = mask_BT.unsqueeze(-1)
        mean_BR = (readout_BTR * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        return self.score(mean_BR).squeeze(-1)


torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(os.environ["STUDENT"])
data = load_data(DataConfig(dataset="rows.jsonl", max_length=96, max_prompt_length=64), tokenizer)
student = AutoModelForCausalLM.from_pretrained(os.environ["STUDENT"])
teacher = LocalTeacher(AutoModelForCausalLM.from_pretrained(os.environ["TEACHER"]))

readout = logit_readout(head_of(student), teacher.head, 16)
game = Adversarial(MeanDiscriminator(16), RelativisticGAN(r1=1, r2=1), readout)
objective = 0.5 * (CrossEntropy() + Hellinger()) + 0.01 * Feature() + ramp(0.1, start=2) * game
print(gakd.__version__, objective)
distiller = Distiller(student, objective).train()
optimizers = [torch.optim.AdamW(distiller.parameters(), 3e-3), torch.optim.AdamW(game.parameters(), 1e-3)]


def played(step):
    batch = collate(data.train[8 * (step % 7) : 8 * (step % 7) + 8], data.pad_token_id)
    coefficients, taught = objective.coefficients(step, Counts.over(batch)), teacher(batch)
    output = distiller(batch, taught, coefficients)
    (output.loss + game(output, taught, batch, coefficients).loss).backward()
    return float(output.loss)


losses = []
for step in range(14):
    losses.append(played(step))
    game.flush()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
print(f"objective {sum(losses[:4]) / 4:.3f} -> {sum(losses[-4:]) / 4:.3f}")
assert sum(losses[-4:]) < 0.8 * sum(losses[:4])

# What she may forget is said, and nothing is trained in silence without it.
played(14)
try:
    optimizers[0].step()
except RuntimeError as error:
    print(error)
else:
    raise SystemExit("a game that was not flushed went unnoticed")
