"""Signals of a scheduler: noticed, obeyed at the end of a step, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from gakd.run.interruptions import EXIT_STATUS, Interruptions
from tests.recipe_runs import arguments, assert_identical, make_material, metrics, run_here, run_there, signalled


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noticed_and_what_handled_it_before_does_so_again(number):
    heard: list[int] = []
    before = signal.signal(number, lambda number, frame: heard.append(number))
    try:
        with Interruptions() as interruptions:
            assert interruptions.received is None
            os.kill(os.getpid(), number)
            assert interruptions.received == signal.Signals(number).name
            assert heard == []
        os.kill(os.getpid(), number)
        assert heard == [number]
    finally:
        signal.signal(number, before)


def test_the_first_of_several_is_named():
    with Interruptions() as interruptions:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruptions.received == "SIGUSR1"


def test_a_second_ctrl_c_leaves_at_once():
    with Interruptions() as interruptions:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert interruptions.received == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_in_another_thread_nothing_is_noticed_and_nothing_breaks():
    found: list[str | None] = []

    def enter() -> None:
        with Interruptions() as interruptions:
            found.append(interruptions.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [None]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def run(processes: int, flags: list[str]) -> None:
    if processes == 1:
        run_here("gakd", *flags)
    else:
        result = run_there("gakd", *flags)
        assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize(
    ("number", "processes"),
    [
        (signal.SIGINT, 1),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_saves_its_step_and_leaves_and_goes_on_bit_for_bit(material, tmp_path, number, processes):
    """Between checkpoints; of two processes only the first is told."""
    flags = ["--steps", "24", "--save-every", "0", "--evaluate-every", "0", "--devices", str(processes)]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(processes, arguments(material, straight, *flags))
    status, printed = signalled("gakd", broken, arguments(material, broken, *flags), number, rows=4)
    assert status == EXIT_STATUS, printed[-3000:]
    (saved,) = (broken / "checkpoints").iterdir()
    step = metrics(broken)[-1]["step"]
    assert saved.name == f"step-{step}"
    assert 4 <= int(step) < 24
    assert f"{signal.Signals(number).name}: saved step {step}, leaving" in printed
    assert "Traceback" not in printed
    run(processes, arguments(material, broken, *flags, "--resume"))
    assert_identical(broken, straight)
