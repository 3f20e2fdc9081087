"""From a step's batches to a rollout and back: every token keeps its own numbers, whatever the cut into micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from gakd import CrossEntropy, Distiller, LocalTeacher, ReverseKL
from gakd.data import collate
from gakd.losses import PolicyGradient
from gakd.rewards import RewardToGo, TeacherLogRatio, Whiten
from gakd.samplers import Sample, model_log_probs, policy_log_probs, rollout_of, teacher_log_probs, with_advantages
from tests import tiny
from tests.architecture_table import two_rows
from tests.architectures import tiny_model

PAD = 256
SAMPLES = [
    Sample([1, 2, 3], [4, 5, 258]),
    Sample([9], [8, 258]),
    Sample([7, 7], [6, 6, 6, 6, 258]),
    Sample([5, 1, 2, 2], [258]),
]


def window(*sizes: int):
    batches, start = [], 0
    for size in sizes:
        batches.append(collate([sample.example for sample in SAMPLES[start : start + size]], PAD))
        start += size
    return batches


@pytest.fixture(scope="module")
def student():
    return tiny.model(seed=1, scale=5.0)


@pytest.fixture(scope="module")
def teacher():
    return LocalTeacher(tiny.model(vocab_size=280, width=48, seed=2, scale=9.0))


def plain_log_probs(model, sample: Sample, temperature: float, vocabulary: int | None = None) -> torch.Tensor:
    """By one forward of one text without padding."""
    ids = sample.prompt_ids + sample.response_ids
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids])).logits[0, :, :vocabulary] / temperature
    at = range(len(sample.prompt_ids) - 1, len(ids) - 1)
    return torch.stack([logits_TV[t].log_softmax(-1)[ids[t + 1]] for t in at])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_a_plain_forward(student, teacher, temperature):
    batches = window(3, 1)
    distiller = Distiller(student, 1.0 * CrossEntropy())
    taught = [teacher(batch) for batch in batches]
    found = {
        "own": (policy_log_probs(distiller, batches, temperature=temperature), student, None),
        "shared": (policy_log_probs(distiller, batches, taught, temperature), student, 272),
        "teacher": (teacher_log_probs(batches, taught, temperature), teacher.model, None),
        "reference": (model_log_probs(student, batches, temperature), student, None),
    }
    for log_probs, model, vocabulary in found.values():
        expected = torch.cat([plain_log_probs(model, sample, temperature, vocabulary) for sample in SAMPLES])
        assert_close(torch.cat(log_probs), expected)


def test_beside_a_narrower_teacher_a_policy_gradient_is_over_the_students_whole_head(student):
    """Ratios are then exactly 1 before the first update; what compares with the teacher sees the tokens that both have."""
    narrow = LocalTeacher(tiny.model(vocab_size=260, width=48, seed=2, scale=9.0))
    batches = window(2, 2)
    distiller = Distiller(student, PolicyGradient() + ReverseKL())
    taught = [narrow(batch) for batch in batches]
    log_probs = policy_log_probs(distiller, batches)
    assert_close(torch.cat(log_probs), torch.cat([plain_log_probs(student, sample, 1.0) for sample in SAMPLES]))
    made = with_advantages(
        batches, rollout_of(batches, log_probs, teacher_log_probs(batches, taught)), TeacherLogRatio()
    )
    output = distiller(made[0], taught[0], _ones(distiller, "policy_gradient", "reverse_kl"))
    assert made[0].row_values is not None
    assert_close(output.token_losses["policy_gradient"], -made[0].row_values.values["advantages"])


def _ones(distiller, *names):
    from gakd.objective import Coefficients

    return Coefficients(dict.fromkeys(names, 1.0), 1.0, 1.0)


def test_dropout_is_off_while_log_probs_are_taken_and_on_again_after(student):
    dropped = tiny.model(seed=1, scale=5.0)
    dropped.config.attention_dropout = 0.5
    for layer in dropped.model.layers:
        layer.self_attn.attention_dropout = 0.5
    distiller = Distiller(dropped, 1.0 * CrossEntropy()).train()
    assert_close(
        torch.cat(policy_log_probs(distiller, window(4))),
        torch.cat(policy_log_probs(Distiller(student, 1.0 * CrossEntropy()), window(4))),
    )
    assert dropped.training


def test_a_rollout_holds_each_sequences_tokens_from_the_left():
    batches = window(3, 1)
    numbers = [batch.labels_N.double() for batch in batches]
    rollout = rollout_of(batches, numbers, [10 * values for values in numbers])
    for row, sample in enumerate(SAMPLES):
        length = len(sample.response_ids)
        assert rollout.mask_BT[row].tolist() == [True] * length + [False] * (5 - length)
        assert rollout.student_log_probs_BT[row, :length].tolist() == sample.response_ids
    assert rollout.teacher_log_probs_BT is not None
    assert_close(rollout.teacher_log_probs_BT, 10 * rollout.student_log_probs_BT)


@pytest.mark.parametrize("sizes", [(4,), (1, 1, 1, 1), (2, 2), (1, 3)])
def test_advantages_do_not_depend_on_micro_batches_or_padding(student, teacher, sizes):
    """Whitened over the whole step, and each token gets its own."""
    reward = TeacherLogRatio() >> RewardToGo(0.9) >> Whiten()
    distiller = Distiller(student, 1.0 * CrossEntropy())

    def advantages(batches):
        own = policy_log_probs(distiller, batches)
        of_teacher = teacher_log_probs(batches, [teacher(batch) for batch in batches])
        made = with_advantages(batches, rollout_of(batches, own, of_teacher), reward)
        return torch.cat([batch.row_values.values["advantages"] for batch in made])

    assert_close(advantages(window(*sizes)), advantages(window(3, 1)), rtol=1e-4, atol=1e-5)


def test_row_values_have_one_number_a_row(student):
    (batch,) = window(4)
    with pytest.raises(ValueError, match=r"advantages needs a value for each of 11 supervised rows, got shape \[10\]"):
        batch.with_row_values({"advantages": torch.zeros(10)})
    both = batch.with_row_values({"one": torch.zeros(11)}).with_row_values({"two": torch.ones(11)})
    assert both.row_values is not None
    assert both.row_values.values.keys() == {"one", "two"}


def test_ratios_are_one_before_the_first_update_whatever_the_students_dropout():
    """Attention's, the residual's and LoRA's: the pass is in training mode, the old log-probabilities are not."""
    peft = pytest.importorskip("peft", reason="the extra gakd[lora]")
    from gakd.models import add_lora

    dropped = tiny_model("GPT-2")
    assert {dropped.transformer.drop.p, dropped.transformer.h[0].attn.attn_dropout.p} == {0.1}
    dropped = add_lora(dropped, 4, 8, 0.5)
    assert isinstance(dropped, peft.PeftModel)
    with pytest.warns(UserWarning, match="dropout is off: a policy gradient"):
        distiller = Distiller(dropped, 1.0 * PolicyGradient()).train()
    batch = two_rows()
    (old,) = policy_log_probs(distiller, [batch])
    ones = torch.ones_like(old)
    batch = batch.with_row_values({"advantages": ones, "old_log_probs": old})
    losses = distiller(batch, None, _ones(distiller, "policy_gradient")).token_losses["policy_gradient"]
    assert_close(-losses, ones)
    assert dropped.get_base_model().config.attn_pdrop == 0.1, "what is exported is as it was"
