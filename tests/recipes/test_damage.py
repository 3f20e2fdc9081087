"""Every file that a run reads, damaged between stop and resumption: the same bits all the same, or a line that names it."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections import Counter
from pathlib import Path

import pytest

from gakd.errors import InputError, RunError
from gakd.run import Run
from tests import reliability
from tests.recipe_runs import arguments, assert_identical, make_material, run_here
from tests.recipes.test_cached import cache_arguments
from tests.recipes.test_tools import run

pytestmark = pytest.mark.slow

# With its own table of faults a run takes the time for more of them.
FLIPS = 8 if reliability.FILE in os.environ else 1
CASES = {"LoRA": ("--lora-rank", "2"), "a teacher cache": ("--teacher-cache", "OWN/cache")}


class Stopped(Exception):
    pass


def files_of(case: str) -> list[str]:
    """What is read when a run goes on, by where it is in the folder of a case; the last checkpoint stands for all."""
    of_run = [
        "config.json", "data.json", "models.json", "before.json", "metrics.csv",
        *(f"checkpoints/step-6/{name}" for name in (
            "manifest.json", "student.safetensors", "adversarial.safetensors", "student_optimizer.pt",
            "adversarial_optimizer.pt", "rng-0.pt",
        )),
    ]  # fmt: skip
    of_models = [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    ]  # fmt: skip
    student = [f"student/{name}" for name in of_models]
    if case == "LoRA":
        data = [f"data/{split}.jsonl" for split in ("train", "valid", "test")]
        return [*(f"run/{name}" for name in of_run), *student, *(f"teacher/{name}" for name in of_models), *data]
    return ["cache/manifest.json", "cache/head.safetensors", "cache/shard-00000.safetensors"]


@pytest.fixture(scope="module", params=CASES)
def stopped(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """A case, a run of it that was not stopped, and a folder with everything that one which was will read."""
    folder = make_material(tmp_path_factory.mktemp("material"), longest=10)
    if request.param != "LoRA":
        run("cache_teacher", *cache_arguments(folder), "--output", folder / "cache", "--shard-megabytes", 1, cwd=folder)
    straight = tmp_path_factory.mktemp("straight") / "run"
    run_here("gakd", *flags(request.param, folder, straight))
    update = Run.update

    def update_or_stop(run: Run) -> None:
        if run.step == 7:
            raise Stopped
        update(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "update", update_or_stop)
        with pytest.raises(Stopped):
            run_here("gakd", *flags(request.param, folder, folder / "run"))
    return request.param, straight, folder


def flags(case: str, folder: Path, output: Path) -> list[str]:
    return arguments(folder, output, *(flag.replace("OWN", str(folder)) for flag in CASES[case]))


def damages(whole: bytes, draw: random.Random) -> dict[str, bytes | None]:
    """What becomes of a file's content, by the name of the fault; None where it is gone."""
    middle = len(whole) // 2
    found: dict[str, bytes | None] = {
        "gone": None, "empty": b"", "cut": whole[:middle],
        "zeros": whole[:middle] + bytes(min(64, len(whole) - middle)) + whole[middle + 64 :],
    }  # fmt: skip
    for flip in range(FLIPS):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        found[f"bit {flip}"] = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
    return found


@pytest.mark.parametrize("part", [0, 1, 2])
def test_damage_changes_no_bit_without_a_word(stopped, tmp_path, part):
    case, straight, folder = stopped
    outcomes: dict[str, list[str]] = {}
    for name in files_of(case)[part::3]:
        whole = (folder / name).read_bytes()
        assert whole, f"{name} is empty before it is damaged"
        for fault, content in damages(whole, random.Random(name)).items():
            # The paths of a run are among its settings, so it goes on where it was.
            kept = tmp_path / "kept"
            shutil.copytree(folder, kept, copy_function=shutil.copy2)
            if content is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(content)
            outcomes.setdefault(name, []).append(f"{fault}: {outcome(case, folder, straight, name)}")
            shutil.rmtree(folder)
            shutil.move(kept, folder)
    wrong = {name: [one for one in found if not one.endswith(GOOD)] for name, found in outcomes.items()}
    assert {name: found for name, found in wrong.items() if found} == {}
    for name, found in outcomes.items():
        count = Counter(one.partition(": ")[2] for one in found)
        what = name.replace("step-6", "step-N").replace("shard-00000", "shard-N")
        reliability.note("damage", f"`{what}`", len(found), count["the same bits"], count["named"])


GOOD = ("the same bits", "named")


def outcome(case: str, folder: Path, straight: Path, name: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_here("gakd", *flags(case, folder, folder / "run"), "--resume")
    except (InputError, RunError) as error:
        return "named" if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return f"a traceback: {type(error).__name__}: {str(error)[:200]}"
    if name.endswith("metrics.csv"):  # a digit that is another, or rows that are lost: nothing is trained on them
        shutil.copy(straight / "metrics.csv", folder / "run")
    try:
        assert_identical(folder / "run", straight)
    except AssertionError as error:
        return f"other bits: {str(error)[:200]}"
    return "the same bits"
