"""The checkpoint of the highest validation ROUGE-L: kept, found again, exported on request."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gakd.errors import InputError
from gakd.evaluation import HeldOut
from tests.recipe_runs import arguments, assert_identical, make_material, metrics, run_here, scores

VALIDATE = HeldOut.validate


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def run_with(material: Path, output: Path, monkeypatch, *flags: str) -> None:
    """Eight steps, validated after each of the even ones; the scores are ours, for a tiny model has none."""
    given = {"2": 1.0, "4": 3.0, "6": 3.0, "8": 2.0}
    calls = iter(given.values() if "--resume" not in flags else list(given.values())[2:])
    monkeypatch.setattr(HeldOut, "validate", lambda self, student: VALIDATE(self, student) | {"rouge_l": next(calls)})
    base = arguments(material, output, "--evaluate-every", "2", "--save-every", "3", "--keep-checkpoints", "1", *flags)
    run_here("gakd", *base)


def test_the_best_is_kept_and_exported(material, tmp_path, monkeypatch):
    last, best = tmp_path / "last", tmp_path / "best"
    run_with(material, last, monkeypatch)
    assert sorted(path.name for path in (last / "checkpoints").iterdir()) == ["step-4", "step-8"]
    run_with(material, best, monkeypatch, "--export", "best")
    expected, final = (load_file(best / "checkpoints" / f"step-{step}" / "student.safetensors") for step in (4, 8))
    exported = AutoModelForCausalLM.from_pretrained(best / "student").state_dict()
    for name, tensor in expected.items():
        assert torch.equal(exported[name.removeprefix("student.")], tensor)
    assert any(not torch.equal(expected[name], final[name]) for name in final)
    assert scores(best, "after")["cross_entropy"] != scores(last, "after")["cross_entropy"]
    assert metrics(best) == metrics(last)


def test_a_resumed_run_knows_the_best_before_it(material, tmp_path, monkeypatch):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_with(material, straight, monkeypatch, "--export", "best")
    shutil.copytree(straight, broken)
    for name in ("checkpoints/step-8", "student"):
        shutil.rmtree(broken / name)
    run_with(material, broken, monkeypatch, "--export", "best", "--resume")
    assert_identical(broken, straight)
    assert sorted(path.name for path in (broken / "checkpoints").iterdir()) == ["step-4", "step-8"]


def test_validations_generate_text_unless_told_not_to(material, tmp_path):
    run_here("sft", *arguments(material, tmp_path / "with", recipe="sft"))
    assert all(0 <= float(row["valid/rouge_l"]) <= 100 for row in metrics(tmp_path / "with") if row["valid/rouge_l"])
    assert sum(bool(row["valid/rouge_l"]) for row in metrics(tmp_path / "with")) == 2
    run_here("sft", *arguments(material, tmp_path / "without", "--valid-text-examples", "0", recipe="sft"))
    assert "valid/rouge_l" not in metrics(tmp_path / "without")[0]
    assert scores(tmp_path / "with", "after") == scores(tmp_path / "without", "after")


def test_the_best_of_nothing_is_refused(material, tmp_path):
    for name, flag in (("texts", "--valid-text-examples"), ("steps", "--evaluate-every")):
        with pytest.raises(InputError, match=f"--export best .*set {flag} above 0"):
            run_here("sft", *arguments(material, tmp_path / name, "--export", "best", flag, "0", recipe="sft"))
