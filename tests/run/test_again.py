"""A cell that is run again in the same process: refused with what to pass, and continued where that is passed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gakd import CrossEntropy, Distiller
from gakd.data import Data, Example, Row
from gakd.errors import InputError
from gakd.run import Run, RunConfig
from gakd.run import launch as launching
from tests import tiny


def train(config: RunConfig, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    """The cell; `stop_after` so many steps an exception leaves it, and the run unclosed."""
    examples = [Example([1, index], [2, 3 + index, 258], Row("")) for index in range(8)]
    data, student = Data(examples, examples, examples, 256), tiny.model()
    objective = 1.0 * CrossEntropy()
    run = Run(config, config)
    distiller = run.setup(Distiller(student, objective))
    run.restore()
    for window in run.steps(data):
        coefficients = objective.coefficients(run.step, run.counts(window))
        for batch in run.micro_batches(window):
            output = distiller(batch, None, coefficients)
            run.backward(output.loss, output.token_losses)
        if run.step == stop_after:
            raise KeyboardInterrupt
        run.update()
        run.finish_step(objective)
    run.close()
    return student.state_dict()


def config_of(folder: Path) -> RunConfig:
    return RunConfig(output_dir=folder, steps=4, batch_size=4, evaluate_every=0, save_every=1, learning_rate=1e-2)


def test_a_second_run_in_its_folder_says_what_to_pass_and_goes_on_with_it(tmp_path):
    expected = train(config_of(tmp_path / "straight"))
    config = config_of(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, stop_after=2)
    with pytest.raises(InputError, match=r"holds another run: .*\(in Python: resume=True, or another output_dir\)"):
        train(config)
    found = train(replace(config, resume=True))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["model.norm.weight"], tiny.model().state_dict()["model.norm.weight"])


def test_a_distiller_that_is_set_up_already_is_told_from_one_that_is_not(tmp_path):
    objective = 1.0 * CrossEntropy()
    distiller = Distiller(tiny.model(), objective)
    for name in ("first", "second"):  # the cell that builds it is another one
        config = config_of(tmp_path / name)
        run = Run(config, config)
        wrapped = run.setup(distiller)
        with pytest.raises(
            InputError, match=r"build it anew and pass that, run.setup\(Distiller\(student, objective\)\)"
        ):
            run.setup(wrapped)
        run.close()


@pytest.mark.parametrize("asked", [{"devices": 2}, {"strategy": "ddp"}, {"devices": 2, "strategy": "fsdp2"}])
def test_a_notebook_is_told_that_it_starts_no_processes(tmp_path, monkeypatch, asked):
    monkeypatch.setattr("sys.ps1", "In : ", raising=False)
    config = replace(config_of(tmp_path), **asked)
    with pytest.raises(InputError, match=r"give devices=1 and strategy='auto' here, or run the loop as a script"):
        Run(config, config)
    assert not (tmp_path / "config.json").exists()


def test_a_script_starts_its_processes_once(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "_launched", [2])
    config = replace(config_of(tmp_path), devices=2)
    with pytest.raises(InputError, match=r"has started 2 processes for a Run before.*a script of its own"):
        Run(config, config)
    assert not (tmp_path / "config.json").exists()
