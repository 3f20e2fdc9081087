"""A pruned student is the model that its own configuration builds, or is refused before it is trained."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from gakd.models import ModelError, load_backbone, prune_layers
from gakd.models.parts import backbone_of, decoder_layers
from gakd.models.pruning import cut_config, cut_layers
from tests.architecture_table import own_logits, two_rows
from tests.architectures import tiny_config, tiny_model

LISTS = {
    "layer_types": ("Gemma 3 (text)", [0, 3], lambda config: config.layer_types),
    "no_rope_layers": ("SmolLM3", [1, 3], lambda config: config.no_rope_layers),
    "mlp_only_layers": ("Qwen3-MoE", [0, 2], lambda config: config.mlp_only_layers),
    "activation_sparsity_pattern": ("Gemma 3n (text)", [1, 2, 3], lambda config: config.activation_sparsity_pattern),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_layers_are_cut(case):
    name, keep, read = LISTS[case]
    config = tiny_config(name)
    before, after = read(config), read(cut_config(config, keep))
    if case == "mlp_only_layers":
        assert (before, after) == ([0], [0])  # indices: layer 0 is kept, and is layer 0
        assert read(cut_config(config, [1, 2])) == []
    else:
        assert after == [before[index] for index in keep]
    assert read(config) == before, "the whole model's configuration is not touched"


def test_indices_of_all_layers_are_indices_still():
    """Llama 4 Scout's `moe_layers` are all of its layers: as long as the depth, and no list of one entry a layer."""
    config = tiny_config("Llama 4 (text)")
    config.moe_layers = [0, 1, 2, 3]
    assert cut_config(config, [0, 3]).moe_layers == [0, 1]


def test_a_number_that_counts_layers_follows_by_proof():
    """DeepSeek-V3's first layer is dense: without it none is, and the weights say so."""
    model = tiny_model("DeepSeek-V3")
    assert model.config.first_k_dense_replace == 1
    assert cut_layers(model, [0, 2]).config.first_k_dense_replace == 1
    assert cut_layers(model, [2, 3]).config.first_k_dense_replace == 0


def test_tensors_with_a_part_for_each_layer_are_cut():
    """Gemma 3n embeds each token once for each layer, in one table."""
    model, keep = tiny_model("Gemma 3n (text)"), [0, 1, 2]
    pruned = prune_layers(model, keep)
    table, cut = (own.model.embed_tokens_per_layer.weight for own in (model, pruned))
    width = model.config.hidden_size_per_layer_input
    assert cut.shape == (len(table), len(keep) * width)
    assert torch.equal(cut.view(len(table), 3, width), table.view(len(table), 4, width)[:, keep])


@pytest.mark.parametrize(
    "name", ["Qwen3", "Gemma 2", "GPT-2", "Mixtral", "DeepSeek-V3", "SmolLM3", "Gemma 3", "Qwen2.5-VL"]
)
def test_a_pruned_model_read_by_transformers_alone_is_the_same(name, tmp_path):
    pruned, batch = prune_layers(tiny_model(name), [1, 3]), two_rows()
    pruned.save_pretrained(tmp_path)
    kind = (
        AutoModelForCausalLM
        if type(pruned.config) in AutoModelForCausalLM._model_mapping
        else AutoModelForImageTextToText
    )
    loaded = kind.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(own_logits(loaded, batch), own_logits(pruned, batch))


def test_kept_layers_do_what_they_did():
    """Each layer's output for the input that it had in the whole model, its position's rotation or none included."""
    model = tiny_model("SmolLM3")
    assert model.config.no_rope_layers == [1, 0, 1, 0]
    seen: dict[int, tuple] = {}
    for index, layer in enumerate(decoder_layers(model)):
        layer.register_forward_hook(
            lambda _, inputs, named, output, index=index: seen.update({index: (inputs, named, output)}),
            with_kwargs=True,
        )
    with torch.no_grad():
        model(input_ids=two_rows().input_ids, use_cache=False)
        for new, old in enumerate([0, 3]):
            inputs, named, output = seen[old]
            found = decoder_layers(prune_layers(model, [0, 3]))[new](*inputs, **named)
            torch.testing.assert_close(found, output)


def test_weights_are_shared_with_the_whole_model_not_copied():
    model = tiny_model("Qwen3")
    pruned = prune_layers(model, [1, 3])
    assert pruned.model.layers[0].mlp.up_proj.weight.data_ptr() == model.model.layers[1].mlp.up_proj.weight.data_ptr()
    assert len(model.model.layers) == 4
    assert all(parameter.requires_grad for parameter in pruned.parameters())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MiniCPM3", "would have residual_scale = "),  # scaled by depth
        ("DiffLlama", "would have self_attn.lambda_init = "),  # by place
        ("RWKV", "a model of its configuration has rwkv.blocks.0.pre_ln.weight besides"),
        ("Jamba", "a model of its configuration has model.layers.0.mamba.A_log besides"),
        ("OLMo Hybrid", "its configuration of 2 layers is refused: "),
    ],
)
def test_what_the_configuration_cannot_say_is_refused_by_name(name, reason):
    with pytest.raises(ModelError, match=r"cannot be pruned to these layers: ") as refused:
        prune_layers(tiny_model(name), [1, 3])
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_composite_is_cut_in_its_text_alone(tmp_path):
    model = tiny_model("Gemma 3")
    pruned = prune_layers(model, [1, 3])
    assert pruned.config.text_config.num_hidden_layers == 2
    assert pruned.config.vision_config.to_dict() == model.config.vision_config.to_dict()
    assert len(backbone_of(pruned).layers) == 2
    towers = {name: value for name, value in model.state_dict().items() if "vision" in name}
    assert towers
    assert all(torch.equal(pruned.state_dict()[name], value) for name, value in towers.items())


def test_a_backbone_keeps_its_attention_which_gradient_penalties_need(tmp_path):
    tiny_model("Qwen3").save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), layers=(1, 3))
    assert backbone.config._attn_implementation == "eager"
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 4
    assert len(backbone.layers) == 2
