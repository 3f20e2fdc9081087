"""Weights cut over two ranks: the dtype in which they are gathered, their gradients, and updates of a fused optimizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from gakd.models.heads import head_of
from gakd.models.sharding import inside, is_sharded, own_part, shard_model, whole
from gakd.run.updates import fuse
from gakd.teachers.local import LocalTeacher
from gakd.types import IGNORE_INDEX, Batch
from tests import tiny
from tests.processes import on_two


def batch_of(rank: int, count: int = 4) -> Batch:
    draw = torch.Generator().manual_seed(rank)
    ids_BT = torch.randint(0, 200, (count, 9), generator=draw)
    labels_BT = torch.where(torch.arange(9) > 2, ids_BT.roll(-1, 1), IGNORE_INDEX)
    return Batch.of(ids_BT, torch.ones_like(ids_BT), labels_BT)


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    """Cross entropy of the supervised rows with the head as it is inside, in fp32."""

    def compute() -> torch.Tensor:
        head = model.get_output_embeddings().weight
        assert head.dtype == torch.float32
        hidden_NH = model.model(input_ids=batch.input_ids).last_hidden_state.flatten(0, 1)[batch.rows_N]
        with torch.autocast("cpu", enabled=False):
            return torch.nn.functional.cross_entropy(hidden_NH.float() @ head.T, batch.labels_N, reduction="sum")

    return inside(model, compute)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for name, g in found.items()}


def cut(tied: bool, gathered: torch.dtype | None) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    model = tiny.model(tied=tied)
    head_of(model)
    shard_model(model, init_device_mesh("cpu", (2,)), gathered)
    return model


def on_ranks(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tied in (True, False):
        for gathered in (None, torch.bfloat16):
            key, model = f"{'tied' if tied else 'untied'} {gathered}", cut(tied, gathered)
            dtypes: dict[str, torch.dtype] = {}
            layer = model.model.layers[0]
            layer.self_attn.q_proj.register_forward_pre_hook(
                lambda module, inputs, dtypes=dtypes: dtypes.update(weight=module.weight.dtype)
            )
            model.model.layers[1].register_forward_pre_hook(
                lambda module, inputs, dtypes=dtypes: dtypes.update(hidden=inputs[0].dtype)
            )
            loss_of(model, batch_of(rank)).backward()
            found[key] = {"whole batch": gradients(model), "dtypes": dtypes}
            found[key]["kept"] = {str(own_part(p).dtype) for p in model.parameters()}
            model.zero_grad()
            ids_BT = batch_of(rank).input_ids
            for part in (slice(0, 1), slice(1, 4)):
                labels_BT = batch_of(rank).labels[part]
                part_batch = Batch.of(ids_BT[part], torch.ones_like(ids_BT[part]), labels_BT)
                loss_of(model, part_batch).backward()
                # Summed over ranks and cut at once: nothing is kept whole until the last one.
                assert all(isinstance(parameter.grad, DTensor) for parameter in model.parameters())
                assert {str(parameter.grad.dtype) for parameter in model.parameters()} == {"torch.float32"}
            found[key]["in parts"] = gradients(model)
            with torch.no_grad():  # outside of autocast, as an evaluation runs it
                logits = model(input_ids=batch_of(0).input_ids).logits
            found[key]["logits"] = logits.float()
    found["fused"] = fused_updates()
    teacher = LocalTeacher(tiny.model(seed=3, tied=False))
    expected = teacher(batch_of(rank)).hidden_NH
    from torch.distributed.device_mesh import init_device_mesh

    teacher.shard(init_device_mesh("cpu", (2,)), torch.device("cpu"))
    head = teacher.model.get_output_embeddings().weight
    found["teacher"] = (
        (teacher(batch_of(rank)).hidden_NH, expected), type(head) is torch.nn.Parameter, is_sharded(teacher.model),
        isinstance(teacher.model.get_input_embeddings().weight, DTensor),
        teacher.model(input_ids=batch_of(rank).input_ids).logits.shape[-1],
    )  # fmt: skip
    return found


def fused_updates() -> dict[str, list[torch.Tensor]]:
    """Weights after an update that counts, and after one that is refused."""
    model = cut(True, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    states = {}
    for name, refused in (("first", 0.0), ("refused", 1.0)):
        loss_of(model, batch_of(5)).backward()
        optimizer.found_inf = torch.tensor(refused)
        optimizer.step()
        optimizer.zero_grad()
        moments = [value for state in optimizer.state.values() for value in state.values()]
        states[name] = [whole(t.detach()).clone() for t in [*model.parameters(), *moments]]
    return states


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return on_two(on_ranks, tmp_path_factory.mktemp("ranks"))


def alone(tied: bool, precision: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The mean over ranks, as one process has it, under autocast where there is a precision."""
    model = tiny.model(tied=tied)
    for rank in (0, 1):
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            (loss_of(model, batch_of(rank)) / 2).backward()
    return gradients(model)


