"""Generation on the card: the CPU's own greedy text, the same text of a seed, and the caller's generators left alone."""

from __future__ import annotations

import random

import pytest
import torch

from gakd.samplers.config import Sampling
from gakd.samplers.generation import generate
from tests import tiny

PROMPTS = [[random.Random(index).randrange(256) for _ in range(3 + 2 * index)] for index in range(5)]


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


def test_greedy_text_is_the_cpus(device, words):
    model = tiny.model(scale=20.0)
    sampling = Sampling(12, temperature=0.0)
    expected = generate(model, words, PROMPTS, sampling, batch_size=2)
    found = generate(model.to(device), words, PROMPTS, sampling, batch_size=2)
    # Of random weights two tokens may be as likely to a thousandth; a way of its own would differ in most.
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    assert same >= len(PROMPTS) - 1


def test_a_seed_gives_its_text_and_leaves_the_callers_generators_alone(device, words):
    model = tiny.model().to(device)
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    texts = [generate(model, words, PROMPTS, Sampling(8, seed=seed), batch_size=5) for seed in (1, 1, 2)]
    after = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert torch.equal(state, after)


def test_weights_in_bf16_write_too(device, words):
    found = generate(tiny.model().to(device, torch.bfloat16), words, PROMPTS, Sampling(8, top_p=0.9), batch_size=3)
    assert len(found) == len(PROMPTS)
    assert all(1 <= len(one.response_ids) <= 8 for one in found)
