"""One whole step on real (tiny) language models: what runs, what is allocated, what a gradient may depend on."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torch.utils._python_dispatch import TorchDispatchMode

from gakd import (
    IGNORE_INDEX,
    Adversarial,
    Batch,
    CenteredLogitReadout,
    CrossEntropy,
    Distiller,
    HiddenReadout,
    LocalTeacher,
    RelativisticGAN,
    ReverseKL,
    TransformerDiscriminator,
    ramp,
)
from gakd.objective import Counts, Objective
from tests import tiny

VOCAB = 331  # a prime: no other size of the step is equal to it by chance


def sequences(count: int = 6, seed: int = 0) -> list[tuple[list[int], int]]:
    """Token ids and the length of the prompt among them, very uneven."""
    generator = torch.Generator().manual_seed(seed)
    built = []
    for index in range(count):
        length = int(torch.randint(5, 30, (), generator=generator)) + 8 * (index % 2)
        ids = torch.randint(0, VOCAB, (length,), generator=generator).tolist()
        built.append((ids, int(torch.randint(2, length - 2, (), generator=generator))))
    return built


def batch_of(rows: list[tuple[list[int], int]], extra: int = 0) -> Batch:
    length = max(len(ids) for ids, _ in rows) - 1 + extra
    input_ids, mask, labels = (torch.full((len(rows), length), fill) for fill in (0, 0, IGNORE_INDEX))
    for row, (ids, prompt) in enumerate(rows):
        size = len(ids) - 1
        input_ids[row, :size], mask[row, :size] = torch.tensor(ids[:-1]), 1
        labels[row, prompt - 1 : size] = torch.tensor(ids[prompt:])
    return Batch.of(input_ids, mask, labels)


class Step:
    """Student, teacher, adversary and objective, built the same way every time."""

    def __init__(self, tied: bool = True, chunk_rows: int | None = None, teacher_vocab: int = VOCAB) -> None:
        self.student = tiny.model(VOCAB, tied=tied, seed=1, scale=3.0)
        self.teacher_model = tiny.model(teacher_vocab, width=48, layers=3, tied=False, seed=2, scale=5.0)
        torch.manual_seed(3)
        self.adversarial = Adversarial(
            TransformerDiscriminator(8, width=16, heads=2), RelativisticGAN(2.0, 3.0), CenteredLogitReadout(VOCAB, 8)
        )
        self.objective: Objective = 0.5 * CrossEntropy() + 0.5 * ReverseKL() + 0.1 * self.adversarial
        self.teacher = LocalTeacher(self.teacher_model)
        self.distiller = Distiller(self.student, self.objective, chunk_rows).train()

    def run(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Gradients of one optimizer step over some micro-batches."""
        tokens = sum(int(batch.mask.sum()) for batch in batches)
        counts = Counts(tokens, sum(len(batch.labels) for batch in batches))
        coefficients = self.objective.coefficients(0, counts)
        for batch in batches:
            teacher_output = self.teacher(batch)
            output = self.distiller(batch, teacher_output, coefficients)
            game = self.adversarial(output, teacher_output, batch, coefficients)
            (output.loss + game.loss).backward()
        self.adversarial.flush()
        modules = {"student": self.student, "adversarial": self.adversarial}
        return {f"{name}.{key}": p.grad for name, module in modules.items() for key, p in module.named_parameters()}


def assert_same(gradients: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        difference = (gradient - expected[name]).norm() / expected[name].norm().clamp(min=1e-8)
        assert difference < tolerance, f"{name}: relative difference {difference:.2e}"


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal_the_plain_models_own(tied):
    """Token terms through the distiller = transformers' logits, torch's losses, divided by the tokens."""
    step = Step(tied)
    step.objective = 0.5 * CrossEntropy() + 0.5 * ReverseKL()
    step.distiller = Distiller(step.student, step.objective)
    batch = batch_of(sequences())
    output = step.distiller(
        batch, step.teacher(batch), step.objective.coefficients(0, Counts(int(batch.mask.sum()), 6))
    )
    output.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in step.student.named_parameters()}
    step.student.zero_grad()

    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    log_q = step.student(**arguments).logits[batch.mask].log_softmax(-1)
    log_p = step.teacher_model(**arguments).logits[batch.mask].log_softmax(-1)
    loss = 0.5 * cross_entropy(log_q, batch.labels[batch.mask])
    loss = loss + 0.5 * kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=1e-6)
    assert_same(gradients, {name: parameter.grad for name, parameter in step.student.named_parameters()})


