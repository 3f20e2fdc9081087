"""Which way a readout takes, by counted multiply-adds; and the form that does not know the vocabulary."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gakd import Adversarial, FrozenHeadsReadout, Head, LogitReadout, MLPDiscriminator, RelativisticGAN, logit_readout
from gakd.adversary.readouts import frozen_heads
from gakd.adversary.readouts.protocol import rows_that_pay
from gakd.objective import Coefficients
from gakd.types import IGNORE_INDEX, Batch, StudentOutput, StudentRows, TeacherOutput

V, H_STUDENT, H_TEACHER, R = 3000, 24, 40, 16


def heads(trains=True, dtype=torch.float64, bias=False, vocab=V):
    torch.manual_seed(0)
    student = Head(torch.randn(vocab, H_STUDENT, dtype=dtype, requires_grad=trains), scale=0.5)
    teacher = Head(torch.randn(vocab + 7, H_TEACHER, dtype=dtype))
    if bias:
        student = student._replace(bias=torch.randn(vocab, dtype=dtype))
        teacher = teacher._replace(bias=torch.randn(vocab + 7, dtype=dtype))
    return student, teacher


def step(readout, student, teacher, lengths=(3, 5), step_rows=None, micro_batches=1):
    """A whole step on one batch, repeated: both players' gradients, as (losses, hidden gradient, readout, body)."""
    torch.manual_seed(1)
    dtype = student.weight.dtype
    labels = torch.full((len(lengths), max(lengths)), IGNORE_INDEX)
    for row, length in enumerate(lengths):
        labels[row, :length] = 0
    batch = Batch.of(torch.zeros_like(labels), torch.ones_like(labels), labels)
    adversarial = Adversarial(MLPDiscriminator(R, width=8), RelativisticGAN(3.0, 5.0), readout).to(dtype)
    rows = sum(lengths)
    hidden = torch.randn(rows, student.weight.shape[1], dtype=dtype, requires_grad=True)
    output_of_teacher = TeacherOutput(torch.randn(rows, teacher.weight.shape[1], dtype=dtype), teacher)
    coefficients = Coefficients({"adversarial": 0.5}, 0.5, rows if step_rows is None else step_rows)
    for _ in range(micro_batches):
        live = StudentRows(readout.live(hidden, student, coefficients.step_rows), hidden.detach())
        game = adversarial(StudentOutput(torch.zeros(()), {}, live), output_of_teacher, batch, coefficients)
        game.loss.backward()
    adversarial.flush()
    body = [parameter.grad for parameter in adversarial.discriminator.parameters()]
    return game.losses, hidden.grad, readout.weight.grad, body


class Flops(TorchDispatchMode):
    """torch's formulas without its counter, whose tracking of modules does not survive `autograd.grad` of a module's input."""

    total = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result, packet = function(*arguments, **(keywords or {})), function._overloadpacket
        if packet in flop_registry:
            self.total += flop_registry[packet](*arguments, **(keywords or {}), out_val=result)
        elif packet is torch.ops.aten.addmm_:
            (rows, inner), (_, columns) = arguments[1].shape, arguments[2].shape
            self.total += 2 * rows * inner * columns
        return result


def flops(rows: int, way: float, trains: bool) -> float:
    student, teacher = heads(trains, torch.float32)
    readout = LogitReadout(V, R)
    with Flops() as counter:
        step(readout, student, teacher, lengths=(rows,), step_rows=way)
    return counter.total


@pytest.mark.parametrize("trains", [True, False])
def test_the_chosen_way_is_never_the_one_of_more_multiply_adds(trains):
    # The two models switch at different numbers of rows; between them the choice beats both pure ways.
    pays = sorted([rows_that_pay(R, H_STUDENT, "student", trains), rows_that_pay(R, H_TEACHER, "teacher")])
    for rows in (int(pays[0]) - 1, int(pays[0]) + 1, int(sum(pays) / 2), int(pays[1]) - 1, int(pays[1]) + 2):
        factored, direct, chosen = (flops(rows, way, trains) for way in (float("inf"), 0.0, rows))
        assert chosen <= min(factored, direct)
        assert (chosen == direct) is (rows < pays[0])
        assert (chosen == factored) is (rows >= pays[1])


@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_the_rule_switches_exactly_at_the_boundary(owner):
    student, teacher = heads()
    readout = LogitReadout(V, R).double()
    width, trains = (H_STUDENT, True) if owner == "student" else (H_TEACHER, False)
    pays = rows_that_pay(R, width, owner, trains)
    for step_rows, formed in ((pays - 1e-9, False), (pays, True)):
        step(readout, student, teacher, step_rows=step_rows)  # flushes
        readout.live(torch.zeros(1, H_STUDENT, dtype=torch.float64), student, step_rows)
        readout.detached(torch.zeros(1, H_TEACHER, dtype=torch.float64), teacher, step_rows)
        assert (owner in readout._products._formed) is formed
        readout.flush()


