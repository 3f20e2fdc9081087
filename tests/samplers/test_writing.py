"""Text that transformers writes is the model's own, whatever it does with padding and caches."""

from __future__ import annotations

import pytest
import torch

from gakd.samplers.config import Sampling
from gakd.samplers.generation import generate
from gakd.samplers.writing import batches, writing_of
from tests.architecture_table import check_text, tokenizer
from tests.architectures import tiny_model

PROMPTS = [[5, 6, 7], [8], [9, 10, 11], [12, 13], [14, 15, 16], [17]]


def test_prompts_of_like_length_share_a_batch():
    assert batches([tiny_model("Qwen3")], PROMPTS, 4) == [[1, 5, 3, 0], [2, 4]]


def test_prompts_of_one_length_where_padding_shows():
    model = tiny_model("RWKV")
    assert batches([model], PROMPTS, 2) == [[1, 5], [3], [0, 2], [4]]
    assert batches([tiny_model("Qwen3"), model], PROMPTS, 8) == [[1, 5], [3], [0, 2, 4]]


@pytest.mark.parametrize("name", ["RWKV", "Llama 4 (text)", "RecurrentGemma", "MiniMax", "Mamba", "Qwen3"])
def test_greedy_text_is_the_models_own(name):
    assert check_text(tiny_model(name)) >= 3  # a token at least of each of three responses


def test_a_model_is_asked_once():
    model, calls = tiny_model("Qwen3"), []
    writing_of(model)
    model.register_forward_hook(lambda *_: calls.append(1))
    writing_of(model)
    assert calls == []


def test_a_model_is_proven_in_its_own_precision_whoever_asks():
    model = tiny_model("Qwen3")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    with torch.autocast("cpu", torch.bfloat16):
        assert writing_of(model) == (False, True)


def test_sampling_does_not_depend_on_having_been_asked():
    sampling, words = Sampling(max_new_tokens=6, seed=3), tokenizer()
    first, second = tiny_model("Qwen3"), tiny_model("Qwen3")
    writing_of(first)
    state = torch.get_rng_state()
    assert generate(first, words, PROMPTS, sampling) == generate(second, words, PROMPTS, sampling)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mixture_of_experts_that_asks_for_its_routers_logits_writes_the_same():
    """Transformers' loss of them takes the mask of all tokens and the logits of one, and fails."""
    model, greedy, words = tiny_model("Mixtral"), Sampling(4, temperature=0), tokenizer()
    expected = generate(model, words, PROMPTS, greedy)
    model.config.output_router_logits = True
    assert generate(model, words, PROMPTS, greedy) == expected
    assert model.config.output_router_logits
