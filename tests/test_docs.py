"""The Python of docs/compose.md runs as it stands there, and its objects do what the package's own are tested for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import gakd
from gakd.discriminators import masked_mean
from gakd.objective import Counts
from tests import tiny
from tests.test_distiller import VOCAB, batch_of, sequences

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "compose.md").read_text(), re.S)
OWN = [block for block in BLOCKS if block.startswith("class ")]


@pytest.fixture(scope="module")
def names() -> dict:
    found = {name: getattr(gakd, name) for name in gakd.__all__}
    found |= {"nn": nn, "masked_mean": masked_mean, "vocab_size": VOCAB}
    for block in BLOCKS:
        exec(block, found)
    return found


def test_the_first_block_prints_its_formula(capsys):
    exec(BLOCKS[0], {"vocab_size": VOCAB})
    assert capsys.readouterr().out == (
        "0.5 * cross_entropy + 0.5 * reverse_kl(temperature=2) + ramp(0.1, start=200, steps=1) * "
        "adversarial(RelativisticGAN(r1=10, r2=10), TransformerDiscriminator, LogitReadout)\n"
    )


def test_three_objects_take_less_than_ten_lines_each(names):
    assert [block.split("(")[0].split(":")[0].removeprefix("class ") for block in OWN] == [
        "TriangularDiscrimination", "LeastSquaresGAN", "PhraseDiscriminator",
    ]  # fmt: skip
    for block in OWN:
        assert sum(bool(line.strip()) for line in block.splitlines()) < 10


def test_the_divergence_is_right_and_zero_where_the_models_agree(names):
    term = names["TriangularDiscrimination"]()
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, 9, dtype=torch.float64, requires_grad=True), torch.randn(5, 9, dtype=torch.float64)
    losses = term.losses(logits.log_softmax(-1), teacher.log_softmax(-1))
    for row in range(5):
        q, p = (values[row].softmax(-1).tolist() for values in (logits.detach(), teacher))
        assert losses[row].item() == pytest.approx(sum((a - b) ** 2 / (a + b) for a, b in zip(q, p, strict=True)))
    same = term.losses(logits.log_softmax(-1), logits.detach().log_softmax(-1))
    assert same.abs().max() == 0
    assert torch.autograd.grad(same.sum(), logits)[0].abs().max() == 0
    tails = torch.tensor([[0.0, -200.0, -300.0]]), torch.tensor([[-0.7, -0.7, -300.0]])
    assert torch.isfinite(term.losses(*tails)).all()


def test_the_discriminator_ignores_padding_and_sees_order(names):
    torch.manual_seed(0)
    discriminator = names["PhraseDiscriminator"](6, 8).double()
    readout, mask = torch.randn(3, 5, 6, dtype=torch.float64), torch.arange(5) < torch.tensor([[5], [2], [3]])
    scores = discriminator(readout, mask)
    assert torch.equal(discriminator(torch.where(mask.unsqueeze(-1), readout, 1e6), mask), scores)
    torch.testing.assert_close(discriminator(readout[1:2, :2], mask[1:2, :2])[0], scores[1])
    assert not torch.allclose(discriminator(readout.flip(1), mask)[0], scores[0])
    assert torch.autograd.gradgradcheck(lambda rows: discriminator(rows, mask), readout.requires_grad_())


def test_the_objective_of_the_three_trains_a_student(names):
    torch.manual_seed(0)
    student, batch = tiny.model(VOCAB, seed=1), batch_of(sequences())
    teacher = gakd.LocalTeacher(tiny.model(VOCAB, width=48, tied=False, seed=2, scale=3.0))
    objective, adversarial = names["objective"], names["adversarial"]
    distiller = gakd.Distiller(student, objective)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=3e-3) for module in (distiller, adversarial)]
    counts, losses = Counts(len(batch.labels_N), len(batch.lengths)), []
    for step in range(12):
        coefficients, teacher_output = objective.coefficients(step, counts), teacher(batch)
        output = distiller(batch, teacher_output, coefficients)
        game = adversarial(output, teacher_output, batch, coefficients)
        (output.loss + game.loss).backward()
        adversarial.flush()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(parameter).all() for parameter in adversarial.parameters())


def test_the_chain_of_the_on_policy_page_prints_as_written_and_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "on-policy.md").read_text(), re.S)
    (chain,) = [block for block in blocks if "def only_the_unlikely" in block]
    found = {name: getattr(gakd, name) for name in gakd.__all__}
    exec(chain, found)
    assert capsys.readouterr().out == (
        "TeacherLogRatio(scale=1.0) >> Clip(low=-5, high=5) >> only_the_unlikely >> RewardToGo(gamma=0.9) >> "
        "Whiten(shift_mean=True)\n"
    )
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    rollout = gakd.Rollout(mask_BT, torch.tensor([[-2.0, -0.5, -3.0], [-1.5, 0, 0]]), torch.full((2, 3), -1.0))
    advantages = found["reward"](rollout)[mask_BT]
    rewards = [1 + 0.81 * 2, 0.9 * 2, 2.0, 0.5]  # by hand: the likely second token has none of its own
    expected = torch.tensor(rewards)
    torch.testing.assert_close(advantages, (expected - expected.mean()) / expected.var(unbiased=False).sqrt())
