"""Responses to the prompts of a step, from random Llamas of the shape of SmolLM2-135M, by the samplers that recipes train with.

- one at a time: the sampler is called for each prompt by itself: no padding, a key-value cache of one row.
- ours: it is called once, for one left-padded batch of all prompts with one key-value cache.

The end-of-text token is an id past the vocabulary, which no head can draw: each response has exactly `new_tokens` tokens, so
both write as many. Prompts are of even steps of length from `shortest` to `longest`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from gakd.samplers import ModelSampler, Sample, Sampler, Sampling, TeacherMixedSampler
from tests.benchmarks.work import Work, working_dtype

ALPHA = 0.2  # the teacher's share in MiniLLM's experiments


def build(parameters: dict[str, Any], implementation: str, device: torch.device) -> Work:
    sampler, samples, new_tokens = _sampler(parameters, device), _samples(parameters), parameters["new_tokens"]
    calls = [[sample] for sample in samples] if implementation == "one at a time" else [samples]

    def iterate() -> None:
        written = [len(sample.response_ids) for call in calls for sample in sampler(call, step=0)]
        if written != [new_tokens] * len(samples):
            raise RuntimeError(f"{len(samples)} responses of {new_tokens} tokens are timed, got lengths {written}")

    return Work(iterate)


def _sampler(parameters: dict[str, Any], device: torch.device) -> Sampler:
    special = SimpleNamespace(eos_token_id=parameters["vocabulary"], pad_token_id=0)
    words = cast(PreTrainedTokenizerBase, special)  # all that a sampler asks a tokenizer
    sampling = Sampling(max_new_tokens=parameters["new_tokens"])
    student = _model(parameters, device, seed=0)
    if parameters["sampler"] == "student":
        return ModelSampler(student, words, sampling)
    return TeacherMixedSampler(student, _model(parameters, device, seed=1), words, ALPHA, sampling)


def _model(parameters: dict[str, Any], device: torch.device, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=parameters["vocabulary"], hidden_size=parameters["width"], intermediate_size=parameters["mlp_width"],
        num_hidden_layers=parameters["layers"], num_attention_heads=parameters["heads"],
        num_key_value_heads=parameters["key_value_heads"], tie_word_embeddings=True,
    )  # fmt: skip
    model = cast(nn.Module, LlamaForCausalLM(config))  # transformers' own `to` is not typed
    return model.to(device, working_dtype(device))


def _samples(parameters: dict[str, Any]) -> list[Sample]:
    generator = torch.Generator().manual_seed(7)
    steps = torch.linspace(parameters["shortest"], parameters["longest"], parameters["prompts"])
    lengths = steps.round().int().tolist()
    return [
        Sample(torch.randint(parameters["vocabulary"], (length,), generator=generator).tolist(), [])
        for length in lengths
    ]