def test_padding_chunks_micro_batches_and_order_leave_the_gradient_alone():
    rows = sequences()
    expected = Step().run([batch_of(rows)])
    assert_same(Step().run([batch_of(rows, extra=11)]), expected)
    assert_same(Step(chunk_rows=5).run([batch_of(rows)]), expected)
    assert_same(Step().run([batch_of(rows[:1]), batch_of(rows[1:3]), batch_of(rows[3:])]), expected)
    assert_same(Step().run([batch_of(rows[::-1])]), expected)
    assert_same(Step().run([batch_of(rows[4:]), batch_of(rows[:4])]), expected)


def test_a_teacher_with_a_wider_padded_head_is_cut_to_the_shared_vocabulary():
    gradients = Step(teacher_vocab=VOCAB + 13).run([batch_of(sequences())])
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_masked_positions_get_exactly_no_gradient():
    step = Step()
    batch = batch_of(sequences())
    kept: list[Tensor] = []
    step.student.model.register_forward_hook(
        lambda *call: (call[2].last_hidden_state.retain_grad(), kept.append(call[2].last_hidden_state))[0]
    )
    step.run([batch])
    (hidden,) = kept
    assert torch.count_nonzero(hidden.grad[~batch.mask]) == 0
    assert (hidden.grad[batch.mask].abs().sum(-1) > 0).all()


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[int]]:
    calls: list[int] = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def test_one_backbone_forward_each_per_micro_batch_and_no_head_forward():
    step = Step()
    with (
        counted(step.student.model) as student,
        counted(step.teacher_model.model) as teacher,
        counted(step.student.lm_head) as student_head,
        counted(step.teacher_model.lm_head) as teacher_head,
    ):
        step.run([batch_of(sequences()[:3]), batch_of(sequences()[3:])])
    assert (len(student), len(teacher), len(student_head), len(teacher_head)) == (2, 2, 0, 0)


class AllocationWatch(TorchDispatchMode):
    """For every tensor that an operation returns with a vocabulary dimension: how many vocabularies long it is."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rows: list[int] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and (
                self.vocabulary in tensor.shape or tensor.numel() % self.vocabulary == 0
            ):
                self.rows.append(tensor.numel() // self.vocabulary)
        return result


def test_nothing_with_a_vocabulary_dimension_is_longer_than_one_chunk():
    # Hidden widths of 32 and 48 and a readout of 8 are the only other things that stand beside the vocabulary.
    step = Step(chunk_rows=50)
    batch = batch_of(sequences(count=40))
    assert batch.mask.sum() > 300
    with AllocationWatch(VOCAB) as watch:
        step.run([batch])
    assert max(watch.rows) == 50


def test_the_allocation_watch_sees_what_it_is_there_for():
    step = Step()
    batch = batch_of(sequences(count=40))
    with AllocationWatch(VOCAB) as watch:
        step.student(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    assert max(watch.rows) >= batch.labels.numel()


class WaitWatch(TorchDispatchMode):
    """Operations whose result a host must wait for before it can go on, and where they were called from."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "repeat_interleave")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function._schema.name.split("::")[1]
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in arguments[1])
        if name in self.WAITS or by_mask:
            frames = [frame for frame in traceback.extract_stack() if "torch/" not in frame.filename]
            self.seen.append(frames[-2].filename.rsplit("/", 1)[-1])
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("step_rows", [None, 1.0], ids=["factored", "direct"])
def test_nothing_in_the_inner_loop_waits_for_the_device(step_rows):
    step = Step()
    batches = [batch_of(sequences(count=40)), batch_of(sequences(count=40, seed=1))]
    coefficients = step.objective.coefficients(0, Counts(sum(sum(batch.lengths) for batch in batches), 80))
    if step_rows is not None:
        coefficients = coefficients._replace(step_rows=step_rows)
    with WaitWatch() as watch:
        for batch in batches:
            teacher_output = step.teacher(batch)
            output = step.distiller(batch, teacher_output, coefficients)
            game = step.adversarial(output, teacher_output, batch, coefficients)
            (output.loss + game.loss).backward()
        step.adversarial.flush()
    # transformers looks once a forward whether sequences are packed; nothing here does.
    assert set(watch.seen) <= {"masking_utils.py"}
    with WaitWatch() as watch:
        assert batches[0].mask.sum().item() > 0
    assert watch.seen == ["test_distiller.py"]


