"""Text that two models write together: its exact distribution, its weights, and the same on sharded models."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, distributed, nn
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from gakd.models.writing import Writing
from gakd.samplers import Sample, Sampling, SpeculativeSampler, TeacherMixedSampler, generate
from tests.architectures import tiny_model
from tests.processes import two

END, PAD, VOCAB = 3, 4, 5
TOKENIZER = cast(Any, SimpleNamespace(eos_token_id=END, pad_token_id=PAD))
PROMPTS = [[0, 1, 2, 1], [2]]
SAMPLES = [Sample(prompt, [END]) for prompt in ([0, 1, 2], [2], [1, 1], [0, 2, 1, 1, 2])]
LONGEST, COUNT = 3, 3000
ALPHA, TEMPERATURE = 0.3, 0.8
STUDENT_SAMPLING = Sampling(LONGEST, temperature=1.5, top_p=0.9, seed=3)
TEACHER_SAMPLING = Sampling(LONGEST, temperature=2.0, top_p=0.8)
TEXTS = [
    text
    for length in range(1, LONGEST + 1)
    for text in itertools.product(range(VOCAB), repeat=length)
    if END not in text[:-1] and (text[-1] == END or length == LONGEST)
]


def toy(seed: int, width: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, eos_token_id=END, pad_token_id=PAD, max_position_embeddings=64,
        attention_dropout=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    built = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        built.get_output_embeddings().weight.mul_(20)  # opinions: no two texts of like probability
        for layer in built.model.layers:  # and eyes: what stands where counts
            layer.self_attn.q_proj.weight.mul_(20)
            layer.self_attn.o_proj.weight.mul_(20)
    return built


@pytest.fixture(scope="module")
def models() -> tuple[Qwen3ForCausalLM, Qwen3ForCausalLM]:
    return toy(0, 16), toy(1, 24)


@torch.no_grad()
def logits(model: nn.Module, prompt: list[int], responses: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of every token of each response `[T, V]`, in float64, from plain forwards without padding or cache."""
    exact, found = deepcopy(model).double(), {}
    for length in {len(response) for response in responses}:
        alike = [tuple(response) for response in responses if len(response) == length]
        ids = torch.tensor([[*prompt, *response] for response in alike])
        found |= zip(alike, exact(ids).logits[:, len(prompt) - 1 : -1].double(), strict=True)
    return [found[tuple(response)] for response in responses]


def warped(logits_V: Tensor, sampling: Sampling) -> list[float]:
    """Temperature, then the fewest most probable tokens that reach `top_p`, one by one."""
    probs = (logits_V / sampling.temperature).softmax(-1).tolist()
    kept, mass = set(), 0.0
    for token in sorted(range(len(probs)), key=lambda token: -probs[token]):
        if mass < sampling.top_p:
            kept.add(token)
            mass += probs[token]
    return [prob / mass if token in kept else 0.0 for token, prob in enumerate(probs)]


def mixed(student_V: Tensor, teacher_V: Tensor) -> list[float]:
    q, p = ((row / TEMPERATURE).softmax(-1) for row in (student_V, teacher_V))
    return (ALPHA * p + (1 - ALPHA) * q).tolist()


def speculated(student_V: Tensor, teacher_V: Tensor) -> list[float]:
    """At top-K 2: the student's mass among the teacher's two first, the rest as the teacher has it."""
    q, p, top = warped(student_V, STUDENT_SAMPLING), warped(teacher_V, TEACHER_SAMPLING), teacher_V.topk(2).indices
    rejected = sum(mass for token, mass in enumerate(q) if token not in top)
    return [(q[token] if token in top else 0.0) + rejected * p[token] for token in range(VOCAB)]


def text_probabilities(models, prompt: list[int], step) -> dict[tuple[int, ...], float]:
    """Of every text, by the chain rule."""
    found = {}
    for text, *rows in zip(TEXTS, *(logits(model, prompt, TEXTS) for model in models), strict=True):
        found[text] = math.prod(step(*pair)[token] for *pair, token in zip(*rows, text, strict=True))
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    return found


