"""A readout of soft-capped logits against autograd on whole logits, in float64."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from gakd import ExpectedEmbedding, FrozenHeadsReadout, Head, LogitReadout, SoftCappedLogitReadout, logit_readout
from gakd.adversary.readouts import direct_rows

N, V, H, R = 11, 50, 6, 5
pytestmark = pytest.mark.usefixtures("double")
CASES = [
    {},
    {"softcap": 3.0},
    {"softcap": 3.0, "scale": 0.5, "bias": True, "padded": 4},
    {"scale": 2.0, "bias": True, "padded": 4},
]


def head_with(
    softcap: float | None = None, scale: float = 1.0, bias: bool = False, padded: int = 0, trains: bool = True
) -> Head:
    """Logits of a standard deviation of 2.4: a cap at 3 bends them."""
    weight = torch.randn(V + padded, H, requires_grad=trains)
    return Head(weight, torch.randn(V + padded, requires_grad=trains) if bias else None, scale, softcap)


def map_of(readout) -> Tensor:
    return readout.weight - readout.weight.mean(-1, keepdim=True) if readout.centered else readout.weight


def tensors_of(head: Head) -> list[Tensor]:
    return [head.weight] if head.bias is None else [head.weight, head.bias]


def played(readout, hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher: Head, pulls: list[Tensor]):
    """Rows and gradients of a micro-batch: of what the student trains by the first pull, of E by the other two."""
    hidden = hidden.detach().requires_grad_()
    live = readout.live(hidden, head, 1.0)
    fake, real = readout.detached(hidden.detach(), None, 1.0), readout.detached(teacher_hidden, teacher, 1.0)
    torch.autograd.backward([fake, real], pulls[1:])
    found = torch.autograd.grad(live, [hidden, *tensors_of(head)], pulls[0])
    readout.flush()
    gradient, readout.weight.grad = readout.weight.grad, None
    return [live.detach(), fake.detach(), real.detach(), *found, gradient]


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_and_gradients_equal_autograds_on_whole_logits(centered, case):
    readout, head, teacher = SoftCappedLogitReadout(V, R, centered), head_with(**case), head_with(**case, trains=False)
    hidden, teacher_hidden = torch.randn(N, H, requires_grad=True), torch.randn(N, H)
    pulls = [torch.randn(N, R) for _ in range(3)]
    rows = head.logits(hidden)[:, :V] @ map_of(readout).T
    real = teacher.logits(teacher_hidden)[:, :V] @ map_of(readout).T
    expected = [rows, rows, real, *torch.autograd.grad(rows, [hidden, *tensors_of(head)], pulls[0], retain_graph=True)]
    expected += torch.autograd.grad([rows, real], readout.weight, pulls[1:])
    found = played(readout, hidden, head, teacher_hidden, teacher, pulls)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other.detach(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("centered", [True, False])
def test_penalties_are_norms_of_gradients_of_the_capped_logits(centered):
    readout, head = SoftCappedLogitReadout(V, R, centered), head_with(softcap=3.0)
    logits = head.logits(torch.randn(N, H)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad((logits @ map_of(readout).T).sin().sum(), logits, create_graph=True)
    norms = gradient.square().sum(-1)
    (expected,) = torch.autograd.grad(norms.sum(), readout.weight)

    rows = (logits.detach() @ map_of(readout).T).detach().requires_grad_()
    found = readout.squared_norm(rows.cos()[:, None])
    torch.testing.assert_close(found, norms)
    found.sum().backward()
    readout.flush()
    # What E does to the rows themselves comes home through `detached`.
    through_rows = rows.grad.T @ (logits - logits.mean(-1, keepdim=True) if centered else logits).detach()
    torch.testing.assert_close(readout.weight.grad + through_rows, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunks_of_any_size_give_the_same(case, monkeypatch):
    readout, head, teacher = SoftCappedLogitReadout(V, R), head_with(**case), head_with(**case, trains=False)
    material = readout, torch.randn(N, H), head, torch.randn(N, H), teacher, [torch.randn(N, R) for _ in range(3)]
    whole = played(*material)
    for rows in (1, 3, N):
        monkeypatch.setattr(direct_rows, "default_chunk_rows", lambda total, size, device, rows=rows: rows)
        torch.testing.assert_close(played(*material), whole, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("step_rows", [0.0, float("inf")], ids=["direct", "factored"])
def test_without_caps_it_is_the_readout_of_logits_from_the_same_start(centered, step_rows):
    readouts = []
    for kind in (LogitReadout, SoftCappedLogitReadout):
        torch.manual_seed(7)
        readouts.append(kind(V, R, centered))
    assert torch.equal(readouts[0].weight, readouts[1].weight)
    head, teacher = head_with(scale=0.5, bias=True, padded=2), head_with(bias=True, trains=False)
    hidden, gradient = torch.randn(N, H, requires_grad=True), torch.randn(2, N, R)
    results = []
    for readout in readouts:
        live = readout.live(hidden, head, step_rows)
        fake, real = (readout.detached(hidden, own, step_rows) for own in (None, teacher))
        norms = readout.squared_norm(gradient)
        ((fake * gradient[0] + real * gradient[1]).sum() + norms.sum()).backward()
        readout.flush()
        students = torch.autograd.grad(live, [hidden, *tensors_of(head)], gradient[0])
        results.append([live, fake, real, norms, *students, readout.weight.grad])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)


def test_half_precision_heads_and_autocast_leave_the_map_in_full_precision():
    torch.set_default_dtype(torch.float32)
    head, readout = head_with(softcap=3.0, bias=True), SoftCappedLogitReadout(V, R)
    hidden, teacher_hidden, pulls = torch.randn(N, H), torch.randn(N, H), [torch.randn(N, R) for _ in range(3)]
    half = Head(*(tensor.detach().bfloat16().requires_grad_() for tensor in tensors_of(head)), 1.0, 3.0)
    found = played(readout, hidden, half, teacher_hidden, half, pulls)
    assert [tensor.dtype for tensor in found] == [torch.float32] * 4 + [torch.bfloat16] * 2 + [torch.float32]
    for own, other in zip(found, played(readout, hidden, head, teacher_hidden, head, pulls), strict=True):
        assert (own - other).norm() < 0.03 * other.norm()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = played(readout, hidden, head, teacher_hidden, head, pulls)
    torch.testing.assert_close(mixed, played(readout, hidden, head, teacher_hidden, head, pulls), rtol=0, atol=0)


@pytest.mark.parametrize("trained", [(), ("hidden",), ("weight",), ("bias",)], ids=str)
def test_what_is_frozen_gets_no_gradient(trained):
    readout, head = SoftCappedLogitReadout(V, R), head_with(softcap=3.0, bias=True)
    leaves = {"hidden": torch.randn(N, H), "weight": head.weight, "bias": head.bias}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in trained)
    rows = readout.live(leaves["hidden"], head, 1.0)
    assert rows.requires_grad is bool(trained)
    if trained:
        rows.sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == set(trained)
    assert readout.weight.grad is None


@pytest.mark.parametrize("kind", [SoftCappedLogitReadout, ExpectedEmbedding])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_sharded_head_is_read_only_where_it_is_whole(kind, micro_batches):
    """FSDP2 frees a weight's storage behind the forward and fills it for the next, the backward and `flush`."""
    readout, head = kind(V, R), head_with(softcap=3.0)
    values, pull, hidden = head.weight.detach().clone(), torch.randn(N, R), torch.randn(micro_batches, N, H)
    weight_RV = readout.weight.detach().clone().requires_grad_()
    logits = head.logits(hidden.flatten(0, 1)).detach()
    read = logits.softmax(-1) if kind is ExpectedEmbedding else logits - logits.mean(-1, keepdim=True)
    (read @ weight_RV.T).backward(pull.repeat(micro_batches, 1))
    storage, size = head.weight.untyped_storage(), head.weight.untyped_storage().size()
    for own, known in zip(hidden, logits.logsumexp(-1).view(micro_batches, N), strict=True):
        live = readout.live(own.requires_grad_(), head, 1.0, known)
        storage.resize_(0)
        readout.detached(own, None, 1.0, known).backward(pull)
        storage.resize_(size)
        head.weight.data.copy_(values)
        live.sum().backward()
    readout.flush()
    torch.testing.assert_close(readout.weight.grad, weight_RV.grad, rtol=1e-10, atol=1e-13)


