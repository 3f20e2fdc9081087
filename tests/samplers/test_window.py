"""Nothing is drawn that does not fit, nor what is cut off again."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gakd.samplers import ModelSampler, Sample
from gakd.samplers.config import Sampling
from gakd.samplers.generation import generate
from tests.architecture_table import tokenizer
from tests.architectures import tiny_model


def gpt2(window: int = 16) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=2, n_positions=window, eos_token_id=2, bos_token_id=1
    )
    return GPT2LMHeadModel(config).eval()


def test_a_window_is_filled_and_not_left():
    """Beyond it a table of positions has no row: IndexError, in the middle of a step."""
    prompts = [list(range(5, 5 + length)) for length in (3, 11, 15, 3)]
    found = generate(gpt2(), tokenizer(), prompts, Sampling(max_new_tokens=40, temperature=0))
    for prompt, generation in zip(prompts, found, strict=True):
        alone = generate(gpt2(), tokenizer(), [prompt], Sampling(max_new_tokens=40, temperature=0))[0]
        assert generation == alone
        assert generation.finished or len(prompt) + len(generation.ids) == 16


def test_a_prompt_that_fills_the_window_is_refused():
    with pytest.raises(
        ValueError, match="a prompt of 16 tokens fills the model's window of 16: lower --max-prompt-length"
    ):
        generate(gpt2(), tokenizer(), [list(range(5, 21))], Sampling(max_new_tokens=4))


def test_no_more_is_drawn_than_is_kept():
    model, steps = tiny_model("Qwen3"), []
    samples = [Sample(list(range(5, 5 + length)), [2]) for length in (4, 7)]
    sampler = ModelSampler(model, tokenizer(), Sampling(max_new_tokens=400, temperature=0), max_length=14)
    sampler(samples, 0)
    model.register_forward_hook(lambda *_: steps.append(1))
    found = sampler(samples, 0)
    assert len(steps) == 10
    assert all(len(sample.prompt_ids) + len(sample.response_ids) <= 14 for sample in found)


@pytest.mark.parametrize(
    "settings", [{"temperature": float("inf")}, {"temperature": float("nan")}, {"max_new_tokens": 1.5}]
)
def test_numbers_that_make_no_text_are_refused(settings):
    with pytest.raises(ValueError, match=r"sampling needs a whole max_new_tokens >= 1, a finite temperature >= 0"):
        Sampling(**settings)


@pytest.mark.parametrize("vocab_size", [20, 97, None])
def test_no_token_is_drawn_that_its_reader_does_not_have(vocab_size):
    """A teacher of a narrower head: at its embeddings the token would be an IndexError."""
    samples = [Sample(list(range(5, 5 + length)), [2]) for length in (4, 4, 7, 5)]
    sampler = ModelSampler(tiny_model("Qwen3"), tokenizer(), Sampling(max_new_tokens=30), vocab_size=vocab_size)
    drawn = {token for sample in sampler(samples, 0) for token in sample.response_ids}
    assert (max(drawn) < 20) == (vocab_size == 20)
    plain = ModelSampler(tiny_model("Qwen3"), tokenizer(), Sampling(max_new_tokens=30))
    assert (sampler(samples, 0) == plain(samples, 0)) == (vocab_size != 20)