def assert_drawn_from(drawn: list[Sample], exact: dict[tuple[int, ...], float]) -> None:
    seen = Counter(tuple(sample.response_ids) for sample in drawn)
    assert seen.keys() <= exact.keys()
    for text, share in exact.items():
        assert abs(seen[text] / len(drawn) - share) < 4.5 * (share * (1 - share) / len(drawn)) ** 0.5 + 1e-4, text


def distance(left: dict[Any, float], right: dict[Any, float]) -> float:
    return sum(abs(left[text] - right[text]) for text in left) / 2


@pytest.fixture(scope="module")
def mixture(models):
    """The sampler and what it drew: COUNT texts for each of two prompts of unlike lengths, all in one batch."""
    sampler = TeacherMixedSampler(*models, TOKENIZER, ALPHA, Sampling(LONGEST, TEMPERATURE, seed=7))
    return sampler, sampler([Sample(PROMPTS[index % 2], [END]) for index in range(2 * COUNT)], step=3)


def test_mixed_text_has_the_mixtures_distribution(models, mixture):
    sampler, drawn = mixture
    cut = 0.0
    for index, prompt in enumerate(PROMPTS):
        exact = text_probabilities(models, prompt, mixed)
        assert_drawn_from(drawn[index::2], exact)
        for other in (models[::-1], models[:1] * 2, models[1:] * 2):
            assert distance(exact, text_probabilities(other, prompt, mixed)) > 0.1, "the models hardly differ"
        cut += sum(share for text, share in exact.items() if text[-1] != END) / 2
    assert sampler.truncated == sum(sample.response_ids[-1] != END for sample in drawn) / len(drawn)
    assert sampler.truncated == pytest.approx(cut, abs=0.03)


def weights_by_hand(models, sample: Sample, alpha: float, temperature: float) -> list[float]:
    q, p = ((logits(model, sample.prompt_ids, [sample.response_ids])[0] / temperature).softmax(-1) for model in models)
    places = range(len(sample.response_ids)), sample.response_ids
    return (q[places] / (alpha * p + (1 - alpha) * q)[places]).tolist()


def test_weights_are_those_of_a_plain_forward(models, mixture):
    """No padding, no cache, float64: whatever stands beside a prompt in its batch."""
    different = {(tuple(sample.prompt_ids), tuple(sample.response_ids)): sample for sample in mixture[1]}
    longer = TeacherMixedSampler(*models, TOKENIZER, 0.6, Sampling(12, seed=2))(SAMPLES * 3, 0)
    assert max(len(sample.response_ids) for sample in longer) > 6
    seen = []
    for samples, alpha, temperature in ((different.values(), ALPHA, TEMPERATURE), (longer, 0.6, 1.0)):
        for sample in samples:
            expected = weights_by_hand(models, sample, alpha, temperature)
            assert sample.weights == pytest.approx(expected, rel=1e-4, abs=1e-6)
            seen += expected
    assert min(seen) < 0.2
    assert max(seen) > 1.3


def test_positions_count_from_the_prompts_start():
    """GPT-2's are absolute: padding on the left must not shift them."""
    built = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=VOCAB, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=END, eos_token_id=END
        )
        built.append(GPT2LMHeadModel(config).eval())
        with torch.no_grad():
            for parameter in built[-1].parameters():
                parameter.mul_(5)
    drawn = TeacherMixedSampler(*built, TOKENIZER, 0.6, Sampling(4, seed=2))(SAMPLES * 3, 0)
    for sample in drawn:
        assert sample.weights == pytest.approx(weights_by_hand(built, sample, 0.6, 1.0), rel=1e-4, abs=1e-6)


def test_weighted_means_are_the_students(models, mixture):
    """E_p~[prod w f] = E_q[f], q at the temperature: within 4 standard errors, where plain means are far off."""
    functions = {
        "length": len,
        "cut": lambda text: float(text[-1] != END),
        "first": lambda text: float(text[0] == 1),
        "ones": lambda text: float(text.count(1)),
    }
    far = 0
    for index, prompt in enumerate(PROMPTS):
        q = text_probabilities(models, prompt, lambda student_V, _: (student_V / TEMPERATURE).softmax(-1).tolist())
        both = text_probabilities(models, prompt, mixed)
        drawn = mixture[1][index::2]
        products = torch.tensor([math.prod(sample.weights) for sample in drawn], dtype=torch.float64)
        for function in functions.values():
            values = torch.tensor([float(function(tuple(sample.response_ids))) for sample in drawn]).double()
            expected = sum(share * function(text) for text, share in q.items())
            squares = sum((share * function(text)) ** 2 / both[text] for text, share in q.items())
            error = ((squares - expected**2) / COUNT) ** 0.5
            assert abs((products * values).mean() - expected) < 4 * error
            far += bool(abs(values.mean() - expected) > 8 * error)
    assert far == 8