@pytest.mark.parametrize("tied", [True, False])
def test_in_fp32_gradients_are_those_of_one_process_whatever_the_micro_batches(ranks, tied):
    expected = alone(tied, None)
    for found in ranks:
        case = found[f"{'tied' if tied else 'untied'} None"]
        for key in ("whole batch", "in parts"):
            assert case[key].keys() == expected.keys()
            for name, wanted in expected.items():
                torch.testing.assert_close(case[key][name], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_gathered_in_bf16_kept_and_summed_in_fp32(ranks, tied):
    """Against one process with fp32 weights under the same autocast, and against fp32 throughout."""
    autocast, exact = alone(tied, torch.bfloat16), alone(tied, None)
    for found in ranks:
        case = found[f"{'tied' if tied else 'untied'} torch.bfloat16"]
        assert case["dtypes"] == {"weight": torch.bfloat16, "hidden": torch.float32}
        assert case["kept"] == {"torch.float32"}
        for key in ("whole batch", "in parts"):
            for name, wanted in exact.items():
                ours, theirs = case[key][name].flatten(), autocast[name].flatten()
                assert ours.dtype == torch.float32
                cosine = torch.nn.functional.cosine_similarity
                assert cosine(ours, wanted.flatten(), 0) > 0.9999, name
                # Not much further from the exact gradient than autocast with whole fp32 weights is. What is rounded besides, to
                # 8 bits: the weights of norms, and each micro-batch's gradient of them.
                error, others = (gradient - wanted.flatten() for gradient in (ours, theirs))
                assert error.norm() <= 1.5 * others.norm() + 2**-8 * wanted.norm(), name


def test_outside_of_autocast_a_model_gathered_in_bf16_still_runs(ranks):
    with torch.no_grad():
        expected = tiny.model()(input_ids=batch_of(0).input_ids).logits
    torch.testing.assert_close(ranks[0]["tied torch.bfloat16"]["logits"], expected, rtol=0, atol=0.02)
    torch.testing.assert_close(ranks[0]["tied None"]["logits"], expected, rtol=1e-5, atol=1e-5)


def test_a_fused_update_of_cut_weights_is_made_and_refused_as_of_whole_ones(ranks):
    model = tiny.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    loss_of(model, batch_of(5)).backward()
    optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    moments = [value for state in optimizer.state.values() for value in state.values()]
    for found in ranks:
        first, refused = found["fused"]["first"], found["fused"]["refused"]
        for ours, wanted in zip(first, [*model.parameters(), *moments], strict=True):
            torch.testing.assert_close(ours, wanted.detach(), rtol=1e-3, atol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(first, refused, strict=True))


def test_a_teachers_head_is_whole_and_the_rest_is_cut(ranks):
    for (hidden, expected), head_is_whole, sharded, embeddings_are_cut, width in (found["teacher"] for found in ranks):
        torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-6)
        assert head_is_whole
        assert sharded
        assert embeddings_are_cut
        assert width == 272


def test_weights_on_a_cpu_are_not_fused():
    optimizer = torch.optim.AdamW(tiny.model().parameters())
    fuse(optimizer)
    assert not optimizer.param_groups[0]["fused"]
