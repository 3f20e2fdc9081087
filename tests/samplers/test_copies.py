"""Writing with weights in 16 bits: what the copy has, what it shares, and that the model never notices."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from gakd.samplers import ModelSampler, Sample, Sampling, TeacherMixedSampler, generate
from gakd.samplers.copies import _KEPT, writing
from tests import tiny

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [16, 17, 18, 19, 20]]
GREEDY = Sampling(12, temperature=0)
LOW = torch.bfloat16


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def model(seed: int = 0):
    return tiny.model(tied=False, scale=30, seed=seed)


def rounded(own):
    """A copy with parameters in 16 bits, as transformers loads them: tables of rotary angles stay in fp32."""
    low = copy.deepcopy(own)
    for weight in low.parameters():
        weight.data = weight.data.to(LOW)
    return low


def transformers_own(low, prompt: list[int]) -> list[int]:
    """Greedy, by transformers' generate alone."""
    config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=258, pad_token_id=256)
    ids = low.generate(input_ids=torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
    return ids[: ids.index(258) + 1] if 258 in ids else ids


def test_text_is_that_of_a_model_in_16_bits_and_the_model_keeps_its_bits(tokenizer):
    own = model()
    before = {name: weight.clone() for name, weight in own.state_dict().items()}
    low = rounded(own)
    expected = [transformers_own(low, prompt) for prompt in PROMPTS]
    assert [
        text.response_ids for text in generate(own, tokenizer, PROMPTS, GREEDY, dtype=LOW, batch_size=1)
    ] == expected
    assert [text.response_ids for text in generate(own, tokenizer, PROMPTS, GREEDY, batch_size=1)] != expected
    assert own.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in own.state_dict().items())
    assert own not in _KEPT, "who writes now and then keeps no copy"


def test_logits_of_the_copy_are_near_the_models(tokenizer):
    own, ids = model(), torch.tensor([PROMPTS[0]])
    with torch.no_grad(), writing(own, LOW) as writer:
        found, expected = writer(ids).logits.float(), own(ids).logits
    assert writer.dtype == LOW
    assert own.dtype == torch.float32
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02


def test_a_copy_that_is_kept_follows_every_update(tokenizer):
    own = model()
    sampler = ModelSampler(own, tokenizer, GREEDY, dtype=LOW)
    samples = [Sample(prompt, [258]) for prompt in PROMPTS]
    first, kept = sampler(samples, 0), _KEPT[own]
    address = kept.model.lm_head.weight.data_ptr()
    optimizer = torch.optim.AdamW(own.parameters(), lr=0.1)
    own(torch.tensor([PROMPTS[0]])).logits.square().mean().backward()
    optimizer.step()
    second = sampler(samples, 0)
    own.lm_head.weight.data.mul_(-1)  # behind autograd's back: no version tells of it
    third = sampler(samples, 0)
    assert _KEPT[own] is kept
    assert kept.model.lm_head.weight.data_ptr() == address, "compiled graphs read the weights where they were"
    assert len({str(first), str(second), str(third)}) == 3
    fresh = generate(copy.deepcopy(own), tokenizer, PROMPTS, GREEDY, len(PROMPTS), dtype=LOW)
    assert [sample.response_ids for sample in third] == [text.response_ids for text in fresh]


def test_a_copy_goes_with_its_model(tokenizer):
    own = model()
    with writing(own, LOW, keep=True):
        pass
    before = len(_KEPT)
    assert own in _KEPT
    del own
    gc.collect()
    assert len(_KEPT) == before - 1


def test_new_parameters_make_a_new_copy():
    own = model()
    with writing(own, LOW, keep=True) as first:
        pass
    own.lm_head.weight = torch.nn.Parameter(torch.zeros_like(own.lm_head.weight))
    with torch.no_grad(), writing(own, LOW, keep=True) as second:
        assert second is not first
        assert second(torch.tensor([[3]])).logits.abs().max() == 0


def test_what_is_in_16_bits_already_is_shared_and_nothing_is_cast_twice(tokenizer):
    own = model().to(LOW)
    with writing(own, LOW) as writer:
        assert writer is own
    own.lm_head.float()
    with writing(own, LOW) as writer:
        pairs = dict(own.named_parameters()), dict(writer.named_parameters())
        assert {name for name in pairs[0] if pairs[0][name] is not pairs[1][name]} == {"lm_head.weight"}
        assert all(one is other for one, other in zip(own.buffers(), writer.buffers(), strict=True))