def test_without_a_teacher_in_the_mixture_weights_are_one(models):
    drawn = TeacherMixedSampler(*models, TOKENIZER, 0.0, Sampling(6, seed=1))(SAMPLES, 0)
    assert all(weight == pytest.approx(1, abs=1e-6) for sample in drawn for weight in sample.weights)
    assert [len(sample.weights) for sample in drawn] == [len(sample.response_ids) for sample in drawn]


def test_speculative_text_has_the_distribution_of_its_rule(models):
    sampler = SpeculativeSampler(*models, TOKENIZER, 2, STUDENT_SAMPLING, TEACHER_SAMPLING)
    drawn = sampler([Sample(PROMPTS[index % 2], [END]) for index in range(2 * COUNT)], step=3)
    for index, prompt in enumerate(PROMPTS):
        exact = text_probabilities(models, prompt, speculated)
        assert_drawn_from(drawn[index::2], exact)
        for own, sampling in ((0, STUDENT_SAMPLING), (1, TEACHER_SAMPLING)):
            alone = text_probabilities(models, prompt, lambda *rows, own=own, by=sampling: warped(rows[own], by))
            assert distance(exact, alone) > 0.1, "the rule hardly differs from one model's text"
    assert 0.2 < sampler.accepted < 0.95
    assert all(sample.weights is None for sample in drawn)


@pytest.mark.parametrize("name", ["Mamba", "RecurrentGemma", "MiniMax", "Qwen3"])
def test_models_without_a_cache_that_serves_write_their_own_text(name):
    """Recurrent models hand out none, and transformers' cache of MiniMax is not what its forward says."""
    student, teacher = tiny_model(name, 0), tiny_model(name, 1)
    greedy, samples = Sampling(5, temperature=0), [Sample([5, 6, 7], [8]), Sample([9], [8])]
    drawn = SpeculativeSampler(student, teacher, TOKENIZER, 97, greedy, greedy)(samples, 0)
    alone = generate(student, TOKENIZER, [sample.prompt_ids for sample in samples], greedy)
    assert [sample.response_ids for sample in drawn] == [generation.response_ids for generation in alone]


class Table(nn.Module):
    """A model whose next token depends on the last alone: a row of logits for each."""

    _gakd_writing = False, Writing(one_length=False, cached=True)  # it is none of transformers', and cannot be asked

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(rows))

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids], past_key_values=None)


def first_tokens(sampler, count: int = 4000, vocab_size: int = VOCAB) -> list[float]:
    drawn = sampler([Sample([0], [END])] * count, 0)
    ids = torch.tensor([sample.response_ids[0] for sample in drawn])
    return (torch.bincount(ids, minlength=vocab_size) / count).tolist()


def test_ranks_are_those_of_whole_logits():
    """Token 1 is the teacher's second, and outside its nucleus: it stays, and its equals there, 0, 3 and 4, do not."""
    teacher_V = torch.tensor([0.0, 5.0, 9.0, 2.0, 1.0])
    nucleus_V = teacher_V.masked_fill(teacher_V < 9, -math.inf)
    assert set(nucleus_V.topk(2).indices.tolist()) != {1, 2}, "ranks of the nucleus would do here"
    student, teacher = Table([[0.0] * VOCAB] * VOCAB), Table([teacher_V.tolist()] * VOCAB)
    sampler = SpeculativeSampler(student, teacher, TOKENIZER, 2, Sampling(1), Sampling(1, temperature=0.2, top_p=0.5))
    shares = first_tokens(sampler)
    assert [shares[token] for token in (0, 3, 4)] == [0, 0, 0]
    assert shares[1] == pytest.approx(0.2, abs=4 * 0.4 / 4000**0.5)
    assert sampler.accepted == pytest.approx(0.4, abs=4 * 0.5 / 4000**0.5)


