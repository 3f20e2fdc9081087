"""Each recipe's two steps on the card as a user runs them, with --precision auto; and a resume, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from gakd.run import Run
from tests.gpu.check_part import is_dry
from tests.recipe_runs import arguments, assert_identical, make_material, metrics, run_here, weights
from tests.recipe_table import RECIPES

# With the compilers that `auto` takes on CUDA; all the others without, since each objective is compiled anew.
COMPILED = {"gakd", "released", "gkd", "minillm", "uld"}
NAMES = ["gakd"] if is_dry() else sorted(RECIPES, key=lambda name: name not in COMPILED)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def material(device, tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"), longest=10, certainty=20.0)


@pytest.mark.parametrize("recipe", NAMES)
def test_two_steps(recipe, material, tmp_path):
    output = tmp_path / "run"
    eager = [] if recipe in COMPILED else ["--kernel", "eager", "--compile", "off"]
    run_here(recipe, *arguments(material, output, "--steps", "2", "--evaluate-every", "2", *eager, recipe=recipe))
    rows = [row for row in metrics(output) if row["gradient_norm"]]
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(row["gradient_norm"])) and float(row["gradient_norm"]) > 0 for row in rows)
    assert (output / "student" / "model.safetensors").exists()


def run_and_resume(flags: list[str], again: list[str], monkeypatch) -> None:
    """Broken off in the middle of the fourth step, after the checkpoint of the second."""
    update = Run.update

    def update_or_stop(run: Run) -> None:
        if run.step == 3:
            raise Interrupted
        update(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", update_or_stop)
        with pytest.raises(Interrupted):
            run_here("gakd", *flags)
    run_here("gakd", *again)


def differing(ours: Path, theirs: Path) -> list[str]:
    """Names of tensors, exported or of the last checkpoint, that are not the same bits."""
    own, other = weights(ours), weights(theirs)
    assert own.keys() == other.keys()
    return [name for name in own if not torch.equal(own[name], other[name])]


def resumable(material: Path, output: Path) -> list[str]:
    return arguments(material, output, "--steps", "5", "--save-every", "2", "--evaluate-every", "0")


@pytest.mark.filterwarnings("ignore:.*deterministic.*")
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit_with_deterministic_kernels(material, tmp_path, monkeypatch):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        run_here("gakd", *resumable(material, tmp_path / "straight"))
        flags = resumable(material, tmp_path / "broken")
        run_and_resume(flags, [*flags, "--resume"], monkeypatch)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_identical(tmp_path / "broken", tmp_path / "straight")
    assert differing(tmp_path / "broken", tmp_path / "straight") == []


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit_as_users_run_it(material, tmp_path, monkeypatch):
    for name in ("straight", "twin"):
        run_here("gakd", *resumable(material, tmp_path / name))
    if apart := differing(tmp_path / "twin", tmp_path / "straight"):
        pytest.skip(
            f"two uninterrupted runs differ in {len(apart)} tensors themselves: torch has kernels that add in any order"
        )
    flags = resumable(material, tmp_path / "broken")
    run_and_resume(flags, [*flags, "--resume"], monkeypatch)
    assert_identical(tmp_path / "broken", tmp_path / "straight")
    assert differing(tmp_path / "broken", tmp_path / "straight") == []
