"""Discriminators: exact masks, double backward, order."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, Qwen3Config, Qwen3Model

from gakd import (
    AttentionPoolDiscriminator,
    LMDiscriminator,
    MLPDiscriminator,
    TransformerDiscriminator,
    pretrained_discriminator,
)
from gakd.adversary.discriminators import masked_mean
from tests import tiny


def qwen3() -> LMDiscriminator:
    config = Qwen3Config(
        vocab_size=11, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, attn_implementation="eager",
    )  # fmt: skip
    return LMDiscriminator(Qwen3Model(config), 6)


def gpt2() -> LMDiscriminator:
    """Learned positions, dropout, and a readout of the backbone's own width."""
    config = GPT2Config(vocab_size=11, n_embd=6, n_layer=2, n_head=2, n_positions=16, attn_implementation="eager")
    return LMDiscriminator(GPT2Model(config), 6)


def bert() -> LMDiscriminator:
    """An encoder: sees both ways, so padding must be masked."""
    config = BertConfig(
        vocab_size=11, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip
    return LMDiscriminator(BertModel(config, add_pooling_layer=False), 6)


BUILDERS = {
    "mlp": lambda: MLPDiscriminator(6, width=8),
    "attention_pool": lambda: AttentionPoolDiscriminator(6, width=8),
    "transformer": lambda: TransformerDiscriminator(6, width=8, heads=2),
    "qwen3": qwen3,
    "gpt2": gpt2,
    "bert": bert,
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
    # Qwen3's norms compute in fp32 whatever they are given, so differences must be large.
    single = isinstance(getattr(discriminator, "backbone", None), Qwen3Model)
    tolerances = {"eps": 1e-3, "atol": 1e-2, "rtol": 1e-2} if single else {}
    assert torch.autograd.gradgradcheck(
        lambda readout: discriminator(readout, mask), readout.requires_grad_(), **tolerances
    )


def test_pooled_mlps_do_not_see_the_order_of_tokens_and_the_others_do():
    readout, _ = sample()
    mask = torch.ones(3, 5, dtype=torch.bool)
    for name in BUILDERS:
        sees = name not in {"mlp", "attention_pool"}
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


def test_scores_do_not_depend_on_training_mode(discriminator):
    readout, mask = sample()
    assert torch.equal(discriminator.train()(readout, mask), discriminator.eval()(readout, mask))


def test_the_attention_pool_can_pick_one_token():
    torch.manual_seed(0)
    discriminator = AttentionPoolDiscriminator(6, width=8).double()
    readout, mask = sample()
    with torch.no_grad():
        discriminator.attention.weight.mul_(1e7)
    weights = discriminator.attention(discriminator.body(readout)).squeeze(-1).masked_fill(~mask, -torch.inf)
    best = readout[torch.arange(3), weights.argmax(1)].unsqueeze(1)
    torch.testing.assert_close(discriminator(readout, mask), discriminator(best, torch.ones(3, 1, dtype=torch.bool)))


def test_a_language_model_is_scored_at_its_last_real_token():
    torch.manual_seed(0)
    discriminator = qwen3().double()
    readout, mask = sample()
    hidden = discriminator.backbone(inputs_embeds=discriminator.embed(readout[1:2, :2])).last_hidden_state
    torch.testing.assert_close(discriminator(readout, mask)[1], discriminator.score(hidden[0, 1])[0])


def test_a_language_model_never_trains_embeddings_it_does_not_read():
    discriminator = gpt2().double()
    readout, mask = sample()
    discriminator(readout, mask).sum().backward()
    idle = {name for name, parameter in discriminator.named_parameters() if parameter.grad is None}
    assert idle == {"backbone.wte.weight"}
    assert not discriminator.backbone.wte.weight.requires_grad


def test_attention_without_second_derivatives_is_refused():
    config = Qwen3Config(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, attn_implementation="sdpa"
    )
    with pytest.raises(ValueError, match=r'sdpa attention lacks: call backbone.set_attn_implementation\("eager"\)'):
        LMDiscriminator(Qwen3Model(config), 6)


def test_a_discriminator_from_a_folder_keeps_the_weights_and_as_many_layers_as_asked(tmp_path):
    saved = tiny.model(layers=4, seed=3)
    tiny.save(tmp_path, saved, tiny.tokenizer())
    whole, part = pretrained_discriminator(str(tmp_path), 6), pretrained_discriminator(str(tmp_path), 6, layers=(2,))
    assert (len(whole.backbone.layers), len(part.backbone.layers)) == (4, 2)
    for index, layer in enumerate(part.backbone.layers):
        kept = saved.model.layers[2 * index + 1]
        assert torch.equal(layer.mlp.up_proj.weight, kept.mlp.up_proj.weight)
    readout, mask = sample()
    readout = readout.float().requires_grad_()
    (gradient,) = torch.autograd.grad(part(readout, mask).sum(), readout, create_graph=True)
    gradient.square().sum().backward()
    assert torch.isfinite(part.embed.weight.grad).all()
