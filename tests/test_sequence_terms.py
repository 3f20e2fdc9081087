"""Terms of one's own that give a loss a sequence: their gradient, what it may depend on, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from gakd import Counts, CrossEntropy, Distiller, Divergence, LocalTeacher, SequenceRows, Term, ramp
from tests import tiny
from tests.test_distiller import VOCAB, assert_same, batch_of, sequences


class SameMeaning(nn.Module, Term):
    """The mean hidden state of a response, mapped to the teacher's width, should point where the teacher's does."""

    name, unit = "same_meaning", "sequence"

    def __init__(self, student_width: int = 32, teacher_width: int = 48) -> None:
        super().__init__()
        self.map = nn.Linear(student_width, teacher_width, bias=False)

    def sequence_losses(self, rows: SequenceRows) -> torch.Tensor:
        student_BH = self.map(rows.batch.sequence_means(rows.hidden_NH))
        return 1 - cosine_similarity(student_BH, rows.batch.sequence_means(rows.teacher_hidden_NH), dim=-1)


class Step:
    def __init__(self, weight=0.7) -> None:
        self.student = tiny.model(VOCAB, seed=1, scale=3.0)
        self.teacher_model = tiny.model(VOCAB, width=48, tied=False, seed=2)
        self.teacher = LocalTeacher(self.teacher_model)
        torch.manual_seed(3)
        self.term = SameMeaning()
        self.distiller = Distiller(self.student, 0.3 * CrossEntropy() + weight * self.term)

    def run(self, batches, step: int = 0):
        coefficients = self.distiller.objective.coefficients(step, Counts.over(*batches))
        outputs = [self.distiller(batch, self.teacher(batch), coefficients) for batch in batches]
        for output in outputs:
            output.loss.backward()
        return outputs, {name: weight.grad for name, weight in self.distiller.named_parameters()}


def test_loss_and_gradients_are_those_of_plain_autograd():
    step, batch = Step(), batch_of(sequences())
    (output,), gradients = step.run([batch])
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    own = Step()
    student = own.student.model(**arguments).last_hidden_state
    with torch.no_grad():
        teacher = own.teacher_model.model(**arguments).last_hidden_state
    losses = []
    for row in range(len(batch.labels)):
        mask = batch.mask[row]
        mapped = own.term.map.weight @ student[row, mask].mean(0)
        losses.append(1 - cosine_similarity(mapped, teacher[row, mask].mean(0), dim=0))
    logits = own.student(**arguments).logits[batch.mask]
    token = nn.functional.cross_entropy(logits, batch.labels[batch.mask])
    loss = 0.3 * token + 0.7 * torch.stack(losses).mean()
    loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.token_losses["same_meaning"], torch.stack(losses).detach())
    expected = {f"student.{name}": weight.grad for name, weight in own.student.named_parameters()}
    expected["sequence_modules.0.map.weight"] = own.term.map.weight.grad
    assert_same(gradients, expected)


def test_micro_batches_padding_and_order_leave_the_gradient_alone():
    rows = sequences()
    _, expected = Step().run([batch_of(rows)])
    for batches in ([batch_of(rows[:1]), batch_of(rows[1:])], [batch_of(rows, extra=7)], [batch_of(rows[::-1])]):
        assert_same(Step().run(batches)[1], expected)


def test_a_term_that_rests_is_not_asked_and_its_weights_get_a_zero_gradient():
    step, batch = Step(ramp(1.0, start=1)), batch_of(sequences(3))
    (output,), gradients = step.run([batch])
    assert set(output.token_losses) == {"cross_entropy"}
    assert torch.count_nonzero(gradients["sequence_modules.0.map.weight"]) == 0
    (output,), gradients = step.run([batch], step=1)
    assert output.token_losses["same_meaning"].shape == (3,)
    assert torch.count_nonzero(gradients["sequence_modules.0.map.weight"]) > 0
    counts = Counts.over(batch)
    assert step.distiller.objective.means({"same_meaning": 6.0}, counts) == {"same_meaning": 2.0}


def test_a_sequence_without_supervised_rows_is_left_out():
    """Whatever a term says of it: here a mean of nothing."""

    class Mean(Term):
        name, unit = "mean", "sequence"

        def sequence_losses(self, rows):
            count_B = rows.batch.sequence_sums(rows.hidden_NH.new_ones(len(rows.hidden_NH)))
            return rows.batch.sequence_sums(rows.hidden_NH.sum(-1)) + torch.where(count_B == 0, torch.inf, 0.0)

    class Plain(Mean):
        def sequence_losses(self, rows):
            return rows.batch.sequence_sums(rows.hidden_NH.sum(-1))

    batch = batch_of(sequences(3))
    labels = batch.labels.clone()
    labels[1] = -100
    silent = type(batch).of(batch.input_ids, batch.attention_mask, labels)
    found = []
    for term in (Mean(), Plain()):
        student = tiny.model(VOCAB, seed=1)
        distiller = Distiller(student, term)
        output = distiller(silent, None, distiller.objective.coefficients(0, Counts.over(silent)))
        output.loss.backward()
        found.append((output.loss.detach(), student.model.norm.weight.grad))
        assert output.token_losses["mean"][1] == 0
    assert Counts.over(silent).sequences == 2
    torch.testing.assert_close(found[0], found[1])


def test_rows_come_to_sequences_as_a_loop_brings_them():
    batch = batch_of(sequences())
    values_NK = torch.randn(len(batch.rows_N), 3, dtype=torch.float64, requires_grad=True)
    sums_BK, means_BK = batch.sequence_sums(values_NK), batch.sequence_means(values_NK)
    parts = values_NK.split(list(batch.lengths))
    torch.testing.assert_close(sums_BK, torch.stack([part.sum(0) for part in parts]))
    torch.testing.assert_close(means_BK, torch.stack([part.mean(0) for part in parts]))
    torch.testing.assert_close(batch.sequence_means(values_NK[:, 0]), means_BK[:, 0])
    assert torch.autograd.gradcheck(batch.sequence_means, (values_NK,))


def test_it_trains_with_the_students_optimizer():
    step, batch = Step(), batch_of(sequences())
    optimizer = torch.optim.AdamW(step.distiller.parameters(), lr=3e-3)
    means = []
    for _ in range(8):
        (output,), _ = step.run([batch])
        optimizer.step()
        optimizer.zero_grad()
        means.append(float(output.token_losses["same_meaning"].mean()))
    assert means[-1] < 0.7 * means[0]


class Feature(Term):
    name = "feature"


class OfNobody(Term):
    name, unit = "of_nobody", "sequence"


class WithParameters(nn.Module, Divergence):
    name = "with_parameters"

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def losses(self, student_log_probs_NV, teacher_log_probs_NV):
        return self.factor * (student_log_probs_NV - teacher_log_probs_NV).abs().sum(-1)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Feature(), "feature is a loss a token, and Feature lacks needs_teacher, .* subclass gakd.Divergence"),
        (OfNobody(), r"of_nobody is a loss a sequence, and OfNobody lacks sequence_losses\(rows\)"),
        (WithParameters(), "has parameters of its own, which no loss a token trains"),
    ],
)
def test_a_term_that_nobody_could_ask_or_train_is_refused_where_it_is_given(term, message):
    with pytest.raises(TypeError, match=message):
        Distiller(tiny.model(VOCAB), CrossEntropy() + 0.1 * term)


class Answers(Term):
    name, unit = "answers", "sequence"

    def __init__(self, answer) -> None:
        self.answer = answer

    def sequence_losses(self, rows):
        return self.answer(rows)


@pytest.mark.parametrize(
    ("answer", "teacher", "message"),
    [
        (lambda rows: rows.hidden_NH.mean(), True, r"must return one loss a sequence, \(3,\), got \(\)"),
        (lambda rows: 0.5, True, r"one loss a sequence, \(3,\), got float"),
        (lambda rows: rows.batch.sequence_means(rows.hidden_NH.detach().sum(-1)), True, "have no gradient to the student"),
        (lambda rows: rows.batch.sequence_means(rows.teacher_hidden_NH.sum(-1)), False, "the step has none"),
    ],
)  # fmt: skip
def test_answers_that_are_no_losses_are_refused(answer, teacher, message):
    batch = batch_of(sequences(3))
    distiller = Distiller(tiny.model(VOCAB), Answers(answer))
    said = LocalTeacher(tiny.model(VOCAB, width=48, tied=False, seed=2))(batch) if teacher else None
    with pytest.raises(ValueError, match=message):
        distiller(batch, said, distiller.objective.coefficients(0, Counts.over(batch)))


def test_a_teacher_of_some_rows_is_no_teacher_of_sequences():
    batch = batch_of(sequences(3))
    said = LocalTeacher(tiny.model(VOCAB, width=48, tied=False, seed=2))(batch)
    said.rows, said.hidden_NH = torch.arange(4), said.hidden_NH[:4]
    distiller = Distiller(tiny.model(VOCAB), SameMeaning())
    with pytest.raises(ValueError, match=r"in each of \d+ supervised rows, got 4"):
        distiller(batch, said, distiller.objective.coefficients(0, Counts.over(batch)))
