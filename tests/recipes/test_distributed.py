"""Two processes give what one gives, whole on each (DDP) or cut over both (FSDP2): losses, gradients, games, exports, resumes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run_on_two
from tests.recipe_runs import arguments, assert_identical, make_material, metrics, run_here, scores

# What the student writes is then the same however it is dealt to ranks, which draw random numbers of their own.
GREEDY = ("--student-text", "0.7", "--student-temperature", "0")
# Dropout too is drawn by each rank for itself.
LORA = ("--lora-rank", "16", "--lora-dropout", "0")
CASES = {"gakd": ("gakd", ()), "gakd with LoRA": ("gakd", LORA), "gkd": ("gkd", GREEDY)}
# Several batches of an evaluation, which ranks share.
EVALUATION = ("--evaluation-batch-size", "1")
# Adapters and a sampler on two processes take as long again, twice.
QUICK = "gakd"


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"), longest=40)  # from 4 to 42 tokens: very uneven masks


@pytest.fixture(
    scope="module", params=[pytest.param(case, marks=() if case == QUICK else pytest.mark.slow) for case in CASES]
)
def alone(request, material, tmp_path_factory) -> tuple[str, tuple[str, ...], Path]:
    """A recipe, its flags, and the folder of its run in one process."""
    recipe, flags = CASES[request.param]
    output = tmp_path_factory.mktemp("alone") / "run"
    run_here(recipe, *arguments(material, output, "--steps", "5", *EVALUATION, *flags, recipe=recipe))
    return recipe, flags, output


def on_two(recipe: str, material: Path, output: Path, strategy: str, *flags: str) -> Path:
    given = arguments(
        material,
        output,
        "--steps",
        "5",
        "--micro-batch-size",
        "2",
        *EVALUATION,
        *flags,
        recipe=recipe,
    )
    run_on_two(recipe, [*given, "--strategy", strategy], output.with_suffix(".txt"))
    return output


# Whole weights on two processes are in the quick tier by another launcher: tests/recipes/test_gakd.py.
@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_two_processes_give_what_one_gives(alone, strategy, material, tmp_path):
    """Four micro-batches of two against two of four. Adam forgives a wrong factor: losses and gradient norms must agree too."""
    recipe, flags, expected = alone
    output = on_two(recipe, material, tmp_path / "run", strategy, *flags)
    found, wanted = (load_file(folder / "student" / "model.safetensors") for folder in (output, expected))
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)
    for row, other in zip(metrics(output), metrics(expected), strict=True):
        ours, theirs = (
            {key: float(cell) for key, cell in cells.items() if cell and key != "padding"} for cells in (row, other)
        )
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    if recipe == "gakd":
        found, wanted = (
            load_file(folder / "checkpoints/step-5/adversarial.safetensors") for folder in (output, expected)
        )
        # Its Adam has no momentum: where a gradient is next to nothing, a rounding error is a quarter of a step of 2e-4.
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=5e-5)
    for when in ("before", "after"):
        ours, theirs = (scores(folder, when) for folder in (output, expected))
        assert ours["predictions"] == theirs["predictions"]
        assert ours["reverse_kl"] == pytest.approx(theirs["reverse_kl"], rel=1e-4)


@pytest.mark.slow
def test_a_sharded_run_resumes_bit_for_bit(material, tmp_path):
    straight, taken_up = tmp_path / "straight", tmp_path / "taken up"
    on_two("gakd", material, straight, "fsdp2")  # saves at steps 2, 4 and 5
    shutil.copytree(straight, taken_up)
    for name in ("checkpoints/step-5", "student"):
        shutil.rmtree(taken_up / name)
    parts = [load_file(taken_up / "checkpoints/step-4" / f"student-{rank}.safetensors") for rank in (0, 1)]
    assert all(parts[0][name].shape[0] <= 272 // 2 for name in parts[0])
    on_two("gakd", material, taken_up, "fsdp2", "--resume")
    assert_identical(taken_up, straight)


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_cut_another_way(material, tmp_path):
    """Two with cut weights, then one, then two with whole ones: no dropout, so only sums are added in another order."""
    straight, taken_up = tmp_path / "straight", tmp_path / "taken up"
    on_two("gakd", material, straight, "fsdp2", "--keep-checkpoints", "9")
    shutil.copytree(straight, taken_up)

    def forget(*names: str) -> None:
        for name in names:
            shutil.rmtree(taken_up / name)

    forget("checkpoints/step-5", "checkpoints/step-4", "student")
    flags = arguments(material, taken_up, "--steps", "5", "--micro-batch-size", "2", *EVALUATION, "--resume")
    with pytest.warns(UserWarning, match="written by 2 processes with weights cut over them, this run has 1 process: "):
        run_here("gakd", *flags)
    forget("checkpoints/step-5", "student")
    assert (taken_up / "checkpoints/step-4/student.safetensors").exists()
    given = arguments(
        material,
        taken_up,
        "--steps",
        "5",
        "--micro-batch-size",
        "2",
        "--strategy",
        "ddp",
        *EVALUATION,
        "--resume",
    )
    said = run_on_two("gakd", given, tmp_path / "printed")
    assert "was written by 1 process, this run has 2 processes" in said
    for row, other in zip(metrics(taken_up), metrics(straight), strict=True):
        ours, theirs = (
            {key: float(cell) for key, cell in cells.items() if cell and key != "padding"} for cells in (row, other)
        )
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_sharded_weights_low_precision_and_recomputed_activations_go_together(precision, material, tmp_path):
    flags = ("--precision", precision, "--activation-checkpointing", "--cross-entropy-weight", "1")
    output = on_two("gakd", material, tmp_path / "run", "fsdp2", *flags)
    losses = [float(row["cross_entropy"]) for row in metrics(output) if row["cross_entropy"]]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "strategy"), [("muon", "ddp"), ("adafactor", "ddp"), ("sgd", "ddp"), ("sgd", "fsdp2")]
)
def test_other_optimizers_step_on_two_processes_as_on_one(optimizer, strategy, material, tmp_path):
    flags = ("--optimizer", optimizer, "--learning-rate", "1e-2", "--evaluate-every", "0")
    run_here("reverse_kl", *arguments(material, tmp_path / "alone", "--steps", "5", *flags, recipe="reverse_kl"))
    output = on_two("reverse_kl", material, tmp_path / "run", strategy, *flags)
    for row, other in zip(metrics(output), metrics(tmp_path / "alone"), strict=True):
        for name in ("cross_entropy", "reverse_kl", "gradient_norm"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-3)
    found, wanted = (load_file(tmp_path / run / "student" / "model.safetensors") for run in ("run", "alone"))
    for name in wanted:
        # Where a gradient is next to nothing, a rounding error is a part of an adaptive step, which is 1e-2.
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=5e-4)


@pytest.mark.slow
def test_a_teacher_that_writes_is_whole_on_the_rank_that_asks_it_and_cut_afterwards(material, tmp_path):
    """The first process reads it for its text; the other has none of its weights until both read their parts."""
    output = on_two("seqkd", material, tmp_path / "run", "fsdp2")
    assert (output / "teacher-text" / "train.jsonl").stat().st_size > 0
    assert len([row for row in metrics(output) if row["cross_entropy"]]) == 5
