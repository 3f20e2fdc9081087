"""Metrics beside the CSV: the same numbers, a resumed run continues, a missing package is one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gakd.errors import InputError
from gakd.logging import Loggers, check_installed
from tests.recipe_runs import arguments, make_material, metrics, run_here


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "gakd-1").mkdir()
    (tmp_path / "gakd-1" / "config.json").write_text(json.dumps({"r1": 10.0}))
    return tmp_path / "gakd-1"


def test_a_missing_package_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--log-to wandb needs wandb: pip install 'gakd\[wandb\]'"):
        check_installed("wandb")


def test_tensorboard_gets_every_number_of_the_csv(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    material, output = make_material(tmp_path), tmp_path / "run"
    run_here("gakd", *arguments(material, output, "--log-to", "tensorboard"))
    events = accumulator.EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    rows = metrics(output)
    names = [name for name in rows[0] if name != "step"]
    assert {*events.Tags()["scalars"]} == {*names, "tokens_per_second"}
    for name in names:
        written = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        # The CSV has six digits, the events have float32.
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(written, rel=1e-5, abs=1e-12)


def test_tensorboard_forgets_steps_that_are_taken_again(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # The first was killed before its first checkpoint.
    for resume_at, factor in ((0, 7.0), (0, 1.0), (2, 10.0)):
        logger = Loggers(["tensorboard"], folder, resume_at, pytest.fail)
        for step in range(resume_at + 1, resume_at + 4):
            logger.log(step, {"loss": factor * step})
        logger.close()
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 1),
        (2, 2),
        (3, 30),
        (4, 40),
        (5, 50),
    ]


def tracker(calls: list) -> SimpleNamespace:
    """A stand-in for wandb or trackio that writes down what it is asked."""

    def init(**options):
        calls.append(("init", options))
        return SimpleNamespace(
            log=lambda *values, **more: calls.append(("log", *values, more)),
            define_metric=lambda *values, **more: calls.append(("define_metric", *values, more)),
            finish=lambda: calls.append(("finish",)),
        )

    return SimpleNamespace(init=init, __spec__=SimpleNamespace())


def test_wandb_runs_are_continued_and_their_axis_is_the_step(folder, monkeypatch):
    calls: list = []
    monkeypatch.setitem(sys.modules, "wandb", tracker(calls))
    for resume_at in (0, 1):
        logger = Loggers(["wandb"], folder, resume_at, pytest.fail)
        logger.log(resume_at + 1, {"loss": 0.5})
        logger.close()
    inits = [options for name, options, *_ in (call for call in calls if call[0] == "init")]
    assert inits[0] == inits[1]
    assert (inits[0]["name"], inits[0]["resume"], inits[0]["config"]) == ("gakd-1", "allow", {"r1": 10.0})
    assert ("define_metric", "*", {"step_metric": "step"}) in calls
    assert [call[1] for call in calls if call[0] == "log"] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    assert calls.count(("finish",)) == 2


def test_two_runs_in_folders_of_one_name_are_two(folder, tmp_path, monkeypatch):
    calls: list = []
    monkeypatch.setitem(sys.modules, "trackio", tracker(calls))
    other = tmp_path / "elsewhere" / "gakd-1"
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    for place in (folder, other, folder):
        logger = Loggers(["trackio"], place, 0, pytest.fail)
        logger.log(3, {"loss": 0.25})
        logger.close()
    names = [options["name"] for kind, options, *_ in (call for call in calls if call[0] == "init")]
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("gakd-1-") for name in names)
    assert ("log", {"loss": 0.25}, {"step": 3}) in calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_real_ones_take_it_without_a_network(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(name)
    for resume_at in (0, 2):
        logger = Loggers([name], folder, resume_at, pytest.fail)
        for step in (resume_at + 1, resume_at + 2):
            logger.log(step, {"loss": 1 / step, "valid/rouge_l": 2.0})
        logger.close()
    written = (
        list((folder / "wandb").rglob("*.wandb")) if name == "wandb" else list((tmp_path / "trackio").glob("*.db"))
    )
    assert len(written) == (2 if name == "wandb" else 1)


def test_one_that_raises_is_switched_off_and_the_others_go_on(folder, monkeypatch):
    calls: list = []
    monkeypatch.setitem(sys.modules, "trackio", tracker(calls))
    broken = tracker([])
    monkeypatch.setitem(sys.modules, "wandb", broken)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    said: list[str] = []
    begin = broken.init

    def init(**options):
        run = begin(**options)
        return SimpleNamespace(
            log=lambda *values: (_ for _ in ()).throw(ConnectionError("no route\n to [host]")),
            define_metric=run.define_metric, finish=lambda: pytest.fail("it is switched off"),
        )  # fmt: skip

    monkeypatch.setattr(broken, "init", init)
    loggers = Loggers(["wandb", "trackio"], folder, 0, said.append)
    for step in (1, 2):
        loggers.log(step, {"loss": 0.5})
    loggers.close()
    assert said == [
        "warning: --log-to wandb is switched off (ConnectionError: no route to \\[host]); metrics.csv has all numbers"
    ]
    assert [call[1:] for call in calls if call[0] == "log"] == [
        ({"loss": 0.5}, {"step": 1}),
        ({"loss": 0.5}, {"step": 2}),
    ]


def test_one_that_cannot_begin_is_switched_off_too(folder, monkeypatch):
    def init(**options):
        raise RuntimeError("not logged in")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    said: list[str] = []
    loggers = Loggers(["wandb"], folder, 0, said.append)
    loggers.log(1, {"loss": 0.5})
    loggers.close()
    assert len(said) == 1
    assert "wandb is switched off (RuntimeError: not logged in)" in said[0]


def test_project_and_name_are_those_that_were_given(folder, monkeypatch):
    calls: list = []
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, tracker(calls))
        Loggers([name], folder, 0, pytest.fail, "distilled", "first try").close()
        Loggers([name], folder, 0, pytest.fail).close()
    inits = [(call[1]["project"], call[1]["name"]) for call in calls if call[0] == "init"]
    identity = (folder / "run-id").read_text()
    assert inits == [
        ("distilled", "first try"), ("gakd", "gakd-1"), ("distilled", f"first try-{identity}"), ("gakd", f"gakd-1-{identity}"),
    ]  # fmt: skip


def test_an_mlflow_run_is_continued_and_has_every_number_and_setting(folder, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (folder / "config.json").write_text(json.dumps({"r1": 10.0, "run": {"steps": 4}}))
    for resume_at in (0, 2):
        logger = Loggers(["mlflow"], folder, resume_at, pytest.fail, "distilled")
        for step in (resume_at + 1, resume_at + 2):
            logger.log(step, {"loss": 1 / step, "valid/rouge_l": 2.0})
        logger.close()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("distilled").experiment_id])
    assert (run.info.run_name, run.info.status) == ("gakd-1", "FINISHED")
    assert run.data.params == {"r1": "10.0", "run.steps": "4"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {point.step: point.value for point in history} == {1: 1, 2: 0.5, 3: 1 / 3, 4: 0.25}
    assert run.data.metrics["valid/rouge_l"] == 2.0
