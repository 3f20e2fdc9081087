"""The cache tool killed and run again, and every recipe run from a cache: as a user runs them, on tiny models."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from gakd.teachers import CacheError
from tests.processes import run_on_two
from tests.recipe_runs import arguments, make_material, metrics, run_here, weights
from tests.recipes.test_tools import ENVIRONMENT, command, run

RECIPES = ("gakd", "sft", "forward_kl", "reverse_kl", "jensen_shannon")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def cached(material, tmp_path_factory) -> Path:
    """Student, data, a cache, and a teacher without weights: nothing here can load it."""
    folder = tmp_path_factory.mktemp("cached")
    shutil.copytree(material, folder, dirs_exist_ok=True)
    run("cache_teacher", *cache_arguments(folder), "--output", folder / "cache", cwd=folder)
    for path in (folder / "teacher").iterdir():
        path.unlink()
    (folder / "teacher").rmdir()
    return folder


def cache_arguments(folder: Path) -> list[object]:
    return [
        "--teacher", folder / "teacher", "--dataset", folder / "data", "--max-length", 96, "--max-prompt-length", 64,
        "--batch-size", 2, "--shard-megabytes", 0,
    ]  # fmt: skip


def from_cache(cached: Path, output: Path, *more: str, recipe: str = "gakd") -> list[str]:
    teacher = ["--teacher", str(cached / "teacher")] if recipe == "sft" else []
    return arguments(cached, output, *teacher, "--teacher-cache", str(cached / "cache"), *more, recipe=recipe)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_a_killed_cache_goes_on_and_has_the_same_bytes(material, cached, tmp_path):
    killed = tmp_path / "killed"
    begin = command("cache_teacher", *cache_arguments(material), "--output", killed)
    process = subprocess.Popen(begin, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (killed / "shard-00004.safetensors").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not json.loads((killed / "manifest.json").read_text())["complete"]
    (killed / ".shard-00039.safetensors.tmp").write_bytes(b"left by a kill in the middle of a file")
    assert "80 sequences" in run("cache_teacher", *cache_arguments(material), "--output", killed, cwd=tmp_path)
    ours, theirs = contents(killed), contents(cached / "cache")
    manifest, expected = (json.loads(files.pop("manifest.json")) for files in (ours, theirs))
    assert ours == theirs
    assert len(ours) == 1 + 40
    for settings in (manifest["settings"], expected["settings"]):  # the two differ in where teacher and data were
        del settings["teacher"], settings["dataset"]
    assert manifest.pop("digest") != expected.pop("digest")
    assert manifest == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_from_the_cache_as_with_the_teacher(recipe, material, cached, tmp_path):
    live = ["--teacher", str(material / "teacher")]
    run_here(recipe, *arguments(material, tmp_path / "live", *live, recipe=recipe))
    run_here(recipe, *from_cache(cached, tmp_path / "cached", recipe=recipe))
    for ours, theirs in zip(metrics(tmp_path / "cached"), metrics(tmp_path / "live"), strict=True):
        values, others = ({name: float(cell) for name, cell in row.items() if cell} for row in (ours, theirs))
        # Another batch composition rounds otherwise; from the second step on the weights carry the difference.
        rough = int(ours["step"]) > 2
        assert values == pytest.approx(others, rel=2e-3 if rough else 1e-5, abs=1e-4 if rough else 1e-6)
    before = json.loads((tmp_path / "cached" / "before.json").read_text())
    expected = json.loads((tmp_path / "live" / "before.json").read_text())
    for name in ("cross_entropy", "forward_kl", "reverse_kl"):
        assert before["student"][name] == pytest.approx(expected["student"][name], rel=1e-5)
    assert before["teacher"]["cross_entropy"] == pytest.approx(expected["teacher"]["cross_entropy"], rel=1e-5)
    assert before["teacher"]["predictions"] == []


def test_a_cached_run_resumes_bit_for_bit(cached, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_here("gakd", *from_cache(cached, straight))
    shutil.copytree(straight, broken)
    shutil.rmtree(broken / "checkpoints" / "step-8")
    shutil.rmtree(broken / "student")
    run_here("gakd", *from_cache(cached, broken, "--resume"))
    ours, theirs = weights(broken), weights(straight)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(broken) == metrics(straight)


@pytest.mark.slow
def test_two_processes_read_one_cache(cached, tmp_path):
    run_here("forward_kl", *from_cache(cached, tmp_path / "one", recipe="forward_kl"))
    run_on_two("forward_kl", from_cache(cached, tmp_path / "two", recipe="forward_kl"), tmp_path / "printed")
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        values, others = (
            {name: float(cell) for name, cell in row.items() if cell and name != "padding"} for row in (ours, theirs)
        )
        assert values == pytest.approx(others, rel=5e-3, abs=1e-4)


def test_a_cache_that_lacks_the_data_is_refused_before_the_first_step(cached, tmp_path):
    with pytest.raises(CacheError, match=r"64 training examples are not in .*made with max_length 96, this run has 70"):
        run_here("gakd", *from_cache(cached, tmp_path / "run", "--max-length", "70"))
    assert not (tmp_path / "run" / "metrics.csv").exists()
