"""Generation: padding, seeds, end of text, and nothing of the checkpoint's own generation config."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gakd.samplers import Generation, Sampling, generate
from tests import tiny

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [16, 17, 18, 19, 20], [21, 22], [23, 24, 25, 26]]
EOS = 258


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny products: where other jobs share the cores, threads that wait for each other take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def tiny_llama(scale: float) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 8
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model


def greedy_by_hand(model: torch.nn.Module, prompt: list[int], length: int, *ends: int) -> Generation:
    ids = list(prompt)
    for _ in range(length):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            return Generation(ids[len(prompt) :], token)
        ids.append(token)
    return Generation(ids[len(prompt) :])


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_greedy_batch_equals_one_by_one_without_padding(kind, tokenizer):
    model = tiny.model(tied=False, scale=30) if kind == "qwen3" else tiny_llama(scale=30)
    expected = [greedy_by_hand(model, prompt, 12, EOS) for prompt in PROMPTS]
    for batch_size in (1, 2, 4, 6):
        assert generate(model, tokenizer, PROMPTS, Sampling(12, temperature=0), batch_size) == expected
    assert len({tuple(generation.ids) for generation in expected}) > 1, "all responses are equal"


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_ends_at_end_of_text(pad_is_eos, tokenizer):
    """Whatever the padding token is, prompts that hold it included, a response ends at the first end-of-text token."""
    model = tiny.model(tied=False, scale=30)
    prompts = [[*prompt, EOS, 3] for prompt in PROMPTS]
    free = [greedy_by_hand(model, prompt, 12).ids for prompt in prompts]
    ending = next(token for token in free[0][4:] if token < 256)  # one that comes up by itself now ends the text
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ending)
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
        prompts[1] = [ending, *prompts[1]]
    expected = [greedy_by_hand(model, prompt, 12, ending, EOS) for prompt in prompts]
    assert {generation.finished for generation in expected} == {True, False}
    assert generate(model, tokenizer, prompts, Sampling(12, temperature=0), batch_size=6) == expected


def test_last_token_may_be_end_of_text(tokenizer):
    model = tiny.model(tied=False, scale=30)
    ids = greedy_by_hand(model, PROMPTS[0], 12).ids
    position = next(index for index in range(3, 12) if ids[index] < 256 and ids[index] not in ids[:index])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids[position])
    for length, finished in ((position + 1, True), (position, False)):
        cut = generate(model, tokenizer, PROMPTS[:1], Sampling(length, temperature=0))
        assert cut == [Generation(ids[:position], ids[position] if finished else None)]


def test_sampling_is_a_function_of_the_seed(tokenizer):
    model = tiny.model()
    first = generate(model, tokenizer, PROMPTS, Sampling(8, seed=10), batch_size=4)
    torch.rand(3)  # whatever the caller does with the generator in between
    assert generate(model, tokenizer, PROMPTS, Sampling(8, seed=10), batch_size=4) == first
    assert generate(model, tokenizer, PROMPTS, Sampling(8, seed=20), batch_size=4) != first


def test_the_callers_generator_is_untouched(tokenizer):
    model = tiny.model()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    generate(model, tokenizer, PROMPTS, Sampling(4))
    assert torch.equal(torch.rand(4), expected)


def test_samples_follow_the_whole_distribution(tokenizer):
    """With transformers' default top-k of 50, or the checkpoint's own below, most tokens would never come up."""
    model = tiny.model(tied=False, scale=0.01)
    model.generation_config.update(
        top_k=5, top_p=0.3, temperature=0.1, repetition_penalty=1.5, suppress_tokens=[*range(99)]
    )
    own = model.generation_config.to_dict()
    draws = generate(model, tokenizer, [[5]] * 4000, Sampling(1), batch_size=1000)
    counts = torch.bincount(torch.tensor([draw.ids[0] if draw.ids else EOS for draw in draws]), minlength=272)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[5]])).logits[0, -1].softmax(-1) * 4000
    chi_square = ((counts - expected).square() / expected).sum().item()
    assert chi_square < 365, "271 degrees of freedom: above 365 once in 10,000 honest runs"
    assert model.generation_config.to_dict() == own


def test_temperature_and_top_p(tokenizer):
    model = tiny.model(tied=False, scale=10)
    with torch.no_grad():
        probabilities = model(input_ids=torch.tensor([[5]])).logits[0, -1].softmax(-1)
        cold = model(input_ids=torch.tensor([[5]])).logits[0, -1].div(0.5).softmax(-1)
    ordered, ids = probabilities.sort(descending=True)
    nucleus = set(ids[: int((ordered.cumsum(0) < 0.5).sum()) + 1].tolist())
    draws = generate(model, tokenizer, [[5]] * 2000, Sampling(1, top_p=0.5), batch_size=1000)
    assert {draw.ids[0] if draw.ids else EOS for draw in draws} == nucleus
    draws = generate(model, tokenizer, [[5]] * 2000, Sampling(1, temperature=0.5), batch_size=1000)
    top = int(cold.argmax())
    share = sum((draw.ids or [EOS])[0] == top for draw in draws) / 2000
    assert share == pytest.approx(cold[top].item(), abs=0.05)
    assert abs(cold[top] - probabilities[top]) > 0.1, "temperature would change nothing here"


def test_modes_are_restored_also_after_an_error(tokenizer):
    model = tiny.model()
    model.train()
    model.model.layers[0].eval()  # a block that a caller keeps in evaluation mode
    before = {name: module.training for name, module in model.named_modules()}
    generate(model, tokenizer, PROMPTS, Sampling(2))
    assert {name: module.training for name, module in model.named_modules()} == before

    def fail(_: int) -> None:
        assert not model.training
        raise KeyboardInterrupt

    own = model.generation_config
    with pytest.raises(KeyboardInterrupt):
        generate(model, tokenizer, PROMPTS, Sampling(2), on_progress=fail)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.generation_config is own


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
def test_lora_adapters_take_part(tokenizer):
    pytest.importorskip("peft")
    from gakd.models import add_lora

    model = add_lora(tiny.model(tied=False, scale=30), rank=4, alpha=64, dropout=0.5)
    plain = generate(model, tokenizer, PROMPTS, Sampling(8, temperature=0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted = generate(model, tokenizer, PROMPTS, Sampling(8, temperature=0), batch_size=3)
    assert adapted != plain
    assert adapted == [greedy_by_hand(model.eval(), prompt, 8, EOS) for prompt in PROMPTS]


def test_progress_and_no_warnings(tokenizer, caplog):
    logger = logging.getLogger("transformers")  # it does not propagate to the root, where caplog listens
    logger.addHandler(caplog.handler)
    done: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for temperature in (0.0, 0.7):
            generate(tiny.model(), tokenizer, PROMPTS, Sampling(2, temperature), batch_size=4, on_progress=done.append)
    assert done == [4, 2, 4, 2]
    logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_refusals(tokenizer):
    assert generate(tiny.model(), tokenizer, [], Sampling(2)) == []
    with pytest.raises(ValueError, match="none at index 1"):
        generate(tiny.model(), tokenizer, [[3], []], Sampling(2))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        generate(tiny.model(), tokenizer, [[3]], Sampling(2), batch_size=0)
    for max_new_tokens, temperature, top_p in ((0, 1.0, 1.0), (4, -1.0, 1.0), (4, 1.0, 0.0), (4, 1.0, 1.1)):
        with pytest.raises(ValueError, match="sampling needs"):
            Sampling(max_new_tokens, temperature, top_p)
