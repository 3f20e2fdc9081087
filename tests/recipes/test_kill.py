"""Runs, caches and generated text that are killed at random moments, and still end with the same bytes."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import reliability
from tests.lives import TOO_LATE, Moment, killed
from tests.processes import finish, start
from tests.recipe_runs import arguments, assert_identical, make_material
from tests.recipe_table import RECIPES
from tests.recipes.test_cached import cache_arguments
from tests.recipes.test_tools import ENVIRONMENT, command, run

pytestmark = pytest.mark.slow

THREE: tuple[Moment, ...] = ("while it starts", "while it trains", "while it saves")


class Case(NamedTuple):
    """A recipe and its flags, on so many processes, killed at these moments."""

    recipe: str
    flags: tuple[str, ...] = ()
    moments: tuple[Moment, ...] = THREE
    processes: int = 1
    steps: int = 30


LORA = ("--lora-rank", "2", "--precision", "bf16-true")
CASES = {name: Case(name) for name in RECIPES if name != "gakd"} | {
    "gakd": Case("gakd", moments=THREE * 6 + ("while it exports",) * 4, steps=100),
    "gakd on two processes": Case("gakd", moments=THREE * 2 + ("while it exports",), processes=2),
    "gakd, LoRA in bfloat16": Case("gakd", LORA, (*THREE, "while it exports")),
    "gakd from a teacher cache": Case("gakd", ("--teacher-cache", "CACHE"), (*THREE, "while it exports")),
}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = make_material(tmp_path_factory.mktemp("material"), longest=10)
    run("cache_teacher", *cache_arguments(folder), "--output", folder / "cache", cwd=folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_was_killed_has_the_bits_of_one_that_was_not(material, tmp_path, name):
    case = CASES[name]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    own = [str(material / "cache") if flag == "CACHE" else flag for flag in case.flags]
    flags = [
        "--steps",
        str(case.steps),
        "--save-every",
        "2",
        "--evaluate-every",
        "10",
        "--devices",
        str(case.processes),
        *own,
    ]
    whole = arguments(material, straight, *flags, recipe=case.recipe)
    assert finish(start(case.recipe, whole, case.processes)) == [0] * case.processes
    began, ended = (straight / place for place in ("before.json", f"checkpoints/step-{case.steps}"))
    pace = (ended.stat().st_mtime - began.stat().st_mtime) / case.steps
    draw = random.Random(name)
    resumed = arguments(material, broken, *flags, "--resume", recipe=case.recipe)
    deaths = killed(case.recipe, resumed, broken, case.moments, pace, draw, case.processes)
    assert deaths.count(TOO_LATE) <= max(1, len(case.moments) // 4), (
        deaths
    )  # on a busy machine one may come after the end
    assert finish(start(case.recipe, resumed, case.processes)) == [0] * case.processes
    assert_identical(broken, straight)
    left = [*broken.glob("checkpoints/*.tmp"), *broken.glob("checkpoints/*.old"), *broken.glob(".student-*")]
    assert left == []
    for moment, count in Counter(death for death in deaths if death != TOO_LATE).items():
        reliability.note("kills", f"{name}, {moment}", count, survived=count)


TOOLS = {
    "a teacher's cache": ("cache_teacher", lambda material: cache_arguments(material), "killed/manifest.json"),
    "generated text": (
        "generate",
        lambda material: [
            "--model", material / "teacher", "--dataset", material / "data", "--batch-size", 2, "--max-new-tokens", 40,
            "--max-length", 96, "--max-prompt-length", 64,
        ],
        "killed/train.jsonl.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_that_was_killed_leaves_the_bytes_of_one_that_was_not(material, tmp_path, name):
    tool, arguments_of, begun = TOOLS[name]
    outputs = {place: place if tool == "cache_teacher" else f"{place}/train.jsonl" for place in ("whole", "killed")}
    began = time.monotonic()
    run(tool, *arguments_of(material), "--output", outputs["whole"], cwd=tmp_path)
    written = {path.name: path.stat().st_mtime for path in (tmp_path / "whole").iterdir()}
    duration = max(written.values()) - min(written.values())
    assert time.monotonic() - began > duration
    draw, count = random.Random(name), 0
    for _ in range(3):
        process = subprocess.Popen(
            command(tool, *arguments_of(material), "--output", outputs["killed"]), cwd=tmp_path, env=ENVIRONMENT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        before = (tmp_path / begun).stat().st_mtime_ns if (tmp_path / begun).exists() else 0
        while process.poll() is None:
            if (tmp_path / begun).exists() and (tmp_path / begun).stat().st_mtime_ns > before:
                time.sleep(draw.uniform(0, duration / 3))
                break
            time.sleep(0.002)
        count += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert count >= 2
    run(tool, *arguments_of(material), "--output", outputs["killed"], cwd=tmp_path)
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / place).iterdir()} for place in ("killed", "whole")
    )
    assert ours.keys() == theirs.keys()
    assert [file for file in ours if ours[file] != theirs[file]] == []
    reliability.note("kills", f"{name}, while it is written", count, survived=count)


def test_every_recipe_is_killed():
    assert {case.recipe for case in CASES.values()} == set(RECIPES)
