"""Discriminators: exact masks, double backward, order."""

from __future__ import annotations

import pytest
import torch

from gakd import MLPDiscriminator, TransformerDiscriminator
from gakd.discriminators import masked_mean

BUILDERS = {
    "mlp": lambda: MLPDiscriminator(6, width=8),
    "transformer": lambda: TransformerDiscriminator(6, width=8, heads=2),
}


@pytest.fixture(params=BUILDERS)
def discriminator(request):
    torch.manual_seed(0)
    return BUILDERS[request.param]().double()


def sample():
    torch.manual_seed(1)
    return torch.randn(3, 5, 6, dtype=torch.float64), torch.arange(5) < torch.tensor([[5], [2], [3]])


def test_one_score_a_sequence_whatever_stands_on_padding(discriminator):
    readout, mask = sample()
    scores = discriminator(readout, mask)
    assert scores.shape == (3,)
    spoiled = torch.where(mask.unsqueeze(-1), readout, 1e6)
    torch.testing.assert_close(discriminator(spoiled, mask), scores, rtol=0, atol=1e-12)
    longer = torch.cat([readout, torch.randn(3, 4, 6, dtype=torch.float64)], 1)
    longer_mask = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], 1)
    torch.testing.assert_close(discriminator(longer, longer_mask), scores, rtol=0, atol=1e-12)
    for row in range(3):
        length = int(mask[row].sum())
        alone = discriminator(readout[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone[0], scores[row], rtol=0, atol=1e-12)


def test_padding_gets_exactly_no_gradient(discriminator):
    readout, mask = sample()
    readout.requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(readout, mask).sum(), readout)
    assert torch.count_nonzero(gradient[~mask]) == 0
    assert (gradient[mask].abs().sum(-1) > 0).all()


def test_second_derivatives_exist_and_are_right(discriminator):
    readout, mask = sample()
    assert torch.autograd.gradgradcheck(lambda readout: discriminator(readout, mask), readout.requires_grad_())


def test_only_the_transformer_sees_the_order_of_tokens():
    readout, _ = sample()
    mask = torch.ones(3, 5, dtype=torch.bool)
    for name, sees in (("mlp", False), ("transformer", True)):
        torch.manual_seed(0)
        built = BUILDERS[name]().double()
        assert torch.allclose(built(readout, mask), built(readout.flip(1), mask)) is not sees


def test_a_sequence_without_tokens_stays_finite(discriminator):
    readout, mask = sample()
    mask[1] = False
    assert torch.isfinite(discriminator(readout, mask)).all()
    assert torch.equal(masked_mean(readout, mask)[1], torch.zeros(6, dtype=torch.float64))


def test_transformer_refuses_widths_its_heads_do_not_divide():
    with pytest.raises(ValueError, match="got width=10, heads=4"):
        TransformerDiscriminator(6, width=10, heads=4)
