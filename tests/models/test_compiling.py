"""Compiled layers: the same hidden states and gradients, few graphs, and nothing left on the model."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from gakd.models import compiling, hidden_rows
from gakd.models.compiling import compile_layers, compiles
from gakd.models.lora import add_lora
from gakd.types import Batch

SIZES = {
    "vocab_size": 64, "hidden_size": 36, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 256,
}  # fmt: skip
SHAPES = [(2, 7), (3, 17), (1, 13), (5, 31), (1, 5)]  # sequences, positions


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    compiling._compiled.cache_clear()
    counters.clear()


def model_of(config_class):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_class(**SIZES)).train()


def batch_of(sequences, positions):
    ids_BT = torch.randint(64, (sequences, positions), generator=torch.Generator().manual_seed(positions))
    return Batch.of(ids_BT, torch.ones_like(ids_BT), ids_BT)


def hidden_and_gradients(model, batch):
    model.zero_grad()
    hidden_NH = hidden_rows(model, batch)
    hidden_NH.square().sum().backward()
    return hidden_NH.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config, Gemma3TextConfig])
def test_hidden_states_and_gradients_are_those_of_the_eager_model_whatever_the_shape(config_class):
    model, batches = model_of(config_class), [batch_of(*shape) for shape in SHAPES]
    eager = [hidden_and_gradients(model, batch) for batch in batches]
    compile_layers(model, "aot_eager")
    for batch, (hidden_NH, gradients) in zip(batches, eager, strict=True):
        found_NH, found = hidden_and_gradients(model, batch)
        torch.testing.assert_close(found_NH, hidden_NH)
        torch.testing.assert_close(found, gradients)
    after_all = counters["stats"]["unique_graphs"]
    assert after_all > 0  # the layers did run compiled
    kinds = 2 if config_class is Gemma3TextConfig else 1  # sliding layers and full ones
    assert after_all <= 2 * kinds + 1  # of one sequence and of several, not one a shape or a layer
    for shape in [(4, 9), (2, 40), (1, 21)]:
        hidden_and_gradients(model, batch_of(*shape))
    assert counters["stats"]["unique_graphs"] == after_all


@pytest.mark.slow
def test_what_inductor_makes_of_a_model_with_adapters_is_as_near_fp32_as_eager_autocast_is():
    model, batch = add_lora(model_of(Qwen3Config), rank=4, alpha=8, dropout=0.0), batch_of(3, 17)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    exact_NH, exact = hidden_and_gradients(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager_NH, eager = hidden_and_gradients(model, batch)
        compile_layers(model)
        found_NH, found = hidden_and_gradients(model, batch)
    assert counters["stats"]["unique_graphs"] > 0
    assert found.keys() == exact.keys()
    assert (found_NH - exact_NH).norm() <= 1.5 * (eager_NH - exact_NH).norm()
    apart, of_eager = (sum((one[name] - exact[name]).square().sum() for name in exact).sqrt() for one in (found, eager))
    assert apart <= 1.5 * of_eager


def test_generation_and_copies_see_the_model_as_it_was():
    model = model_of(LlamaConfig)
    compile_layers(model, "aot_eager")
    ids = torch.arange(6).view(1, 6)
    before = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert counters["stats"]["unique_graphs"] == 0
    hidden_rows(model, batch_of(2, 7))
    assert all("forward" not in layer.__dict__ for layer in model.model.layers)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.layers[0].mlp.up_proj.weight.zero_()
    assert not torch.equal(hidden_rows(twin, batch_of(2, 7)), hidden_rows(model, batch_of(2, 7)))
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0), before)


def test_a_compiler_that_fails_leaves_the_layers_eager_with_a_warning():
    model, batch = model_of(LlamaConfig), batch_of(2, 7)
    expected_NH = hidden_rows(model, batch)

    def refuses(graph, inputs):
        raise RuntimeError("no compiler here")

    compile_layers(model, refuses)
    with pytest.warns(UserWarning, match="torch.compile failed, layers run eagerly: backend='refuses'"):
        assert torch.equal(hidden_rows(model, batch), expected_NH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(hidden_rows(model, batch), expected_NH)


@pytest.mark.parametrize(
    ("wanted", "device", "expected"), [("auto", "cpu", False), ("on", "cpu", True), ("off", "cuda", False)]
)
def test_layers_are_compiled_by_default_on_cuda_alone(wanted, device, expected):
    assert compiles(wanted, torch.device(device)) is expected


def test_auto_needs_triton(monkeypatch):
    for found in (False, True):
        monkeypatch.setattr(compiling, "has_triton", lambda found=found: found)
        assert compiles("auto", torch.device("cuda")) is found
