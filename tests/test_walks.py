"""The three ways in which people use gakd, each walked without a stop, as they would type it, from a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.recipe_runs import make_material, metrics

WALKS = Path(__file__).with_name("walks")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("models"))


@pytest.fixture
def walk(models, tmp_path):
    """Runs a script in an empty folder with 64 rows in it; what it printed."""
    rows = (models / "data" / "train.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows)

    def run(script: str) -> str:
        interpreter = "bash" if script.endswith(".sh") else sys.executable
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"STUDENT": str(models / "student"), "TEACHER": str(models / "teacher"), "PATH": path}
        quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        done = subprocess.run(
            [interpreter, WALKS / script],
            cwd=tmp_path, env=os.environ | own | quiet, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        return done.stdout

    return run


def test_a_researcher_composes_a_loss_a_game_and_a_loop_of_her_own(walk):
    printed = walk("researcher.py")
    assert (
        "0.5 * cross_entropy + 0.5 * hellinger + 0.01 * feature + ramp(0.1, start=2, steps=1) * adversarial(" in printed
    )
    assert "call adversarial.flush() after the last backward" in printed


@pytest.mark.slow
def test_an_engineer_ships_a_small_model(walk, tmp_path):
    printed = walk("engineer.sh")
    run = tmp_path / "runs" / "game"
    assert [row["step"] for row in metrics(run) if row["learning_rate"]] == [str(step) for step in range(1, 9)]
    assert "reverse_kl" in (tmp_path / "report.html").read_text()
    assert len((tmp_path / "written.jsonl").read_text().splitlines()) == 4
    assert "KL(student‖teacher)" in printed
    # What comes out needs no gakd.
    student = AutoModelForCausalLM.from_pretrained(run / "student", dtype="auto")
    assert student.dtype == torch.bfloat16
    assert student.config.num_hidden_layers == 2
    ids = AutoTokenizer.from_pretrained(run / "student")("train 1", return_tensors="pt").input_ids
    assert student.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]
    card = (run / "student" / "README.md").read_text()
    assert "0.5 * cross_entropy + 0.5 * reverse_kl" in card
    assert str(tmp_path) not in card
    assert json.loads((run / "student" / "config.json").read_text())["gakd_version"]


@pytest.mark.slow
def test_a_student_changes_a_line_of_a_recipe(walk, tmp_path):
    printed = walk("student.sh")
    assert "'total_variation'" in printed
    assert "reverse_kl" in printed  # listed by `gakd ls`
    assert all(float(row["total_variation"]) > 0 for row in metrics(tmp_path / "runs" / "mine") if row["learning_rate"])
