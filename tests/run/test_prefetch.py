"""One window ahead in a thread: the same things in the same order, errors where they belong, and no thread that stays."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from gakd.data import DataError
from gakd.run.prefetch import Prefetch
from tests.recipe_runs import ROOT, environment


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gakd-prefetch")]


def test_each_step_gets_its_own_and_nothing_is_made_beyond_the_end():
    made: list[int] = []

    def make(step: int) -> str:
        made.append(step)
        return f"window {step}"

    with Prefetch(make, end=7) as windows:
        assert [windows.at(step) for step in range(2, 7)] == [f"window {step}" for step in range(2, 7)]
        assert windows._next is None
    assert made == [2, 3, 4, 5, 6]
    assert threads() == []


def test_the_next_is_made_while_the_present_one_is_used_and_no_further():
    begun = [threading.Event() for _ in range(4)]
    used = threading.Event()
    names: set[str] = set()

    def make(step: int) -> int:
        begun[step].set()
        names.add(threading.current_thread().name)
        assert step == 0 or used.wait(60)
        return step

    with Prefetch(make, end=4) as windows:
        assert windows.at(0) == 0
        assert begun[1].wait(60)  # and it cannot end before `used`
        used.set()
        assert windows.at(1) == 1
        assert begun[2].wait(60)
        assert not begun[3].is_set()
    assert names == {"gakd-prefetch_0"}


def test_another_step_than_the_next_is_made_too():
    with Prefetch(lambda step: step, end=9) as windows:
        assert [windows.at(step) for step in (0, 0, 5, 6, 1)] == [0, 0, 5, 6, 1]


def test_an_error_comes_with_its_step_as_it_was_raised():
    def make(step: int) -> int:
        if step == 2:
            raise DataError("rows.jsonl:3: the row is gone")
        return step

    with Prefetch(make, end=9) as windows:
        assert [windows.at(step) for step in (0, 1)] == [0, 1]
        with pytest.raises(DataError) as error:
            windows.at(2)
    assert type(error.value) is DataError
    assert str(error.value) == "rows.jsonl:3: the row is gone"
    assert threads() == []


@pytest.mark.parametrize("leave", ["break", SystemExit, KeyboardInterrupt, RuntimeError])
def test_however_the_loop_is_left_the_thread_goes_with_it(leave):
    def steps():
        with Prefetch(lambda step: step, end=9) as windows:
            for step in range(9):
                yield windows.at(step)

    def loop() -> None:
        for step in steps():
            assert len(threads()) == 1
            if step == 3 and leave == "break":
                break
            if step == 3:
                raise leave

    if leave == "break":
        loop()
    else:
        with pytest.raises(leave):
            loop()
    assert threads() == []


@pytest.mark.slow
def test_a_process_ends_though_nobody_has_left_the_context():
    code = "from gakd.run.prefetch import Prefetch; windows = Prefetch(lambda step: step, 9); print(windows.at(3))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=300,
        check=True,
    )
    assert result.stdout.split() == ["3"]
