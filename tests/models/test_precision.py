"""Frozen weights in 16 bits train adapters as frozen weights in 32 do under autocast, and are exported without loss."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gakd.models import ModelConfig, head_of, load_model, load_student, write_folder
from gakd.models.fingerprints import untrained_mark
from gakd.models.heads import hidden_rows
from gakd.models.lora import base_of
from tests import tiny
from tests.architecture_table import tokenizer, two_rows
from tests.architectures import tiny_model

peft = pytest.importorskip("peft", reason="the extra gakd[lora]")

BF16 = torch.bfloat16
NAMES = ["Llama", "Qwen3", "Gemma 3"]
# Multipliers, one projection of all, convolutions, experts, latent attention, a vision-language model, a state space.
MORE = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("Granite", "Phi-3", "LFM2", "Mixtral", "DeepSeek-V3", "Qwen2.5-VL", "OLMo 2", "Mamba")
]
SAME = {"Llama", "Granite", "Phi-3", "Qwen2.5-VL", "OLMo 2"}


def saved(name, folder):
    """A tiny model of weights that bf16 holds exactly, in fp32 on disk."""
    model = tiny_model(name).to(BF16).float()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def students(name, folder, rank=4):
    """The same student with its frozen weights in fp32 and in bf16, the same adapters that do something in both."""
    config = ModelConfig(saved(name, folder), lora_rank=rank, lora_dropout=0.0)
    single, half = load_student(config), load_student(config, BF16)
    torch.manual_seed(1)
    for own, other in zip(trained(single), trained(half), strict=True):
        own.data.copy_(0.05 * torch.randn_like(own))
        other.data.copy_(own.data)
    return single, half


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def hidden_and_gradients(model, mixed=True):
    with torch.autocast("cpu", BF16, enabled=mixed):
        hidden_NH = hidden_rows(model, two_rows())
    torch.manual_seed(2)
    loss = (hidden_NH * torch.randn(hidden_NH.shape)).sum()
    return hidden_NH, torch.autograd.grad(loss, trained(model), allow_unused=True)


def apart(found, exact):
    """Relative difference of all that two lists of tensors hold."""
    found, exact = (torch.cat([own.detach().double().flatten() for own in some]) for some in (found, exact))
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_adapters_learn_as_exactly_as_with_all_weights_in_fp32(name, tmp_path):
    """Autocast rounds with either; 16-bit weights of the same values add next to nothing, and nothing at all without a norm
    of queries and keys, whose product with its weight stays in fp32 where that is."""
    single, half = students(name, tmp_path)
    frozen = [parameter for parameter in half.parameters() if not parameter.requires_grad]
    assert {weight.dtype for weight in frozen} == {BF16}
    assert {weight.dtype for weight in trained(half)} == {torch.float32}
    (hidden, gradients), (other, others) = hidden_and_gradients(half), hidden_and_gradients(single)
    exact, wanted = hidden_and_gradients(copy.deepcopy(single), mixed=False)
    assert hidden.dtype == torch.float32
    reached = [index for index, own in enumerate(wanted) if own is not None]
    assert reached == [index for index, own in enumerate(gradients) if own is not None]
    gradients, others, wanted = ([some[index] for index in reached] for some in (gradients, others, wanted))
    assert {own.dtype for own in gradients} == {torch.float32}
    assert 0 < apart([hidden], [exact]) < 1.2 * apart([other], [exact])
    assert 0 < apart(gradients, wanted) < 1.2 * apart(others, wanted)
    assert apart([hidden], [other]) < 0.02
    if name in SAME:
        assert torch.equal(hidden, other)
        assert all(map(torch.equal, gradients, others))


def test_without_autocast_it_is_an_ordinary_model_in_16_bits(tmp_path):
    _, half = students("Qwen3", tmp_path)
    plain = load_model(str(tmp_path), BF16)
    with half.disable_adapter(), torch.no_grad():
        assert torch.equal(hidden_rows(half, two_rows()), hidden_rows(plain, two_rows()))
        assert hidden_rows(half, two_rows()).dtype == BF16


@pytest.mark.parametrize("name", ["Qwen3", "GPT-2"])
def test_the_export_is_merged_in_fp32(name, tmp_path):
    """`W + scale B A` of the very weights that were trained on; an update of 1e-3 of a weight would round away in bf16."""
    _, half = students(name, tmp_path / "source")
    for parameter in trained(half):
        parameter.data.mul_(0.1)
    head = head_of(half).weight
    assert head.dtype == BF16
    expected = {}
    for own, module in base_of(half).named_modules():
        if hasattr(module, "lora_A"):
            update = 2.0 * module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()
            weight = module.base_layer.weight.double()
            expected[own] = weight + (update if isinstance(module.base_layer, nn.Linear) else update.T) * 32 / 4 / 2.0
    write_folder(half, tokenizer(), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    exported = load_model(str(tmp_path / "out"))
    assert expected
    for own, wanted in expected.items():
        found = exported.get_submodule(own).weight.double()
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
        assert not torch.equal(found, half.get_submodule(f"base_model.model.{own}").base_layer.weight.double())
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {torch.float32}
    assert {weight.dtype for weight in trained(half)} == {torch.float32}  # the student goes on as it was
    assert head_of(half).weight.dtype == BF16


def test_a_run_knows_in_which_precision_it_was_begun(tmp_path):
    single, half = students("Qwen3", tmp_path)
    assert untrained_mark(single) != untrained_mark(half)


def test_all_weights_that_train_are_in_fp32_whatever_is_asked(tmp_path):
    tiny.save(tmp_path, tiny.model(), tiny.tokenizer())
    student = load_student(ModelConfig(str(tmp_path), lora_rank=0), BF16)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
