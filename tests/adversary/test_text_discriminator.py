"""A discriminator of drawn tokens: what it reads, where it scores, and the Bradley-Terry gradient it learns by."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from gakd import RelativisticGAN
from gakd.adversary import TextDiscriminator, compare, scores_of
from gakd.adversary.text_discriminator import whole_texts
from gakd.data import collate
from gakd.samplers import Sample
from tests import tiny

PAD, END = 256, 258
REAL = [Sample([1, 2, 3], [4, 5, END]), Sample([9], [8, END]), Sample([7, 7], [6, 6, 6, 6])]
FAKE = [Sample([1, 2, 3], [4, END]), Sample([9], [3, 3, 3, END]), Sample([7, 7], [END])]


def window(samples, *sizes):
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [
        collate([sample.example for sample in samples[start : start + size]], PAD)
        for start, size in zip(starts, sizes, strict=True)
    ]


@pytest.fixture
def discriminator() -> TextDiscriminator:
    built = TextDiscriminator(tiny.model(seed=4).model)
    torch.nn.init.normal_(built.score.weight, generator=torch.Generator().manual_seed(0))
    return built


def score_alone(discriminator: TextDiscriminator, sample: Sample) -> torch.Tensor:
    """One text without padding, by the backbone and the head."""
    hidden_BTH = discriminator.backbone(torch.tensor([sample.prompt_ids + sample.response_ids])).last_hidden_state
    return hidden_BTH[0, -1] @ discriminator.score.weight[0]


def test_whole_texts_end_with_the_last_label():
    for samples in (REAL, FAKE):
        (batch,) = window(samples, 3)
        ids_BT, last_B = whole_texts(batch)
        for row, sample in enumerate(samples):
            text = sample.prompt_ids + sample.response_ids
            assert last_B[row] == len(text) - 1
            assert ids_BT[row, : len(text)].tolist() == text


def test_a_score_is_read_at_the_end_of_the_text_whatever_stands_behind_it(discriminator):
    expected_B = torch.stack([score_alone(discriminator, sample) for sample in REAL])
    assert expected_B.std() > 0.1
    for sizes in ((3,), (1, 2), (1, 1, 1)):
        assert_close(scores_of(discriminator, window(REAL, *sizes)), expected_B.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(3,), (2, 1)])
def test_it_learns_by_the_bradley_terry_loss_over_all_pairs(discriminator, sizes):
    statistics = compare(discriminator, RelativisticGAN(0, 0), window(REAL, *sizes), window(FAKE, *sizes), pairs=3)
    ours = [parameter.grad for parameter in discriminator.parameters() if parameter.grad is not None]
    reached = [parameter for parameter in discriminator.parameters() if parameter.grad is not None]
    margin_B = torch.stack([
        score_alone(discriminator, real) - score_alone(discriminator, fake)
        for real, fake in zip(REAL, FAKE, strict=True)
    ])  # fmt: skip
    loss = -logsigmoid(margin_B).mean()
    assert_close(ours, list(torch.autograd.grad(loss, reached)), rtol=1e-3, atol=1e-6)
    assert statistics["discriminator"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert statistics["discriminator_margin"] == pytest.approx(float(margin_B.detach().mean()), rel=1e-4)
    assert statistics["discriminator_accuracy"] == pytest.approx(float((margin_B > 0).float().mean()))


def test_it_starts_undecided_and_learns_to_tell_the_texts_apart():
    discriminator = TextDiscriminator(tiny.model(seed=4).model)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-2)
    accuracies = []
    for _ in range(12):
        found = compare(discriminator, RelativisticGAN(0, 0), window(REAL, 3), window(FAKE, 3), pairs=3)
        accuracies.append(found["discriminator_accuracy"])
        optimizer.step()
        optimizer.zero_grad()
    assert accuracies[0] == 0.5
    assert accuracies[-1] == 1.0


def test_dropout_stays_off_and_penalties_are_refused(discriminator):
    discriminator.backbone.layers[0].self_attn.attention_dropout = 0.9
    discriminator.train()
    first, second = (scores_of(discriminator, window(REAL, 3)) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="give a game without penalties, got RelativisticGAN"):
        compare(discriminator, RelativisticGAN(), window(REAL, 3), window(FAKE, 3), pairs=3)
