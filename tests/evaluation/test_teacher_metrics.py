"""Divergences to the teacher, against float64 logits computed example by example."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gakd.data import Example, Row
from gakd.evaluation import divergences_to_teacher, teacher_outputs
from gakd.losses import CrossEntropy, JensenShannon, ReverseKL

VOCABULARY = 61


def tiny_llama(seed: int, hidden: int, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def student() -> LlamaForCausalLM:
    return tiny_llama(0, hidden=32)


@pytest.fixture(scope="module")
def teacher() -> LlamaForCausalLM:
    return tiny_llama(1, hidden=48)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(5)

    def ids(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    row = Row(instruction="say", input="", responses=("said",))
    lengths = [(7, 2), (1, 9), (4, 4), (12, 1), (3, 15), (2, 2), (6, 6)]
    return [Example(prompt_ids=ids(prompt), response_ids=[*ids(response), 1], row=row) for prompt, response in lengths]


def by_hand(student, teacher, examples) -> dict[str, float]:
    student, teacher = student.double(), teacher.double()
    sums, tokens = torch.zeros(3, dtype=torch.float64), 0
    for example in examples:
        ids = torch.tensor([*example.prompt_ids, *example.response_ids])
        rows = slice(len(example.prompt_ids) - 1, len(ids) - 1)
        with torch.no_grad():
            log_q = student(input_ids=ids[None]).logits[0, rows].log_softmax(-1)
            log_p = teacher(input_ids=ids[None]).logits[0, rows, :VOCABULARY].log_softmax(-1)
        for label, q, p in zip(example.response_ids, log_q, log_p, strict=True):
            sums += torch.stack([-q[label], (p.exp() * (p - q)).sum(), (q.exp() * (q - p)).sum()])
            tokens += 1
    student.float()
    teacher.float()
    return dict(zip(("cross_entropy", "forward_kl", "reverse_kl"), (sums / tokens).tolist(), strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 20])
def test_against_float64_whatever_the_batch_size(student, teacher, examples, batch_size):
    expected = by_hand(student, teacher, examples)
    assert all(value > 0.1 for value in expected.values())
    assert divergences_to_teacher(student, teacher, examples, 0, batch_size) == pytest.approx(expected, rel=1e-5)


def test_tokens_weigh_alike_not_sequences(student, teacher, examples):
    """The mean of the examples' means is another number, so the corpus mean is not it by chance."""
    whole = divergences_to_teacher(student, teacher, examples, 0)
    each = [divergences_to_teacher(student, teacher, [example], 0) for example in examples]
    lengths = [len(example.response_ids) for example in examples]
    for name, value in whole.items():
        weighted = sum(length * one[name] for length, one in zip(lengths, each, strict=True)) / sum(lengths)
        assert weighted == pytest.approx(value, rel=1e-5)
        assert sum(one[name] for one in each) / len(each) != pytest.approx(value, rel=1e-3)


def test_padding_token_does_not_matter(student, teacher, examples):
    reference = divergences_to_teacher(student, teacher, examples, 0, batch_size=4)
    assert divergences_to_teacher(student, teacher, examples, 17, batch_size=4) == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize(("made_with", "used_with"), [(1, 4), (3, 2), (7, 7)])
def test_precomputed_teacher(student, teacher, examples, made_with, used_with):
    outputs = teacher_outputs(teacher, examples, 0, made_with)
    assert [len(output.hidden_NH) for output in outputs] == [len(example.response_ids) for example in examples]
    expected = divergences_to_teacher(student, teacher, examples, 0)
    assert divergences_to_teacher(student, outputs, examples, 0, used_with) == pytest.approx(expected, rel=1e-5)


def test_student_as_its_own_teacher(student, examples):
    result = divergences_to_teacher(student, student, examples, 0)
    assert result["forward_kl"] == pytest.approx(0, abs=1e-6)
    assert result["reverse_kl"] == pytest.approx(0, abs=1e-6)


def test_without_teacher_only_cross_entropy(student, teacher, examples):
    alone = divergences_to_teacher(student, None, examples, 0)
    assert list(alone) == ["cross_entropy"]
    assert alone == pytest.approx({"cross_entropy": by_hand(student, teacher, examples)["cross_entropy"]}, rel=1e-5)


def test_other_terms_and_a_padded_teacher_head(student, examples):
    wider = tiny_llama(2, hidden=48, vocabulary=VOCABULARY + 3)
    terms = (JensenShannon(1.0), ReverseKL(), CrossEntropy())
    result = divergences_to_teacher(student, wider, examples, 0, terms=terms)
    assert list(result) == ["jensen_shannon", "reverse_kl", "cross_entropy"]
    assert result["jensen_shannon"] == pytest.approx(result["reverse_kl"], rel=1e-5)
    assert result["reverse_kl"] == pytest.approx(by_hand(student, wider, examples)["reverse_kl"], rel=1e-5)


def test_modes_are_restored_and_nothing_gets_a_gradient(student, teacher, examples):
    student.train()
    divergences_to_teacher(student, teacher, examples, 0)
    assert student.training
    assert not teacher.training
    student.eval()
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not any(output.hidden_NH.requires_grad for output in teacher_outputs(teacher, examples, 0))


def test_refusals(student, teacher, examples):
    with pytest.raises(ValueError, match="got none"):
        divergences_to_teacher(student, teacher, [], 0)
    with pytest.raises(ValueError, match="got 2 for 7 examples"):
        divergences_to_teacher(student, teacher_outputs(teacher, examples[:2], 0), examples, 0)
    shuffled = teacher_outputs(teacher, examples[::-1], 0)
    with pytest.raises(ValueError, match="same examples in the same order"):
        divergences_to_teacher(student, shuffled, examples, 0)
    with pytest.raises(ValueError, match="batch_size"):
        divergences_to_teacher(student, None, examples, 0, batch_size=0)