def chain(*following: int) -> Table:
    return Table([[10.0 * (token == wanted) + 0.1 * token for token in range(VOCAB)] for wanted in following])


GREEDY = Sampling(4, temperature=0)


def test_accepted_counts_tokens_of_responses_alone():
    """[0]: the student's end, kept. [1]: a 2 that becomes the teacher's 0, then the student's end: 2 of 3 tokens."""
    student, teacher = chain(END, 2, 2, 0, 1), chain(END, 0, 0, 0, 0)
    sampler = SpeculativeSampler(student, teacher, TOKENIZER, 1, GREEDY, GREEDY)
    assert sampler([Sample([0], [1]), Sample([1], [1])], 0) == [Sample([0], [END]), Sample([1], [0, END])]
    assert (sampler.accepted, sampler.truncated) == (2 / 3, 0)


def test_top_k_may_decay_from_the_students_text_to_the_teachers():
    student, teacher = chain(1, 2, 0, 0, 0), chain(2, 0, 1, 0, 0)
    sampler = SpeculativeSampler(student, teacher, TOKENIZER, lambda step: VOCAB - step, GREEDY, GREEDY)
    for step, text, accepted in ((0, [1, 2, 0, 1], 1.0), (4, [2, 1, 0, 2], 0.0), (5, [2, 1, 0, 2], 0.0)):
        assert sampler([Sample([0], [END])], step) == [Sample([0], text)]
        assert (sampler.accepted, sampler.truncated) == (accepted, 1.0)
    with pytest.raises(ValueError, match="top_k is a number of tokens, at least 0, got -1 at step 6"):
        sampler([Sample([0], [END])], 6)


@pytest.mark.parametrize(("student_size", "teacher_size"), [(5, 7), (7, 5)])
def test_padded_vocabularies_are_cut_to_the_shared_one(student_size, teacher_size):
    """The fillers of the wider head, of high logits here, are never drawn and take no probability from the rest."""
    row = [0.0, 1.0, 2.0, 0.5, 1.5, 6.0, 6.0]
    student = Table([row[:student_size]] * student_size)
    teacher = Table([[1 - value if value < 6 else value for value in row][:teacher_size]] * teacher_size)
    q, p = torch.tensor(row[:5]).softmax(0), (1 - torch.tensor(row[:5])).softmax(0)
    mixed_V = 0.5 * p + 0.5 * q
    sampler = TeacherMixedSampler(student, teacher, TOKENIZER, 0.5, Sampling(1, seed=1))
    assert first_tokens(sampler, vocab_size=7) == pytest.approx([*mixed_V.tolist(), 0, 0], abs=4 * 0.5 / 4000**0.5)
    for sample in sampler([Sample([0], [END])] * 20, 1):
        (token,) = sample.response_ids
        assert sample.weights == pytest.approx([float(q[token] / mixed_V[token])], rel=1e-5)


def samplers(models, seed: int = 5, length: int = 8, max_length: int | None = None):
    sampling = Sampling(length, seed=seed)
    yield TeacherMixedSampler(*models, TOKENIZER, 0.4, sampling, max_length)
    yield SpeculativeSampler(*models, TOKENIZER, 2, sampling, Sampling(1, 0.5), max_length)


def test_responses_keep_their_end_and_are_cut_where_the_window_ends(models):
    for sampler in samplers(models, seed=2, length=20, max_length=6):
        drawn = sampler(SAMPLES * 5, 0)
        assert [sample.prompt_ids for sample in drawn] == [sample.prompt_ids for sample in SAMPLES * 5]
        assert all(1 <= len(sample.response_ids) <= 6 - len(sample.prompt_ids) for sample in drawn)
        assert all(END not in sample.response_ids[:-1] for sample in drawn)
        assert all(sample.weights is None or len(sample.weights) == len(sample.response_ids) for sample in drawn)
        cut = [sample.response_ids[-1] != END for sample in drawn]
        assert all(len(s.response_ids) == 6 - len(s.prompt_ids) for s, is_cut in zip(drawn, cut, strict=True) if is_cut)
        assert 0 < sampler.truncated == sum(cut) / len(cut) < 1
        assert sampler([], 0) == []
        assert sampler.truncated == 0


