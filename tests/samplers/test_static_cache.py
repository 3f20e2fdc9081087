"""A cache of one size writes what one that grows does; how large a batch may be."""

from __future__ import annotations

import pytest
import torch
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gakd.models.writing_bytes import BYTES_PER_LOGIT
from gakd.samplers import ModelSampler, Sample, Sampling, generate, static_cache
from gakd.samplers.batch_size import cache_entries, largest_batch, sequence_bytes, sequences_in
from tests import tiny
from tests.architectures import tiny_model

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [16, 17, 18, 19, 20], [21, 22]]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    return model


@pytest.fixture
def fixed(monkeypatch) -> list[tuple[int, int]]:
    """As on a GPU, but not compiled; rows and length of each cache that is asked for."""
    monkeypatch.setattr(static_cache, "serves", static_cache.writes_the_same)
    sizes, own = [], static_cache.cache_for

    def noting(writer, rows, length):
        sizes.append((rows, length))
        return own(writer, rows, length)

    monkeypatch.setattr(static_cache, "cache_for", noting)
    return sizes


@pytest.mark.parametrize("build", [tiny_llama, lambda: tiny.model(tied=False, scale=30)], ids=["llama", "qwen3"])
def test_greedy_text_is_that_of_a_cache_that_grows(build, fixed, tokenizer):
    model, greedy = build(), Sampling(12, temperature=0)
    expected = generate(model, tokenizer, PROMPTS, greedy, 3)
    assert fixed == [], "whoever writes now and then needs no graph"
    assert generate(model, tokenizer, PROMPTS, greedy, 3, often=True) == expected
    assert fixed == [(4, 3 + 12), (4, 7 + 12)]
    assert generate(model, tokenizer, PROMPTS, greedy, 3, often=True) == expected, "a cache that was used before"
    assert len({tuple(text.ids) for text in expected}) > 1


def test_one_cache_serves_batches_of_like_size_and_rows_that_fill_up_are_dropped(fixed, tokenizer):
    model = tiny_llama()
    samples = [Sample(prompt, [258]) for prompt in PROMPTS]
    sampler = ModelSampler(model, tokenizer, Sampling(12, seed=3), batch_size=64)
    first = sampler(samples, 0)
    cache = static_cache._CACHES[model][1]
    assert len(first) == len(samples)
    assert sampler(samples, 0) == first
    assert static_cache._CACHES[model][1] is cache
    assert cache.layers[0].keys.shape[:3] == (16, 2, 128)
    static_cache.cache_for(model, 16, 129)
    assert static_cache._CACHES[model][1] is not cache
    assert [static_cache.filled(rows, 64) for rows in (1, 16, 17, 33, 64)] == [16, 16, 32, 64, 64]
    assert [static_cache.filled(rows, 8) for rows in (1, 8)] == [8, 8], "never more than a card holds"


def test_what_cannot_be_compiled_says_so_once_and_writes_the_same_text(fixed, tokenizer, monkeypatch):
    model, random = tiny_llama(), Sampling(12, seed=3)
    expected = generate(model, tokenizer, PROMPTS, random, 3)
    monkeypatch.setattr(static_cache, "serves", lambda writer: static_cache._SERVES.get(writer, True))

    def fail(*_):
        torch.rand(3)  # some draws into a batch
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(static_cache, "cache_for", fail)
    with pytest.warns(
        UserWarning, match="LlamaForCausalLM could not be compiled .*: RuntimeError: no compiler$"
    ) as seen:
        assert generate(model, tokenizer, PROMPTS, random, 3, often=True) == expected
    assert len(seen) == 1


