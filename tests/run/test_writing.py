"""Checkpoints are written beside training: what they hold is of the moment of saving, and they count once they are sealed."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from gakd.errors import RunError
from gakd.run import checkpoint
from gakd.run.checkpoints import RunCheckpoints
from gakd.run.writing import snapshot
from tests.recipe_runs import arguments, assert_identical, make_material, run_here


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def gate(monkeypatch):
    """Writing stops before the first file of weights until the gate is opened."""
    opened, save_file = threading.Event(), checkpoint.save_file

    def held(*arguments):
        assert opened.wait(60)
        save_file(*arguments)

    monkeypatch.setattr("gakd.run.checkpoint.save_file", held)
    yield opened
    opened.set()


class Buffer:
    """A sampler's: a list that goes on changing."""

    def __init__(self) -> None:
        self.items, self.held = [torch.zeros(2)], {"count": 1}

    def state_dict(self):
        return {"items": self.items, "held": self.held}

    def load_state_dict(self, state):
        self.items, self.held = state["items"], state["held"]


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    step(module, optimizer)
    return module, optimizer


def step(module, optimizer) -> None:
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_what_is_saved_is_of_the_moment_of_saving_and_appears_once_it_is_whole(fabric, tmp_path, gate):
    module, optimizer = parts()
    buffer = Buffer()
    writing = checkpoint.save(fabric, tmp_path, 1, {"student": module}, {"adam": optimizer}, {"buffer": buffer}, keep=2)
    expected = [tensor.clone() for tensor in [*module.state_dict().values(), *optimizer.state[module.weight].values()]]
    step(module, optimizer)  # training goes on
    buffer.items[0].fill_(9.0), buffer.items.append(torch.ones(1)), buffer.held.update(count=2)
    torch.rand(5)
    assert not writing.is_done
    assert checkpoint.newest(tmp_path) is None
    gate.set()
    assert writing.finish() == checkpoint.newest(tmp_path) == tmp_path / "step-1"
    assert not torch.equal(module.weight, expected[0])
    checkpoint.load(fabric, tmp_path / "step-1", {"student": module}, {"adam": optimizer}, {"buffer": buffer})
    found = [*module.state_dict().values(), *optimizer.state[module.weight].values()]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [item.tolist() for item in buffer.items] == [[0.0, 0.0]]
    assert buffer.held == {"count": 1}


def test_what_cannot_be_written_is_told_where_one_waits_and_leaves_nothing(fabric, tmp_path, monkeypatch):
    module, optimizer = parts()
    checkpoint.save(fabric, tmp_path, 1, {"student": module}, {"adam": optimizer}, {}, keep=2).finish()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gakd.run.checkpoint.save_file", full)
    writing = checkpoint.save(fabric, tmp_path, 2, {"student": module}, {"adam": optimizer}, {}, keep=2)
    with pytest.raises(
        RunError, match=r"cannot write .*step-2: .*No space left on device; .*step-1 is intact\. Make room"
    ):
        writing.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_the_next_save_the_best_and_a_step_that_broke_wait_for_the_one_before(fabric, tmp_path, gate):
    module, optimizer = parts()
    checkpoints = RunCheckpoints(fabric, tmp_path, keep=5, export="last")
    checkpoints.modules["student"], checkpoints.optimizers["student_optimizer"] = module, optimizer
    checkpoints.observe({"rouge_l": 2.0})
    checkpoints.save(1)
    checkpoints.finish_step()
    assert checkpoints.writes
    opening = threading.Timer(0.2, gate.set)
    opening.start()
    checkpoints.observe({"rouge_l": 1.0})
    assert not checkpoints.is_best()  # which it would be, if the first were not waited for
    checkpoints.save(2)
    checkpoints.save(3)
    assert {"step-1", "step-2"} <= {path.name for path in checkpoints.folder.iterdir()}
    checkpoints.finish_writing()
    assert not checkpoints.writes
    assert checkpoint.newest(checkpoints.folder).name == "step-3"


def test_a_copy_follows_no_later_change():
    state = {"a": torch.ones(2), "b": [torch.zeros(1), (1, "x")], "c": {"d": 2.5}, "t": torch.ones(3, 2).T}
    copied = snapshot(state)
    state["a"].fill_(5.0), state["b"].append(3), state["c"].update(d=0)
    assert copied["a"].tolist() == [1.0, 1.0]
    assert copied["b"][1:] == [(1, "x")]
    assert copied["c"] == {"d": 2.5}
    assert copied["t"].is_contiguous()


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def test_a_run_whose_disk_is_slow_has_the_same_bits_and_checkpoints(material, tmp_path, monkeypatch):
    """Each file takes longer than a step: saves follow one another without being lost, the last is there at the end."""
    import time

    straight, slow = tmp_path / "straight", tmp_path / "slow"
    flags = ("--evaluate-every", "0", "--keep-checkpoints", "9", "--steps", "6")
    run_here("gakd", *arguments(material, straight, *flags))
    save_file = checkpoint.save_file

    def slowly(*given):
        time.sleep(0.5)
        save_file(*given)

    monkeypatch.setattr("gakd.run.checkpoint.save_file", slowly)
    run_here("gakd", *arguments(material, slow, *flags))
    assert_identical(slow, straight)
    for output in (straight, slow):
        names = sorted(path.name for path in (output / "checkpoints").iterdir())
        assert names == ["step-2", "step-4", "step-6"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert checkpoint.newest(output / "checkpoints").name == "step-6"


def test_an_error_in_a_recipe_leaves_the_checkpoint_that_is_being_written(material, tmp_path, monkeypatch):
    from gakd.run import Run

    update, output, save_file, begun = Run.update, tmp_path / "run", checkpoint.save_file, threading.Event()

    def slowly(*given):
        begun.wait(60)
        save_file(*given)

    def failing(run):
        if run.step == 2:
            begun.set()
            raise KeyError("a mistake")
        update(run)

    monkeypatch.setattr("gakd.run.checkpoint.save_file", slowly)
    monkeypatch.setattr(Run, "update", failing)
    with pytest.raises(KeyError):
        run_here("gakd", *arguments(material, output, "--evaluate-every", "0"))
    for thread in threading.enumerate():  # the end of the process waits for it
        if thread.name == "writes step-2":
            assert not thread.daemon
            thread.join(60)
    assert checkpoint.newest(output / "checkpoints").name == "step-2"
