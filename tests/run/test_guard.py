"""Steps whose losses or gradients are not finite: named, kept, run again, left out."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gakd.errors import RunError
from gakd.run import Run
from gakd.run.guard import MOST_IN_A_ROW, Guard
from gakd.run.step_record import StepRecord
from gakd.types import IGNORE_INDEX, Batch, RowValues
from tests.recipe_runs import ROOT, arguments, assert_identical, environment, make_material, metrics, run_here

CPU = torch.device("cpu")


def batch_of(first: int) -> Batch:
    ids_BT = torch.arange(first, first + 8).view(2, 4)
    labels_BT = torch.where(torch.arange(4) > 1, ids_BT + 1, IGNORE_INDEX)
    return Batch.of(ids_BT, torch.ones_like(ids_BT), labels_BT)


def test_sums_are_over_the_step_and_findings_name_term_micro_batch_and_rows():
    record, first, second = StepRecord(), batch_of(1), batch_of(20)
    record.begin_step([first, second], [("a:1", "a:2"), ("a:3", "a:4")])
    record.begin(first)
    record.add({"reverse_kl": torch.tensor([1.0, 2.0])})
    record.add({"adversarial": torch.tensor([5.0])})
    assert record.broken(CPU).item() == 0
    assert record.findings() == []
    record.begin((second, "what goes with it"))
    record.add({"reverse_kl": torch.tensor([4.0, torch.nan])})
    record.begin(batch_of(3))  # written in the step
    record.add({"reverse_kl": torch.tensor([torch.inf])})
    assert record.broken(CPU).item() == 1
    assert record.findings() == [
        "reverse_kl is nan in micro-batch 2 of 3 (rows a:3, a:4)",
        "reverse_kl is inf in micro-batch 3 of 3",
    ]
    assert float(record.sums()["adversarial"]) == 5
    record.begin_step([], [])
    assert record.broken(CPU).item() == 0
    assert record.sums() == {}


def test_a_record_holds_all_that_a_micro_batch_consists_of(tmp_path):
    record, batch = StepRecord(), batch_of(1)
    batch = batch._replace(row_values=RowValues({"advantages": torch.arange(4.0)}))
    record.begin(batch)
    record.add({"policy": torch.tensor([1.0, torch.nan])})
    torch.save(record.state_dict(), tmp_path / "record.pt")
    (found,) = torch.load(tmp_path / "record.pt", weights_only=True)["micro_batches"]
    assert torch.equal(found["input_ids"], batch.input_ids)
    assert torch.equal(found["labels"], batch.labels)
    assert torch.equal(found["row_values"]["advantages"], torch.arange(4.0))
    assert found["losses"]["policy"].isnan()


def test_too_many_steps_in_a_row_end_a_run_that_leaves_them_out(tmp_path):
    kept: list[Path] = []

    def keep() -> Path:
        kept.append(tmp_path / "step")
        return kept[-1]

    guard = Guard("skip", StepRecord(), keep)
    for start in (0, 20):  # the second row is a new one
        for step in range(start, start + MOST_IN_A_ROW):
            for whose in ("student", "adversarial"):  # one step, however many updates it has
                assert f"step {step}: every loss is finite" in guard.refuse(whose, torch.inf, step)
    assert kept == []
    with pytest.raises(RunError, match=rf"after {MOST_IN_A_ROW} steps in a row that were left out"):
        guard.refuse("student", torch.inf, 20 + MOST_IN_A_ROW)
    assert len(kept) == 1


def test_what_was_updated_in_the_step_and_what_could_not_be_kept_is_said(tmp_path):
    guard = Guard("stop", StepRecord(), lambda: tmp_path / "step-7")
    with pytest.raises(
        RunError, match=r"step-7 holds the weights before this step.*moved to checkpoints/step-7, --resume"
    ):
        guard.refuse("student", torch.inf, 7)
    guard.record.updates += 1
    with pytest.raises(RunError, match=r"after 1 of this step's updates.*: not to be resumed from") as stopped:
        guard.refuse("discriminator", torch.inf, 7)
    assert "--resume" not in str(stopped.value)

    def full() -> Path:
        raise RunError("cannot write nonfinite/step-7: No space left; there is none before it. Make room")

    with pytest.raises(
        RunError,
        match=r"step 7: every loss is finite; the student's gradient norm is inf\. The student was not updated",
    ) as stopped:
        Guard("stop", StepRecord(), full).refuse("student", torch.inf, 7)
    assert "(cannot write nonfinite/step-7: No space left). Earlier checkpoints are intact" in str(stopped.value)


@pytest.fixture(params=["plain", "fused"])
def stepping(request):
    """Optimizers that are asked about first, and such as look at a flag on the device, of which the host learns afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "fused":
            patch.setattr("gakd.run.updates.FUSED_ON", {"cpu"})
        yield request.param


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def test_a_run_that_breaks_stops_names_the_step_and_runs_it_again(stepping, material, tmp_path, monkeypatch):
    backward, output, calls = Run.backward, tmp_path / "run", []

    def poisoned(run, loss, losses):
        calls.append(run.step)
        bad = run.step == 3 and calls.count(3) % 2 == 0  # the second of two micro-batches
        backward(
            run, loss * (torch.nan if bad else 1), losses | ({"reverse_kl": losses["reverse_kl"] / 0} if bad else {})
        )

    monkeypatch.setattr(Run, "backward", poisoned)
    flags = arguments(material, output, "--lora-rank", "4", "--evaluate-every", "0")  # LoRA's dropout is random
    with pytest.raises(RunError) as stopped:
        run_here("gakd", *flags)
    message = str(stopped.value)
    assert re.match(r"step 3: reverse_kl is inf in micro-batch 2 of 2 \(rows \S*train\.jsonl:\d+, ", message)
    assert "; the student's gradient norm is nan. The student was not updated; " in message
    assert "\n" not in message
    kept = output / "nonfinite" / "step-3"
    first = torch.load(kept / "micro_batches-0.pt", weights_only=True)["micro_batches"]
    assert first[0]["losses"]["reverse_kl"].isfinite()
    assert first[1]["losses"]["reverse_kl"].isinf()
    weights = load_file(kept / "student.safetensors")

    shutil.rmtree(output / "checkpoints")
    (output / "checkpoints").mkdir()
    kept.rename(output / "checkpoints" / kept.name)
    with pytest.raises(RunError) as again:
        run_here("gakd", *flags, "--resume")
    assert str(again.value) == message
    second = torch.load(kept / "micro_batches-0.pt", weights_only=True)["micro_batches"]
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours["input_ids"], theirs["input_ids"])
        assert all(torch.equal(value, theirs["losses"][name]) for name, value in ours["losses"].items())
    assert all(torch.equal(value, weights[name]) for name, value in load_file(kept / "student.safetensors").items())


