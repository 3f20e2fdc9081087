"""Generation stops at every end that is known, and an exported student keeps them all."""

from __future__ import annotations

import json

import pytest
import torch

from gakd.data import end_ids
from gakd.models import write_folder
from gakd.samplers import Generation, ModelSampler, Sample, Sampling, UntilEnd, decode, generate, samples_of
from gakd.samplers.two_models import TeacherMixedSampler
from gakd.types import Batch
from tests import tiny
from tests.chat_shapes import shapes

ENDOFTEXT, START, END = 256, 257, 258


@pytest.fixture
def words():
    """A base model's: its end of text is not what ends a turn."""
    words = tiny.tokenizer()
    words.eos_token = "<|endoftext|>"
    return words


def always(token: int, vocab_size: int = 272):
    """A model that writes one token, whatever it reads."""
    model = tiny.model(vocab_size, tied=False)
    model.lm_head = torch.nn.Linear(model.lm_head.in_features, vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[token] = 100.0
    return model


@pytest.mark.parametrize(("token", "by"), [(ENDOFTEXT, "tokenizer"), (END, "template"), (START, "generation config")])
def test_each_end_stops_whoever_knows_it(words, token, by):
    model = always(token)
    model.generation_config.eos_token_id = [START, 5]  # 5 is an ordinary byte, what a configuration may have by default
    assert end_ids(words, model) == [ENDOFTEXT, START, END]
    (one,) = generate(model, words, [[1, 2]], Sampling(6))
    assert one == Generation([], token)
    assert one.finished
    assert one.response_ids == [token]
    sampler = ModelSampler(model, words, Sampling(6))
    assert sampler([Sample([1, 2], [3])], 0) == [Sample([1, 2], [token])]
    assert sampler.truncated == 0
    if by != "generation config":  # which the other model lacks
        both = TeacherMixedSampler(always(token), always(token), words, 0.5, Sampling(6))
        assert both([Sample([1, 2], [3])], 0)[0].response_ids == [token]


def test_an_ordinary_token_ends_nothing(words):
    model = always(5)
    model.generation_config.eos_token_id = [5]
    (one,) = generate(model, words, [[1, 2]], Sampling(4))
    assert one == Generation([5] * 4)
    assert not one.finished


def test_an_exported_student_keeps_every_end(words, tmp_path):
    model = tiny.model()
    model.generation_config.eos_token_id = [START, ENDOFTEXT]
    write_folder(model, words, tmp_path / "student", end_ids(words, model))
    kept = json.loads((tmp_path / "student" / "generation_config.json").read_text())["eos_token_id"]
    assert kept == [ENDOFTEXT, START, END]
    model.generation_config.eos_token_id = None
    words.eos_token = "<|im_end|>"
    write_folder(model, words, tmp_path / "one", end_ids(words, model))
    assert json.loads((tmp_path / "one" / "generation_config.json").read_text())["eos_token_id"] == END


def test_texts_that_are_compared_end_alike(words):
    samples = [Sample([1], [7, END, 198]), Sample([1], [7, 8]), Sample([1], [ENDOFTEXT, 9])]
    assert [sample.response_ids for sample in UntilEnd(words)(samples, 0)] == [[7, END], [7, 8], [ENDOFTEXT]]


def test_of_channels_the_last_one_is_the_answer():
    words = shapes()["gptoss"].tokenizer

    def generation(text):
        return Generation(words(text, add_special_tokens=False)["input_ids"], words.eos_token_id)

    thought = "<|channel|>analysis<|message|>add<|end|><|start|>assistant<|channel|>final<|message|>It is 4."
    assert decode(words, [generation("<|channel|>final<|message|>It is 4."), generation(thought)]) == ["It is 4."] * 2
    assert decode(words, [generation("no channel")]) == ["no channel"]


def test_a_sampler_refuses_several_turns_in_one_sequence():
    labels = torch.tensor([[-100, 5, -100, 7]])
    batch = Batch.of(torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 4, dtype=torch.long), labels)
    with pytest.raises(ValueError, match="give --train-on last"):
        samples_of(batch)
