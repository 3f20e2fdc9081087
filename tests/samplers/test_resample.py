"""Samplers: whose text, drawn from the right distribution, put back where it belongs, and the same after a resume."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from gakd import ramp
from gakd.data import collate
from gakd.samplers import Mixture, ModelSampler, Sample, Sampling, dataset_sampler, resample, samples_of

END, PAD, VOCAB = 3, 4, 5
TOKENIZER = cast(Any, SimpleNamespace(eos_token_id=END, pad_token_id=PAD))
SAMPLES = [
    Sample([0, 1, 2], [1, 2, END]),
    Sample([2], [0, END]),
    Sample([1, 1], [2, 2, 2, 2]),
    Sample([0, 2, 1, 1], [END]),
]


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, eos_token_id=END, pad_token_id=PAD, max_position_embeddings=64,
    )  # fmt: skip
    built = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        built.get_output_embeddings().weight.mul_(30)  # opinions: no two texts of like probability
    return built


def window():
    return [collate([sample.example for sample in SAMPLES[start : start + 2]], PAD) for start in (0, 2)]


def tensors(batches):
    return [value for batch in batches for value in batch if torch.is_tensor(value)]


def test_the_datasets_text_comes_back_to_the_last_bit():
    before = window()
    assert [sample for batch in before for sample in samples_of(batch)] == SAMPLES
    after = resample(before, dataset_sampler, 0, PAD)
    assert all(torch.equal(own, other) for own, other in zip(tensors(after), tensors(before), strict=True))
    assert [batch.lengths for batch in after] == [batch.lengths for batch in before]


def probability(model, prompt: list[int], response: tuple[int, ...], temperature: float) -> float:
    """Of a text that ends with its end-of-text token or is as long as texts may be, token by token."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double() / temperature
    return float(logits.log_softmax(-1)[range(len(response)), list(response)].sum().exp())


@torch.no_grad()
def test_a_models_text_is_drawn_from_its_distribution(model):
    """Every text of at most three tokens by enumeration, against 6,000 drawn for prompts of unlike lengths in one batch."""
    longest, count, temperature = 3, 3000, 0.8
    texts = [
        text
        for length in range(1, longest + 1)
        for text in itertools.product(range(VOCAB), repeat=length)
        if END not in text[:-1] and (text[-1] == END or length == longest)
    ]
    prompts = [[0, 1, 2, 1], [2]]
    sampler = ModelSampler(model, TOKENIZER, Sampling(max_new_tokens=longest, temperature=temperature, seed=7))
    drawn = sampler([Sample(prompts[index % 2], [END]) for index in range(2 * count)], step=3)
    cut = 0.0
    for index, prompt in enumerate(prompts):
        exact = {text: probability(model, prompt, text, temperature) for text in texts}
        assert sum(exact.values()) == pytest.approx(1, abs=1e-4)
        seen = Counter(tuple(sample.response_ids) for sample in drawn[index::2])
        assert seen.keys() <= exact.keys()
        for text, share in exact.items():
            assert abs(seen[text] / count - share) < 4.5 * (share * (1 - share) / count) ** 0.5 + 1e-4
        cut += sum(share for text, share in exact.items() if text[-1] != END) / 2
    assert sampler.truncated == pytest.approx(cut, abs=0.03)


def test_a_response_keeps_its_end_as_a_label_and_is_cut_where_the_window_ends(model):
    sampler = ModelSampler(model, TOKENIZER, Sampling(max_new_tokens=20, seed=1), max_length=6)
    batches = resample(window(), sampler, 0, PAD)
    drawn = [sample for batch in batches for sample in samples_of(batch)]
    assert [sample.prompt_ids for sample in drawn] == [sample.prompt_ids for sample in SAMPLES]
    assert all(1 <= len(sample.response_ids) <= 6 - len(sample.prompt_ids) for sample in drawn)
    ends = [sample.response_ids[-1] == END for sample in drawn]
    assert sampler.truncated == 1 - sum(ends) / 4
    assert any(ends)
    assert all(END not in sample.response_ids[:-1] for sample in drawn)


