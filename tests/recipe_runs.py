"""Recipes run as users run them, on tiny models: what the tests of recipes share."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gakd import flags
from gakd.cli import parse
from gakd.cli.recipe_files import load_recipe
from tests import tiny
from tests.recipe_table import RECIPES, ROOT

# Sizes for tiny models, of those flags that a recipe has.
OWN_FLAGS = {
    "adversarial_start": "2", "adversarial_ramp": "2", "readout_width": "16",
    "teacher_max_new_tokens": "12", "student_max_new_tokens": "8",
    "discriminator": "student", "discriminator_layers": "1", "samples_per_prompt": "2", "updates": "2",
    "initial_threshold": "0.8", "replay_capacity": "16",
}  # fmt: skip


def make_material(folder: Path, longest: int = 30, certainty: float = 4.0) -> Path:
    """A teacher, a student and a dataset in folders: the longest response in characters, the factor of the teacher's logits."""
    words = tiny.tokenizer()
    tiny.save(folder / "teacher", tiny.model(width=48, layers=3, tied=False, seed=2, scale=certainty), words)
    tiny.save(folder / "student", tiny.model(layers=4, seed=1), words)
    (folder / "data").mkdir()
    draw = random.Random(0)
    for split, rows in (("train", 64), ("valid", 8), ("test", 8)):
        with (folder / "data" / f"{split}.jsonl").open("w") as file:
            for index in range(rows):
                response = "".join(draw.choices("abcd ", k=draw.randint(2, longest)))
                file.write(json.dumps({"instruction": f"{split} {index}", "output": f"<{response}>"}) + "\n")
    return folder


def arguments(material: Path, output: Path, *more: str, recipe: str = "gakd") -> list[str]:
    paper = module_of(recipe).PAPER
    teacher = [] if paper.models.teacher is None else ["--teacher", str(material / "teacher")]
    own: list[str] = []
    for name in flags_of(paper):
        if name in OWN_FLAGS:
            value = str(material / "student") if name == "discriminator" else OWN_FLAGS[name]
            own += [f"--{name.replace('_', '-')}", value]
    return [
        "--student", str(material / "student"), *teacher, "--dataset", str(material / "data"), "--output-dir", str(output),
        "--student-layers", "2", "--lora-rank", "0", "--steps", "8", "--batch-size", "8", "--micro-batch-size", "4",
        "--learning-rate", "3e-3", "--max-length", "96", "--max-prompt-length", "64", "--save-every", "2",
        "--evaluate-every", "4", "--examples", "4", "--text-examples", "2", "--max-new-tokens", "4", *own, *more,
    ]  # fmt: skip


def flags_of(config: Any) -> list[str]:
    """Names of all flags of a recipe, those of its groups included."""
    return [name for name, _ in flags.flags_of(config)]


def module_of(recipe: str) -> ModuleType:
    return load_recipe(RECIPES[recipe])


def run_here(recipe: str, *flags: str, plots: bool = False) -> None:
    """In this process. The curves at its end take as long as many steps, and every run that a user starts draws them."""
    module = module_of(recipe)
    with pytest.MonkeyPatch.context() as patch:
        if not plots:
            patch.setattr("gakd.evaluation.held_out.plot_metrics", lambda *files: None)
        module.main(parse(module.PAPER, module.DEMO, module.__doc__, flags))


def run_there(
    recipe: str, *flags: str, launcher: tuple[str, ...] = (), cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    command = [*(launcher or (sys.executable,)), os.path.relpath(RECIPES[recipe], cwd), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(), check=False)


def signalled(recipe: str, output: Path, flags: list[str], number: int, rows: int) -> tuple[int, str]:
    """A run that is sent a signal once its metrics hold so many rows: its exit status, and what it printed."""
    command = [sys.executable, str(RECIPES[recipe]), *flags]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment())
    deadline, path = time.monotonic() + 600, output / "metrics.csv"
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) > rows:
            process.send_signal(number)
            break
        time.sleep(0.005)
    printed = process.communicate(timeout=600)[0]
    return process.returncode, printed


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def metrics(output: Path) -> list[dict[str, str]]:
    with (output / "metrics.csv").open(newline="") as file:
        return [
            {name: cell for name, cell in row.items() if name != "tokens_per_second"} for row in csv.DictReader(file)
        ]


def scores(output: Path, name: str) -> dict[str, Any]:
    """The student's in before.json or after.json."""
    return json.loads((output / f"{name}.json").read_text())["student"]


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The exported student and, where there is one, the adversary and every optimizer moment of the last checkpoint."""
    steps = [path for path in (output / "checkpoints").iterdir() if path.suffix != ".damaged"]
    last = max(steps, key=lambda path: int(path.name.removeprefix("step-")))
    found = {f"student.{name}": tensor for name, tensor in load_file(output / "student" / "model.safetensors").items()}
    for path in sorted(last.glob("*.safetensors")):
        found |= {f"{path.stem}.{name}": tensor for name, tensor in load_file(path).items()}
    for path in sorted(last.glob("*_optimizer.pt")):
        for index, state in torch.load(path, weights_only=True)["state"].items():
            found |= {f"{path.stem}.{index}.{name}": value for name, value in state.items()}
    return found


def assert_identical(output: Path, expected: Path) -> None:
    """Bit for bit: weights, optimizers, every logged number, and what was measured and written at the end."""
    ours, theirs = weights(output), weights(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert metrics(output) == metrics(expected)
    assert scores(output, "after") == scores(expected, "after")


def assert_close(output: Path, expected: Path, tolerance: float) -> None:
    """The same weights; and, since Adam and clipping forgive a wrong factor, the same losses and gradient norms at every step."""
    ours, theirs = weights(output), weights(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if ".exp_avg" not in name:
            torch.testing.assert_close(
                ours[name], theirs[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )
    for row, other in zip(metrics(output), metrics(expected), strict=True):
        # How much is padding follows from the micro-batches.
        values, others = (
            {name: float(cell) for name, cell in cells.items() if cell and name != "padding"} for cells in (row, other)
        )
        assert values == pytest.approx(others, rel=5e-3, abs=1e-4)