def test_what_a_class_wants_in_fp32_stays_so():
    own = model()
    own._keep_in_fp32_modules_strict = {"norm", "layers.*.mlp.gate_proj"}
    with writing(own, LOW) as writer:
        precise = {name for name, weight in writer.named_parameters() if weight.dtype == torch.float32}
    assert precise == {name for name in dict(own.named_parameters()) if "norm" in name or "gate_proj" in name}


def test_tied_weights_stay_tied():
    with writing(tiny.model(tied=True), LOW) as writer:
        assert writer.lm_head.weight is writer.model.embed_tokens.weight
        assert writer.lm_head.weight.dtype == LOW


def test_autocast_around_it_changes_nothing(tokenizer):
    own, random = model(), Sampling(12, seed=3)
    expected = generate(own, tokenizer, PROMPTS, random, dtype=LOW)
    with torch.autocast("cpu", torch.float16):
        assert generate(own, tokenizer, PROMPTS, random, dtype=LOW) == expected


def test_layers_that_are_compiled_write_with_the_copys_weights(tokenizer):
    own = model()
    expected = generate(own, tokenizer, PROMPTS, GREEDY, dtype=LOW)
    for layer in own.model.layers:
        layer.compile(backend="eager")
    with writing(own, LOW) as writer:
        assert all(layer._compiled_call_impl is None for layer in writer.model.layers)
    assert generate(own, tokenizer, PROMPTS, GREEDY, dtype=LOW) == expected


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
def test_adapters_alone_are_copied_where_the_rest_is_in_16_bits(tokenizer):
    pytest.importorskip("peft")
    from gakd.models import add_lora

    student = add_lora(model().to(LOW), rank=4, alpha=64, dropout=0.5)
    base = student.get_base_model()
    for name, weight in student.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape)
    with writing(student, LOW) as writer:
        own, low = dict(base.named_parameters()), dict(writer.named_parameters())
        copied = {name for name in own if own[name] is not low[name]}
        assert copied == {name for name in own if "lora_" in name}
        assert {low[name].dtype for name in low} == {LOW}
    plain = generate(base, tokenizer, PROMPTS, GREEDY, dtype=LOW)
    for name, weight in student.named_parameters():
        if "lora_B" in name:
            weight.data.zero_()
    assert generate(student, tokenizer, PROMPTS, GREEDY, dtype=LOW) != plain


def test_two_models_write_from_copies_that_follow(tokenizer, monkeypatch):
    """As on a GPU, where both are in bf16: with the student's head turned, its share of the mixture is another."""
    monkeypatch.setattr("gakd.samplers.joint.writing", lambda model, keep: writing(model, LOW, keep))
    student, teacher = model(), model(seed=1)
    sampler = TeacherMixedSampler(student, teacher, tokenizer, 0.3, Sampling(8, seed=1))
    samples = [Sample(prompt, [258]) for prompt in PROMPTS]
    first = sampler(samples, 0)
    alone = TeacherMixedSampler(rounded(student), rounded(teacher), tokenizer, 0.3, Sampling(8, seed=1))
    assert alone(samples, 0) == first
    assert student.dtype == teacher.dtype == torch.float32
    student.lm_head.weight.data.mul_(-1)
    assert sampler(samples, 0) != first


def test_the_end_is_asked_for_at_every_eighth_token_and_text_is_the_same(tokenizer, monkeypatch):
    student, teacher = model(), model(seed=1)
    samples = [Sample(prompt, [258]) for prompt in PROMPTS]
    sampler = TeacherMixedSampler(student, teacher, tokenizer, 0.3, Sampling(21, seed=1))
    expected, asked = sampler(samples, 0), []
    monkeypatch.setattr("gakd.samplers.joint._every", lambda device: 8)
    monkeypatch.setattr("gakd.samplers.joint._any", lambda *_: asked.append(1) or True)
    assert sampler(samples, 0) == expected
    assert len(asked) == 3