def test_an_objective_with_two_adversaries_is_refused():
    step = Step()
    torch.manual_seed(0)
    second = Adversarial(step.adversarial.discriminator, RelativisticGAN(), step.adversarial.readout, name="second")
    with pytest.raises(ValueError, match="holds one adversary"):
        Distiller(step.student, step.objective + 0.1 * second)


def test_the_adversary_is_no_part_of_the_wrapped_module():
    step = Step()
    assert {name.split(".")[0] for name, _ in step.distiller.named_parameters()} == {"student"}


def test_a_students_map_trains_with_the_student_and_waits_with_a_zero_gradient_until_the_game_begins():
    step = Step()
    step.adversarial = Adversarial(
        TransformerDiscriminator(48, width=16, heads=2), RelativisticGAN(), HiddenReadout(32, 48)
    )
    step.objective = 1.0 * CrossEntropy() + ramp(0.1, start=1) * step.adversarial
    step.distiller = Distiller(step.student, step.objective)
    weight = step.adversarial.readout.student_map.weight
    assert any(parameter is weight for parameter in step.distiller.parameters())
    assert not any(parameter is weight for parameter in step.adversarial.parameters())
    batch = batch_of(sequences())
    for index, moves in enumerate((False, True)):
        coefficients = step.objective.coefficients(index, Counts(len(batch.labels_N), 6))
        teacher_output = step.teacher(batch)
        output = step.distiller(batch, teacher_output, coefficients)
        (output.loss + step.adversarial(output, teacher_output, batch, coefficients).loss).backward()
        assert bool(weight.grad.abs().sum() > 0) is moves


@pytest.mark.parametrize(
    ("mask", "labels"),
    [
        ([[0, 1, 1]], [[-100, 5, 6]]),  # padded on the left
        ([[1, 0, 1]], [[5, -100, 6]]),
        ([[1, 1, 0]], [[5, 6, 7]]),  # a label on padding
        ([[0, 0, 0]], [[-100, -100, -100]]),
    ],
)
def test_a_batch_that_is_not_padded_on_the_right_or_has_labels_on_padding_is_refused(mask, labels):
    ids = torch.tensor([[4, 5, 6]])
    with pytest.raises(ValueError, match=r"padded on the right|padding has no label"):
        Batch.of(ids, torch.tensor(mask), torch.tensor(labels))


def test_one_object_as_student_and_teacher_says_what_to_do():
    model, batch = tiny.model(VOCAB), batch_of(sequences(2))
    objective = 1.0 * CrossEntropy() + 1.0 * ReverseKL()
    distiller = Distiller(model, objective).train()
    teacher = LocalTeacher(model)
    model.train()
    with pytest.raises(ValueError, match=r"two objects; give the teacher a copy"):
        distiller(batch, teacher(batch), objective.coefficients(0, Counts(len(batch.rows_N), 2)))


@pytest.mark.parametrize("rows", [0, -1])
def test_a_chunk_of_no_rows_is_refused(rows):
    with pytest.raises(ValueError, match="chunk_rows is a number of rows, at least 1"):
        Distiller(tiny.model(VOCAB), 1.0 * CrossEntropy(), chunk_rows=rows)
