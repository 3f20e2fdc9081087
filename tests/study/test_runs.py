"""Runs in processes of their own: what is finished is not run again, what fails stops nothing else and says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gakd.cli.recipe_files import load_recipe
from gakd.errors import InputError
from gakd.study import runs
from gakd.study.runs import Job, cost_of, run_all

RECIPE = '''
"""A recipe that only counts how often it ran."""
import time
from dataclasses import dataclass
from pathlib import Path

@dataclass
class Config:
    output_dir: Path = Path("nowhere")
    resume: bool = False
    fail: bool = False
    leave: bool = False
    seconds: float = 0.0
    words: str = ""

PAPER = DEMO = Config()

def main(config):
    assert config.resume
    assert not (config.output_dir / "spent.json").exists()  # were it killed here, none may take the old one for all
    held = bytearray(50_000_000)
    print("working", len(held))
    with (config.output_dir / "ran.txt").open("a") as file:
        file.write("once\\n")
    if config.fail:
        raise ValueError("this one is broken")
    (config.output_dir / "before.json").write_text("{}")
    time.sleep(config.seconds)
    if config.leave:
        raise SystemExit(75)
    (config.output_dir / "after.json").write_text("{}")
'''


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "counting.py"
    path.write_text(RECIPE)
    return path


def job(recipe: Path, name: str, *flags: str, cost: float = 1.0) -> Job:
    return Job(name, recipe, flags, recipe.parent / "runs" / name, cost=cost)


def times_run(own: Job) -> int:
    path = own.folder / "ran.txt"
    return path.read_text().count("once") if path.exists() else 0


def test_in_processes_each_runs_once_and_a_failure_stops_nothing_else(recipe):
    jobs = [job(recipe, "a", cost=2.0), job(recipe, "b", "--fail"), job(recipe, "c", "--words", "x y")]
    seen: list[tuple[float, str]] = []
    failed = run_all(jobs, 2, lambda done, running: seen.append((done, running)))
    assert failed == [jobs[1]]
    assert [times_run(own) for own in jobs] == [1, 1, 1]
    assert "ValueError: this one is broken" in (jobs[1].folder / "log.txt").read_text()
    assert seen[-1] == (3.0, "")
    assert sorted(done for done, _ in seen) == [done for done, _ in seen]
    cost = cost_of(jobs[0])
    assert cost["seconds"] is not None
    assert cost["seconds"] > 0
    assert cost["megabytes"] is not None
    assert 40 < cost["megabytes"] < 500

    # The same again: only what failed, which is now told not to.
    jobs[1] = job(recipe, "b")
    assert run_all(jobs, 0, lambda done, running: None) == []
    assert [times_run(own) for own in jobs] == [1, 2, 1]


def test_a_trained_student_that_was_not_measured_is_only_measured(recipe, monkeypatch):
    measured: list[str] = []
    monkeypatch.setattr(runs, "score", lambda student, scoring: measured.append(student) or {})
    own = job(recipe, "a")
    run_all([own], 0, lambda done, running: None)
    run_all([own._replace(scoring="any")], 0, lambda done, running: None)  # type: ignore[arg-type]
    assert times_run(own) == 1
    assert measured == [str(own.folder / "student")]
    assert json.loads(own.scores.read_text()) == {}


def test_a_model_without_a_recipe_is_measured_alone(recipe, monkeypatch):
    measured: list[str] = []
    monkeypatch.setattr(runs, "score", lambda student, scoring: measured.append(student) or {})
    own = job(recipe, "a")._replace(recipe=None, model="some/model", scoring="any")  # type: ignore[arg-type]
    assert not own.finished
    assert run_all([own], 0, lambda done, running: None) == []
    assert measured == ["some/model"]
    assert not (own.folder / "runs.txt").exists()


def leave(recipe: Path, *flags: str) -> None:
    """A part of run `a` that a signal ends, which is how a study's process ends it."""
    with pytest.raises(SystemExit):
        run_all([job(recipe, "a", "--leave", *flags)], 0, lambda done, running: None)


def test_the_time_of_an_interrupted_run_is_that_of_its_parts(recipe):
    leave(recipe, "--seconds", "0.3")
    leave(recipe, "--seconds", "0.2")
    own = job(recipe, "a")
    assert not own.trained
    run_all([own], 0, lambda done, running: None)
    cost = cost_of(own)
    assert times_run(own) == 3
    assert cost["seconds"] is not None
    assert 0.5 < cost["seconds"] < 5.0
    assert cost["processor_seconds"] is not None
    assert 0.0 < cost["processor_seconds"] < cost["seconds"] + 0.5
    assert cost["megabytes"] is not None


def test_a_run_that_was_killed_has_no_time(recipe):
    """Its last part told nobody; an earlier one that did must not be taken for all."""
    leave(recipe)
    own = job(recipe, "a")
    (own.folder / "spent.json").unlink()  # as the part that goes on does first, to be killed then
    leave(recipe)
    assert json.loads((own.folder / "spent.json").read_text())["seconds"] is None
    run_all([own], 0, lambda done, running: None)
    assert cost_of(own)["seconds"] is None
    assert not (own.folder / "spent.json").exists()


def test_progress_follows_the_metrics(recipe):
    own = job(recipe, "a")._replace(steps=10)
    assert own.progress() == 0.0
    own.folder.mkdir(parents=True)
    (own.folder / "metrics.csv").write_text("step\n" + "1\n" * 5)
    assert own.progress() == pytest.approx(0.9 * 6 / 11)
    run_all([own], 0, lambda done, running: None)
    assert own.progress() == 1.0


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no recipe at .*nothing\.py"):
        load_recipe(tmp_path / "nothing.py")