def test_a_full_card_is_no_reason_to_write_slowly(fixed, tokenizer, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(static_cache, "cache_for", fail)
    with pytest.raises(torch.OutOfMemoryError):
        generate(tiny_llama(), tokenizer, PROMPTS, Sampling(2), often=True)


def test_models_whose_cache_is_of_another_kind_keep_it():
    assert not static_cache.writes_the_same(tiny_model("Mamba", 0))
    assert static_cache.writes_the_same(tiny_llama())
    assert not static_cache.serves(tiny_llama()), "a CPU compiles nothing"


def test_each_shape_is_a_graph_of_its_own():
    assert static_cache.compile_config(torch.device("cuda")) == CompileConfig(dynamic=False, mode="reduce-overhead")
    assert static_cache.compile_config(torch.device("cpu")) is None


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
def test_a_step_is_traced_whole_once_a_shape_and_never_again_after_an_update(lora, fixed, tokenizer, monkeypatch):
    """The path that transformers takes on a GPU, by a backend that runs the traced graph as it is.

    The copy is in fp64 here, where no two tokens tie.
    """
    from torch._dynamo.utils import counters

    model = student = tiny_llama()
    if lora:
        pytest.importorskip("peft")
        from gakd.models import add_lora

        student = add_lora(model, rank=4, alpha=8, dropout=0.5)
    config = CompileConfig(dynamic=False, backend="eager", mode=None)
    config._compile_all_devices = True
    monkeypatch.setattr(static_cache, "compile_config", lambda device: config)
    sampler = ModelSampler(student, tokenizer, Sampling(12, temperature=0), batch_size=16, dtype=torch.float64)
    samples = [Sample(prompt, [258]) for prompt in PROMPTS]

    def in_turn(chosen: list[Sample]) -> list[Sample]:
        plain = generate(
            student, tokenizer, [sample.prompt_ids for sample in chosen], sampler.sampling, 8, dtype=torch.float64
        )
        return [Sample(sample.prompt_ids, text.response_ids) for sample, text in zip(chosen, plain, strict=True)]

    counters.clear()
    before = sampler(samples, 0)
    assert before == in_turn(samples)
    frames, breaks = counters["frames"]["ok"], sum(counters["graph_break"].values())
    assert frames > 0, "nothing was compiled"
    assert breaks == 0, dict(counters["graph_break"])
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn(weight.shape))
    after = sampler(samples[:3], 1)
    assert after == in_turn(samples[:3])
    assert after != before[:3]
    assert counters["frames"]["ok"] == frames, "compiled again"


def test_bytes_of_a_sequence_by_hand():
    model = tiny_llama()
    assert cache_entries(model) == (0, 3 * 2 * 2 * 8)
    cache, activations, mask = 96 * (5 + 7), 5 * (6 * 32 + 3 * 64), 5 * (5 + 7)
    assert sequence_bytes(model, 5, 7) == 2 * (cache + activations + mask) + BYTES_PER_LOGIT * 272
    state, per_token = cache_entries(tiny_model("Mamba", 0))
    assert per_token == 0
    assert state >= 0


def test_a_batch_is_the_largest_power_of_two_that_fits():
    assert [sequences_in(budget, 10) for budget in (5, 10, 19, 20, 79, 80, 639)] == [1, 1, 1, 2, 4, 8, 32]
    assert largest_batch([tiny_llama()], 5, 7) is None, "a CPU writes as one batch"


def test_a_sampler_writes_in_batches_of_the_bound(tokenizer, monkeypatch):
    model, samples = tiny_llama(), [Sample(prompt, [258]) for prompt in PROMPTS]
    monkeypatch.setattr(
        "gakd.samplers.model.largest_batch", lambda models, prompt, new: 2 if (prompt, new) == (7, 4) else 0
    )
    bounded = ModelSampler(model, tokenizer, Sampling(4, seed=3))
    given = ModelSampler(model, tokenizer, Sampling(4, seed=3), batch_size=2)
    expected, rows, own = given(samples, 1), [], model.generate

    def noting(**named):
        rows.append(len(named["input_ids"]))
        return own(**named)

    monkeypatch.setattr(model, "generate", noting)
    assert bounded(samples, 1) == expected
    assert rows == [2, 2, 1]


def test_what_a_batch_draws_depends_on_no_other(tokenizer):
    """Each has a seed of its own; the first has the sampling's, as a single one always had."""
    model, random = tiny_llama(), Sampling(9, seed=3)
    together = generate(model, tokenizer, PROMPTS, random, 2)
    first = generate(model, tokenizer, [PROMPTS[1], PROMPTS[4]], random, 2)
    assert [together[1], together[4]] == first
    longer = generate(model, tokenizer, [[30], [31], *(PROMPTS[index] for index in (2, 3, 0))], random, 2)
    assert longer[2:] == [together[index] for index in (2, 3, 0)]