def test_a_discriminator_that_breaks_after_the_students_update_is_told_of(stepping, material, tmp_path, monkeypatch):
    """The student has been updated: its weights must not be called those before the step."""
    replicated, output = Run.update_replicated, tmp_path / "run"

    def poisoned(run, name):
        if run.step == 3:
            for parameter in run._checkpoints.modules[name].parameters():
                parameter.grad = torch.full_like(parameter, torch.inf)
        replicated(run, name)

    monkeypatch.setattr(Run, "update_replicated", poisoned)
    for left in (40, 3):  # by breaks before: neither is what the error tells of
        (output / "nonfinite" / f"step-{left}").mkdir(parents=True)
        (output / "nonfinite" / f"step-{left}" / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(RunError, match=r"step 3: every loss is finite.*after 1 of this step's updates"):
        run_here("gakd", *arguments(material, output, "--evaluate-every", "0"))
    assert [path.name for path in (output / "nonfinite").iterdir()] == ["step-3"]
    assert (output / "nonfinite" / "step-3" / "student.safetensors").exists()


def test_a_step_that_is_left_out_changes_nothing_but_the_log(stepping, material, tmp_path, monkeypatch, capsys):
    backward, update, replicated = Run.backward, Run.update, Run.update_replicated
    poisoned, without = tmp_path / "poisoned", tmp_path / "without"

    def poisoned_backward(run, loss, losses):
        if run.step == 3:
            loss, losses = loss * torch.nan, losses | {"reverse_kl": losses["reverse_kl"] * torch.nan}
        backward(run, loss, losses)

    monkeypatch.setattr(Run, "backward", poisoned_backward)
    run_here("gakd", *arguments(material, poisoned, "--on-nonfinite", "skip"))
    monkeypatch.undo()
    assert "warning: step 3: reverse_kl is nan in micro-batch 1 of 2" in capsys.readouterr().out

    def clear(run, optimizers):
        for module in run._checkpoints.modules.values():
            module.zero_grad()
        run._log.notes["gradient_norm"] = 0.0

    monkeypatch.setattr(Run, "update", lambda run: clear(run, 0) if run.step == 3 else update(run))
    monkeypatch.setattr(Run, "update_replicated", lambda run, name: None if run.step == 3 else replicated(run, name))
    run_here("gakd", *arguments(material, without))
    ours, theirs = (metrics(output) for output in (poisoned, without))
    skipped = next(row for row in ours if row["step"] == "4" and row["reverse_kl"])
    assert (skipped["reverse_kl"], skipped["gradient_norm"]) == ("nan", "nan")
    for output in (poisoned, without):  # the row of that step is what differs
        text = (output / "metrics.csv").read_text().splitlines()
        (output / "metrics.csv").write_text("\n".join(line for line in text if not line.startswith("4,")) + "\n")
    assert len(ours) == len(theirs)
    assert_identical(poisoned, without)


@pytest.mark.slow
def test_of_two_processes_both_stop_and_name_the_one(material, tmp_path):
    script = tmp_path / "poisoned.py"
    script.write_text(
        "import sys\n"
        "import torch\n"
        "from gakd.cli.entry import run\n"
        "from gakd.run.training import Run\n"
        "from tests.recipe_runs import run_here\n"
        "backward = Run.backward\n"
        "def poisoned(run, loss, losses):\n"
        "    bad = run.step == 2 and run.rank == 1\n"
        "    backward(run, loss, {name: value / (0 if bad else 1) for name, value in losses.items()})\n"
        "Run.backward = poisoned\n"
        "run(lambda flags: run_here('gakd', *flags), sys.argv[1:])\n"
    )
    flags = arguments(material, tmp_path / "run", "--devices", "2", "--evaluate-every", "0")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*torchrun, str(script), *flags],
        capture_output=True, text=True, cwd=ROOT, env=environment() | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: step 2: ")]
    assert len(lines) >= 1, result.stderr[-3000:]
    assert all("is inf in micro-batch 1 of 1" in line and "on rank 1" in line for line in lines)
    assert not any("on rank 0" in line for line in lines)
    assert (tmp_path / "run" / "nonfinite" / "step-2" / "micro_batches-1.pt").exists()
    assert result.returncode != 0
