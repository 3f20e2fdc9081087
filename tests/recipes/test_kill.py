"""Runs that are killed at twenty random moments, also while they write a checkpoint, and still end with the same bits."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.recipe_runs import arguments, assert_identical, make_material, run_here

KILLS, STEPS = 20, 100


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"), longest=10)


@pytest.fixture(scope="module")
def server():
    """Processes that begin with everything imported: what is tested is 40 lives, not 40 times the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.recipe_runs", "gakd.evaluation", "gakd.run.training", "gakd.samplers.replay"]
    )
    return context


def live(recipe: str, flags: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (as long as the process lives)
    run_here(recipe, *flags)


def start(server, recipe: str, flags: list[str], processes: int) -> list[BaseProcess]:
    """One life: as many processes as a launcher would start, with the variables that it would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    lives = []
    for rank in range(processes):
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
        if processes > 1:
            environment |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        lives.append(server.Process(target=live, args=(recipe, flags, environment)))
        lives[-1].start()
    return lives


def finish(lives: list[BaseProcess]) -> list[int | None]:
    for process in lives:
        process.join(300)
    return [process.exitcode for process in lives]


def wait_for(condition, lives: list[BaseProcess]) -> bool:
    """Whether the condition came true while all processes lived."""
    deadline = time.monotonic() + 120
    while all(process.is_alive() for process in lives) and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False


def seconds_per_step(output: Path) -> float:
    began = (output / "before.json").stat().st_mtime
    return ((output / "checkpoints" / f"step-{STEPS}").stat().st_mtime - began) / STEPS


def kill_at_random(lives: list[BaseProcess], output: Path, draw: random.Random, pace: float) -> str:
    """SIGKILL, anywhere in the run or in the middle of a checkpoint; returns which, or `too late`."""
    metrics = output / "metrics.csv"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    where = draw.choice(["while it starts", "while it trains", "while it saves"])
    if where == "while it starts":
        time.sleep(draw.uniform(0, 1.5))
    else:
        began = wait_for(lambda: metrics.exists() and metrics.stat().st_mtime_ns > before, lives)
        time.sleep(draw.uniform(0, 3 * pace))
        if where == "while it saves":
            began = wait_for(lambda: any(output.glob("checkpoints/*.tmp")), lives)
            time.sleep(draw.uniform(0, 0.03))
        if not began:
            return "too late"
    alive = all(process.is_alive() for process in lives)
    for process in draw.sample(lives, len(lives)):
        process.kill()
    finish(lives)
    return where if alive else "too late"


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "processes"), [("gakd", 1), ("distillm", 1), ("gakd", 2)])
def test_a_run_killed_twenty_times_has_the_bits_of_one_that_was_not(server, material, tmp_path, recipe, processes):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    flags = ["--steps", str(STEPS), "--save-every", "2", "--evaluate-every", "10", "--devices", str(processes)]
    assert (
        finish(start(server, recipe, arguments(material, straight, *flags, recipe=recipe), processes))
        == [0] * processes
    )
    draw = random.Random(f"{recipe} {processes}")
    resumed = arguments(material, broken, *flags, "--resume", recipe=recipe)
    deaths = [
        kill_at_random(start(server, recipe, resumed, processes), broken, draw, seconds_per_step(straight))
        for _ in range(KILLS)
    ]
    assert "too late" not in deaths
    assert set(deaths) == {"while it starts", "while it trains", "while it saves"}
    assert finish(start(server, recipe, resumed, processes)) == [0] * processes
    assert_identical(broken, straight)
    assert not list(broken.glob("checkpoints/*.tmp"))
    assert not list(broken.glob("checkpoints/*.old"))
