"""Recipes that learn from text written during the run: buffers, several ranks, micro-batches, teachers without logits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gakd.models import ModelConfig, ModelError
from gakd.run import Run
from gakd.teachers import load_reader
from gakd.types import Batch
from tests.processes import run_on_two
from tests.recipe_runs import arguments, assert_close, assert_identical, make_material, metrics, run_here


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"), longest=10, certainty=20.0)


def column(output: Path, name: str) -> dict[int, float]:
    return {int(row["step"]): float(row[name]) for row in metrics(output) if row[name]}


@pytest.mark.slow
def test_each_rank_goes_on_with_its_own_buffer(material, tmp_path):
    """DistiLLM on two processes, taken up again from its second checkpoint: replayed text is that of the buffer it saved."""
    flags = ("--micro-batch-size", "2", "--steps", "10", "--save-every", "6", "--threshold-step", "0")
    straight, taken_up = tmp_path / "straight", tmp_path / "taken up"
    run_on_two("distillm", arguments(material, straight, *flags, recipe="distillm"), tmp_path / "printed")
    shutil.copytree(straight, taken_up)
    for name in ("checkpoints/step-10", "student"):
        shutil.rmtree(taken_up / name)
    (taken_up / "after.json").unlink()
    saved = [torch.load(taken_up / "checkpoints/step-6" / f"replay-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [len(state["lengths"]) for state in saved] == [32, 32]  # 16 samples, prompt and response
    assert not torch.equal(saved[0]["ids"], saved[1]["ids"])

    run_on_two("distillm", arguments(material, taken_up, *flags, "--resume", recipe="distillm"), tmp_path / "printed")
    assert_identical(taken_up, straight)
    replayed, written = (column(straight, name) for name in ("replayed_text", "student_text"))
    assert any(replayed[step] for step in range(7, 11))
    assert any(written[step] for step in range(1, 7))
    assert not any(replayed[step] and written[step] for step in replayed)


@pytest.mark.parametrize("recipe", ["minillm", "on_policy_reverse_kl"])
def test_micro_batches_leave_rollouts_and_advantages_alone(recipe, material, tmp_path, monkeypatch):
    cuts, positions = {}, {}
    of_run = Run.micro_batches

    def watched(run, window):
        batches = [item if isinstance(item, Batch) else item[0] for item in window]
        cuts[name].append(len(batches))
        positions[name] = max(positions[name], *(batch.labels.numel() for batch in batches))
        return of_run(run, window)

    monkeypatch.setattr(Run, "micro_batches", watched)
    for name, flags in (
        ("two", ("--micro-batch-size", "2")), ("eight", ("--micro-batch-size", "8")),
        ("tokens", ("--micro-batch-tokens", "240")),
    ):  # fmt: skip
        cuts[name], positions[name] = [], 0
        run_here(recipe, *arguments(material, tmp_path / name, *flags, "--steps", "3", recipe=recipe))
    for name in ("two", "tokens"):
        assert_close(tmp_path / name, tmp_path / "eight", tolerance=2e-4)
    assert max(cuts["eight"]) < min(cuts["tokens"])
    assert max(cuts["tokens"]) < min(cuts["two"])
    assert 120 < positions["tokens"] <= 240 < positions["eight"]
    assert len(set(column(tmp_path / "two", "policy_gradient").values())) == 3


def test_each_term_is_averaged_over_the_text_that_it_is_about(material, tmp_path):
    """MiniLLM's language modelling in its first step is what recipes of the dataset's text log in theirs."""
    for recipe in ("minillm", "sft", "forward_kl"):
        flags = ("--steps", "1", "--evaluate-every", "0")
        run_here(recipe, *arguments(material, tmp_path / recipe, *flags, recipe=recipe))
    first = {recipe: metrics(tmp_path / recipe)[0] for recipe in ("minillm", "sft", "forward_kl")}
    for recipe, term in (("sft", "cross_entropy"), ("forward_kl", "forward_kl")):
        assert float(first["minillm"][term]) == pytest.approx(float(first[recipe][term]), rel=1e-5)
    assert int(float(first["minillm"]["tokens"])) > int(float(first["sft"]["tokens"]))


def test_gad_takes_the_datasets_text_for_a_teacher_it_does_not_have(material, tmp_path):
    """Black box: no teacher is loaded, the discriminator learns all the same, and the student is moved by its score alone."""
    flags = ("--steps", "12", "--adversarial-start", "6", "--discriminator-learning-rate", "3e-3", "--kl-weight", "0")
    given = arguments(material, tmp_path / "run", *flags, recipe="gad")
    given[given.index("--teacher") + 1] = "None"
    run_here("gad", *given)
    assert not (tmp_path / "run" / "teacher-text").exists()
    accuracy, norms = column(tmp_path / "run", "discriminator_accuracy"), column(tmp_path / "run", "gradient_norm")
    assert accuracy[1] == 0.5
    assert min(accuracy[step] for step in (10, 11, 12)) > 0.9
    assert column(tmp_path / "run", "cross_entropy").keys() == set(range(1, 7))
    assert column(tmp_path / "run", "policy_gradient").keys() == set(range(7, 13))
    assert min(norms[step] for step in range(7, 13)) > 0


def test_distillm_2_without_curricula_weighs_both_texts_alike(material, tmp_path):
    plain = ("--no-adaptive-alpha", "--no-growing-weight")
    for name, switches in (("plain", plain), ("curricula", ())):
        run_here("distillm2", *arguments(material, tmp_path / name, "--steps", "4", *switches, recipe="distillm2"))
    first = {name: metrics(tmp_path / name)[0] for name in ("plain", "curricula")}
    for name in ("skew_forward_kl", "skew_reverse_kl"):
        # The same text and weights at the first step, compared more strictly where alpha may shrink.
        assert float(first["curricula"][name]) > float(first["plain"][name])


def test_what_reads_the_students_text_cannot_be_a_cache(tmp_path):
    config = ModelConfig(student="student", teacher="teacher", teacher_cache=tmp_path)
    with pytest.raises(
        ModelError, match="reads what the student writes, a teacher cache cannot: leave out --teacher-cache"
    ):
        load_reader(config, torch.float32, torch.device("cpu"))