def test_both_ways_agree_in_fp32_and_with_a_bf16_teacher():
    student, teacher = heads(dtype=torch.float32)
    for own in (teacher, Head(teacher.weight.bfloat16())):
        results = []
        for way in (0.0, float("inf")):
            torch.manual_seed(3)
            results.append(step(LogitReadout(V, R, centered=True), student, own, step_rows=way))
        tolerance = 1e-4 if own is teacher else 0.05  # direct logits are rounded to the head's bf16
        torch.testing.assert_close(
            results[0][2], results[1][2], rtol=tolerance, atol=tolerance * results[0][2].abs().max()
        )


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_frozen_heads_give_the_same_game_without_the_vocabulary(centered, bias, micro_batches):
    student, teacher = heads(trains=False, bias=bias)
    torch.manual_seed(2)
    full = LogitReadout(V, R, centered).double()
    frozen = FrozenHeadsReadout(student, teacher, full)
    assert frozen.weight.shape == (R, H_STUDENT + H_TEACHER + 2 * bias)
    losses, hidden, map_gradient, body = step(full, student, teacher, step_rows=1e9, micro_batches=micro_batches)
    same = step(frozen, student, teacher, micro_batches=micro_batches)
    for name, values in losses.items():
        torch.testing.assert_close(same[0][name], values, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(same[1], hidden, rtol=1e-7, atol=1e-12)
    for own, expected in zip(same[3], body, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-7, atol=1e-12)
    # dC = dE Q for some orthonormal Q of the span, found here by another way.
    columns = [student.weight * 0.5, teacher.weight[:V]]
    columns += [student.bias[:, None] * 0.5, teacher.bias[:V, None]] if bias else []
    span = torch.cat(columns, 1)
    basis, _ = torch.linalg.qr(span - span.mean(0) if centered else span)
    inside = map_gradient @ basis
    torch.testing.assert_close(same[2] @ same[2].T, inside @ inside.T, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("form", [FrozenHeadsReadout, lambda student, teacher, full: full], ids=["frozen", "full"])
def test_rows_are_as_exact_where_the_student_runs_in_mixed_precision(form):
    student, teacher = heads(trains=False, dtype=torch.float32, bias=True)
    readout = form(student, teacher, LogitReadout(V, R, centered=True))
    hidden = torch.randn(5, H_STUDENT)
    rows = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            rows.append(readout.live(hidden, student, 1e9).detach())
        readout.flush()
    torch.testing.assert_close(rows[1], rows[0], rtol=0, atol=0)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        given = {own.untyped_storage().data_ptr() for own in arguments if isinstance(own, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
            self.elements = max(self.elements, result.numel())
        return result


def test_the_basis_needs_one_block_of_the_vocabulary_at_a_time(monkeypatch):
    monkeypatch.setattr(frozen_heads, "BLOCK", 60)
    student, teacher = heads(trains=False, dtype=torch.float32)
    columns = H_STUDENT + H_TEACHER + 2
    with Largest() as watch:
        FrozenHeadsReadout(student, teacher, LogitReadout(V, 4))
    assert watch.elements >= columns**2
    assert watch.elements < max(60 * columns, columns**2, 4 * V) * 2
    assert V // 60 * columns**2 > 10 * watch.elements  # as all blocks' Gram matrices would have


def test_a_head_in_16_bits_spans_what_its_scaled_logits_do():
    """The scale is a number of the head's own precision nowhere: 0.3 of a bf16 weight is none."""
    student, teacher = heads(trains=False, dtype=torch.bfloat16)
    student = student._replace(scale=0.3)
    readout = FrozenHeadsReadout(student, teacher, LogitReadout(V, R, centered=True))
    hidden = torch.randn(4, H_STUDENT)
    exact = hidden.double() @ (0.3 * student.weight.double()).T
    columns = torch.cat([0.3 * student.weight.double(), teacher.weight[:V].double()], 1)
    basis, _ = torch.linalg.qr(columns - columns.mean(0))
    centred = exact - exact.mean(-1, keepdim=True)
    own = linear(hidden, readout.basis_student_KH, readout.offset_student_K).double()
    assert not exact.isnan().any()
    torch.testing.assert_close(own @ own.T, centred @ basis @ basis.T @ centred.T, rtol=1e-5, atol=1e-4)


def test_heads_that_share_columns_need_fewer_dimensions():
    student, _ = heads(trains=False)
    readout = FrozenHeadsReadout(student, Head(student.weight), LogitReadout(V, R).double())
    assert readout.weight.shape == (R, H_STUDENT)


def test_the_form_is_chosen_by_which_heads_train_and_survives_saving():
    student, teacher = heads(trains=False, dtype=torch.float32)
    readout = logit_readout(student, teacher, R)
    assert isinstance(readout, FrozenHeadsReadout)
    assert isinstance(logit_readout(*heads(dtype=torch.float32), R), LogitReadout)
    other = logit_readout(student, teacher, R)
    other.load_state_dict(load(save(readout.state_dict())))
    hidden = torch.randn(4, H_STUDENT)
    assert torch.equal(other.live(hidden, student, 1), readout.live(hidden, student, 1))


def test_a_head_that_trains_or_bends_its_logits_is_refused():
    student, teacher = heads()
    with pytest.raises(ValueError, match=r"student's head must be frozen.*requires_grad=True.*use logit_readout"):
        FrozenHeadsReadout(student, teacher, LogitReadout(V, R))
    frozen, teacher = heads(trains=False)
    with pytest.raises(ValueError, match=r"teacher's head must be frozen.*softcap=30"):
        FrozenHeadsReadout(frozen, teacher._replace(softcap=30.0), LogitReadout(V, R))
    readout = FrozenHeadsReadout(frozen, teacher, LogitReadout(V, R).double())
    with pytest.raises(ValueError, match="the student's head trains"):
        readout.live(torch.zeros(1, H_STUDENT, dtype=torch.float64), student, 1)
