"""Evaluation that several processes share gives what one process finds, and none does another's work."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import distributed, nn

from gakd.data import Example, Row
from gakd.evaluation import EvaluationConfig, HeldOut, conclude
from gakd.models.heads import head_of
from gakd.run.measuring import as_measured, measuring
from gakd.run.ranks import ALONE, Ranks, all_ranks
from gakd.samplers.writing import writing_of
from gakd.teachers.local import LocalTeacher
from tests import tiny
from tests.processes import two

# Batches of two: three of the validation split, four of the test split; two and three of generated text.
CONFIG = EvaluationConfig(
    examples=7, text_examples=5, valid_text_examples=3, max_new_tokens=6, evaluation_batch_size=2, sampling_seed=3
)


def examples(count: int, start: int) -> list[Example]:
    found = []
    for index in range(start, start + count):
        row = Row(instruction=f"say {index}", input="", responses=("abc" * (index % 3 + 1),))
        found.append(Example(list(range(5, 8 + index % 4)), [*range(40 + index, 43 + 2 * index), 258], row))
    return found


def held_out() -> tuple[nn.Module, HeldOut]:
    student, teacher = tiny.model(seed=1, scale=3), tiny.model(width=48, tied=False, seed=2, scale=4)
    for model in (student, teacher):
        head_of(model)
        writing_of(model)  # forwards of proofs are not counted below, and need whole weights
    data: Any = SimpleNamespace(valid=examples(5, 0), test=examples(7, 5), pad_token_id=256)
    return student, HeldOut(LocalTeacher(teacher), tiny.tokenizer(), data, CONFIG)


def found_by(student: nn.Module, evaluation: HeldOut, teacher: nn.Module) -> dict[str, Any]:
    """Every score, twice where hidden states are kept, and how often each model read a batch whole."""
    forwards = dict.fromkeys(("student", "teacher", "text"), 0)

    def count(name: str) -> Any:
        def note(module: nn.Module, args: Any, named: dict[str, Any]) -> None:
            forwards[name if named.get("past_key_values") is None else "text"] += 1

        return note

    hooks = [
        cast(Any, model).model.register_forward_pre_hook(count(name), with_kwargs=True)
        for name, model in (("student", student), ("teacher", teacher))
    ]
    valid, again = evaluation.validate(student), evaluation.validate(student)
    assert valid == again
    read = dict(forwards)
    scores = evaluation.scores(student)
    after = asdict(evaluation.after(student))
    for hook in hooks:
        hook.remove()
    kept = {split: sorted(outputs) for split, outputs in evaluation._teacher_outputs.items()}
    return {"valid": valid, "scores": scores, "after": after, "read": read, "kept": kept}


def one_rank(rank: int, folder: Path, sharded: bool) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(  # who waits for a rank that is done fails instead of hanging
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    student, evaluation = held_out()
    teacher = cast(LocalTeacher, evaluation.teacher)
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh

        from gakd.models.sharding import shard_model

        mesh = init_device_mesh("cpu", (2,))
        shard_model(student, mesh)
        teacher.shard(mesh, torch.device("cpu"))
    (folder / f"{rank}.json").write_text(json.dumps(found_by(student, evaluation, teacher.model)))
    distributed.barrier()
    os._exit(0)  # gloo's threads abort an orderly exit now and then


def run_two(folder: Path, sharded: bool) -> list[dict[str, Any]]:
    two(one_rank, folder, sharded)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    student, evaluation = held_out()
    return json.loads(json.dumps(found_by(student, evaluation, cast(LocalTeacher, evaluation.teacher).model)))


def test_one_process_reads_each_batch_once(alone):
    assert alone["read"]["student"] == 2 * 3
    assert alone["read"]["teacher"] == 3
    assert alone["kept"] == {"valid": list(range(5)), "test": list(range(7))}
    assert len({*alone["after"]["predictions"]}) > 3


def test_two_processes_find_the_same_and_each_runs_its_share(alone, tmp_path):
    ranks = run_two(tmp_path, sharded=False)
    for found in ranks:
        for part in ("valid", "scores", "after"):
            assert found[part] == alone[part], "same batches, and sums that do not depend on their order: the same bits"
    # Three batches of validation: two and one; the teacher reads each once.
    assert [found["read"]["student"] for found in ranks] == [2 * 2, 2 * 1]
    assert [found["read"]["teacher"] for found in ranks] == [2, 1]
    for split, every in alone["kept"].items():
        first, second = (set(found["kept"][split]) for found in ranks)
        assert not first & second
        assert sorted(first | second) == every


@pytest.mark.slow
def test_two_processes_with_cut_weights_take_as_many_steps_and_find_the_same(alone, tmp_path):
    ranks = run_two(tmp_path, sharded=True)
    for found in ranks:
        assert found["valid"] == pytest.approx(alone["valid"], rel=1e-5)
        assert found["after"]["predictions"] == alone["after"]["predictions"]
        assert found["scores"]["teacher"]["predictions"] == alone["scores"]["teacher"]["predictions"]
        assert found["scores"]["student"]["own_reverse_kl"] == pytest.approx(
            alone["scores"]["student"]["own_reverse_kl"], rel=1e-4
        )


def test_items_are_dealt_in_turn():
    items = list("abcde")
    assert list(ALONE.own(items)) == list(enumerate(items))
    dealt = [list(Ranks(rank, 3).own(items)) for rank in range(3)]
    assert dealt == [[(0, "a"), (3, "d")], [(1, "b"), (4, "e")], [(2, "c")]]
    in_step = [list(Ranks(rank, 3).own(items, in_step=True)) for rank in range(3)]
    assert in_step == [*dealt[:2], [(2, "c"), (4, "e")]]
    assert [list(Ranks(rank, 3).own(["a"], in_step=True)) for rank in range(3)] == [[(0, "a")]] * 3
    assert list(Ranks(1, 2).own([], in_step=True)) == []
    assert ALONE.together({1: "x"}) == {1: "x"}
    assert all_ranks() is ALONE


class GpuFabric:
    """What `measuring` asks of a Fabric, on a device of this kind."""

    def __init__(self, kind: str, dtype: torch.dtype | None) -> None:
        self.device, self._dtype = torch.device(kind), dtype

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None)


def test_a_gpu_measures_under_trainings_autocast_and_a_cpu_in_its_weights_precision():
    for dtype, kept in (
        (torch.bfloat16, {"autocast": "bfloat16"}),
        (torch.float16, {"autocast": "float16"}),
        (None, {}),
    ):
        with measuring(cast(Any, GpuFabric("xpu", dtype))) as said:
            assert said == kept
            assert torch.is_autocast_enabled("xpu") == (dtype is not None)
            assert dtype is None or torch.get_autocast_dtype("xpu") == dtype
        with measuring(cast(Any, GpuFabric("cpu", dtype))) as said:
            assert said == {}
            assert not torch.is_autocast_enabled("cpu")
    with as_measured({"autocast": "bfloat16"}, torch.device("cpu")):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


def test_after_training_a_student_is_measured_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr("gakd.evaluation.held_out.plot_metrics", lambda *files: None)
    student, evaluation = held_out()
    exact = evaluation.scores(student)
    student, evaluation = held_out()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = evaluation.scores(student)
    assert rounded["student"]["reverse_kl"] != exact["student"]["reverse_kl"]
    assert rounded["student"]["reverse_kl"] == pytest.approx(exact["student"]["reverse_kl"], rel=0.02)
    for before, kept in ((exact, {}), (rounded, {"autocast": "bfloat16"})):
        student, evaluation = held_out()
        conclude(tmp_path, student, evaluation, before | kept)
        after = json.loads((tmp_path / "after.json").read_text())["student"]
        assert after["reverse_kl"] == before["student"]["reverse_kl"]