def test_a_step_draws_the_same_whenever_it_is_drawn_and_another_step_something_else(model):
    sampler = ModelSampler(model, TOKENIZER, Sampling(max_new_tokens=8, seed=5))
    state = torch.get_rng_state()
    first = sampler(SAMPLES, 4)
    assert torch.equal(torch.get_rng_state(), state)  # the run's own random numbers stay as they are
    assert ModelSampler(model, TOKENIZER, Sampling(max_new_tokens=8, seed=5))(SAMPLES, 4) == first
    assert sampler(SAMPLES, 5) != first
    other = ModelSampler(model, TOKENIZER, Sampling(max_new_tokens=8, seed=6))
    assert other(SAMPLES, 4) != first


def mark(token: int):
    """A sampler that answers with one token, and remembers how many prompts it was asked."""
    asked: list[int] = []

    def sampler(samples, step):
        asked.append(len(samples))
        return [sample._replace(response_ids=[token]) for sample in samples]

    sampler.asked = asked  # type: ignore[attr-defined]
    return sampler


def test_a_mixture_of_batches_flips_one_coin_a_step():
    one, other = mark(0), mark(1)
    mixture = Mixture([(0.3, one), (0.7, other)], per="batch", seed=2)
    steps = 2000
    answers = [mixture(SAMPLES, step) for step in range(steps)]
    assert all(len({sample.response_ids[0] for sample in answer}) == 1 for answer in answers)
    share = sum(answer[0].response_ids[0] == 0 for answer in answers) / steps
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / steps) ** 0.5
    assert set(one.asked) == set(other.asked) == {4}


def test_a_mixture_of_sequences_draws_for_each_and_keeps_their_places():
    mixture = Mixture([(1.0, mark(0)), (3.0, dataset_sampler)], per="sequence", seed=2)
    steps, own = 1000, 0
    for step in range(steps):
        answer = mixture(SAMPLES, step)
        for sample, before in zip(answer, SAMPLES, strict=True):
            assert sample.prompt_ids == before.prompt_ids
            assert sample.response_ids in ([0], before.response_ids)
            own += sample.response_ids == [0]
        assert mixture.counts == [
            sum(s.response_ids == [0] for s in answer),
            sum(s.response_ids != [0] for s in answer),
        ]
    assert abs(own / (4 * steps) - 0.25) < 4 * (0.25 * 0.75 / (4 * steps)) ** 0.5


def test_a_mixtures_weights_may_be_schedules_and_it_asks_nobody_it_does_not_need():
    first, second = mark(0), mark(1)
    mixture = Mixture([(ramp(1.0, start=5), first), (lambda step: float(step < 5), second)], seed=0)
    assert [mixture(SAMPLES, step)[0].response_ids for step in (4, 5)] == [[1], [0]]
    assert first.asked == second.asked == [4]
    with pytest.raises(ValueError, match=r"and one is above, got \[0.0, 0.0\] at step 3"):
        Mixture([(0.0, first), (0.0, second)])(SAMPLES, 3)


def test_a_sampler_that_loses_samples_or_their_text_is_refused():
    with pytest.raises(ValueError, match=r"answers each sample with one: got \d+ for \d+"):
        resample(window(), lambda samples, step: samples[1:], 0, PAD)
    with pytest.raises(ValueError, match="has a prompt and a response, got one without at index 0"):
        resample(window(), lambda samples, step: [Sample([1], []), *samples[1:]], 0, PAD)


def test_importance_weights_stay_with_their_tokens():
    def weighing(samples: Sequence[Sample], step: int) -> list[Sample]:
        weighed = [sample._replace(weights=[float(token) for token in sample.response_ids]) for sample in samples]
        return [*weighed[:-1], weighed[-1]._replace(weights=None)]

    *batches, last = resample(window(), weighing, 0, PAD)
    for batch in batches:
        assert batch.row_values is not None
        assert batch.row_values.values["importance_weights"].tolist() == batch.labels_N.tolist()
    assert last.row_values is not None
    unweighed = last.lengths[-1]
    weights_N = last.row_values.values["importance_weights"]
    assert weights_N[-unweighed:].tolist() == [1.0] * unweighed
    assert weights_N[:-unweighed].tolist() == last.labels_N[:-unweighed].tolist()


def test_several_responses_to_a_prompt_come_in_rounds_of_the_window():
    batches = resample(window() * 3, dataset_sampler, 0, PAD)
    once = [sample for batch in window() for sample in samples_of(batch)]
    assert [sample for batch in batches for sample in samples_of(batch)] == once * 3