def test_what_cannot_be_read_says_why():
    readout, hidden = SoftCappedLogitReadout(V, R), torch.randn(N, H)
    small = Head(torch.randn(V - 1, H), softcap=3.0)
    with pytest.raises(ValueError, match="maps 50 tokens, the student's head has 49: build it with the smaller size"):
        readout.live(hidden, small, 1.0)
    with pytest.raises(ValueError, match="maps 50 tokens, the teacher's head has 49"):
        readout.detached(hidden, small, 1.0)
    with pytest.raises(RuntimeError, match="call `live` before `detached`"):
        readout.detached(hidden, None, 1.0)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("caps", [(None, None), (3.0, None), (None, 3.0), (3.0, 3.0)])
@pytest.mark.parametrize("centered", [True, False])
def test_the_readout_is_chosen_by_caps_first_and_by_what_trains_second(trains, caps, centered):
    student, teacher = head_with(caps[0], trains=trains), head_with(caps[1], padded=3, trains=False)
    readout = logit_readout(student, teacher, R, centered)
    without_cap = LogitReadout if trains else FrozenHeadsReadout
    assert type(readout) is (without_cap if caps == (None, None) else SoftCappedLogitReadout)
    if caps != (None, None):
        assert (readout.weight.shape, readout.centered) == ((R, V), centered)
        assert type(pickle.loads(pickle.dumps(readout))) is SoftCappedLogitReadout
    hidden = torch.randn(N, H)
    readout.live(hidden, student, 1.0)
    assert readout.detached(hidden, None, 1.0).shape == readout.detached(hidden, teacher, 1.0).shape == (N, R)