def test_a_step_draws_the_same_whenever_it_is_drawn_and_another_step_something_else(models):
    for sampler, again, other in zip(samplers(models), samplers(models), samplers(models, seed=6), strict=True):
        state = torch.get_rng_state()
        first = sampler(SAMPLES, 4)
        assert torch.equal(torch.get_rng_state(), state)  # the run's own random numbers stay as they are
        torch.rand(3)
        assert again(SAMPLES, 4) == first
        assert sampler(SAMPLES, 5) != first
        assert other(SAMPLES, 4) != first


def test_models_in_training_write_without_dropout_and_stay_in_training(models):
    expected = [sampler(SAMPLES, 0) for sampler in samplers(models)]
    training = [deepcopy(model).train() for model in models]
    training[1].model.layers[0].eval()  # a block that a caller keeps in evaluation mode
    before = [module.training for model in training for module in model.modules()]
    assert [sampler(SAMPLES, 0) for sampler in samplers(training)] == expected
    assert [module.training for model in training for module in model.modules()] == before
    ids = torch.tensor([[0, 1, 2, 1]])
    assert not torch.allclose(training[0](ids).logits, training[0](ids).logits), "dropout would change nothing here"


def test_refusals(models):
    for alpha in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"lies in \[0, 1\], got {alpha}"):
            TeacherMixedSampler(*models, TOKENIZER, alpha, Sampling(4))
    for sampling in (Sampling(4, temperature=0), Sampling(4, top_p=0.9)):
        with pytest.raises(ValueError, match="set temperature above 0 and top_p to 1, got temperature="):
            TeacherMixedSampler(*models, TOKENIZER, 0.2, sampling)
    for sampler in samplers(models):
        with pytest.raises(ValueError, match="a prompt needs at least one token, got none at index 1"):
            sampler([Sample([0], [END]), Sample([], [END])], 0)


RANKS = (PROMPTS[:1], [[0, 1], [2], [1, 1, 2], [0, 2]])  # whose prompts


def answers(models, prompts: list[list[int]]) -> list[list[Sample]]:
    """What `generate` and the two samplers write in some steps."""
    samples, written = [Sample(prompt, [END]) for prompt in prompts], []
    mixture, speculative = samplers(models, length=12)
    speculative.top_k = 4
    for step in range(4):
        plain = generate(models[0], TOKENIZER, prompts, Sampling(12, seed=step), len(prompts))
        written.append([Sample(prompt, each.response_ids) for prompt, each in zip(prompts, plain, strict=True)])
        written += [mixture(samples, step), speculative(samples, step)]
    return written


def one_rank(rank: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group(  # who waits for a rank that is done fails instead of hanging
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    models, mesh = (toy(0, 16), toy(1, 24)), init_device_mesh("cpu", (2,))
    for model in models:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    first = answers(models, RANKS[rank])
    assert answers(models, RANKS[rank]) == first  # also where FSDP2 left weights of the root gathered
    torch.save([[tuple(sample) for sample in answer] for answer in first], folder / f"{rank}.pt")
    distributed.barrier()
    os._exit(0)  # gloo's threads abort an orderly exit now and then


@pytest.mark.slow
def test_sharded_models_write_what_whole_ones_do_and_no_rank_waits_for_ever(models, tmp_path):
    expected = [answers(models, prompts) for prompts in RANKS]
    longest = [[max(len(sample.response_ids) for sample in answer) for answer in written] for written in expected]
    for index in range(3):  # generate, and each sampler
        assert longest[0][index::3] != longest[1][index::3], "both ranks are always done at the same step"
    two(one_rank, tmp_path)
    for rank, wanted in enumerate(expected):
        found = torch.load(tmp_path / f"{rank}.pt")
        for answer, other in zip(found, wanted, strict=True):
            assert [sample[:2] for sample in answer] == [sample[:2] for sample in other]
            for sample, whole in zip(answer, other, strict=True):
                assert sample[2] == (whole.weights and pytest.approx(whole.weights, rel=1e-4))
