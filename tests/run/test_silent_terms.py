"""What a run is told at its start: terms that never begin, weights that are all 0, a file too small to validate on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gakd import CrossEntropy, ReverseKL, balanced, ramp, stepwise
from gakd.errors import InputError
from gakd.run.preflight import objective_warnings
from tests.recipe_runs import arguments, make_material, run_here


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


def test_a_term_that_begins_after_the_last_step_is_told_and_one_that_is_off_is_not():
    entropy, kl = CrossEntropy(), ReverseKL()
    later, never = ramp(0.1, start=8), ramp(0.0, start=8)
    weight = "its weight, ramp(0.1, start=8, steps=1), is 0 in all 8 steps; start it earlier, or train longer"
    assert objective_warnings(1.0 * entropy + later * kl, 8) == [f"reverse_kl never begins: {weight}"]
    assert objective_warnings(1.0 * entropy + later * kl, 9) == []
    for silent in (0.0, never, stepwise({0: 0.0})):
        assert objective_warnings(1.0 * entropy + silent * kl, 8) == []
    assert objective_warnings(stepwise({0: 1.0, 3: 0.0}) * entropy, 8) == []  # it has begun, and ends


def test_of_a_users_own_schedule_no_step_is_asked_that_is_not_trained():
    table = [0.0] * 8

    def own(step: int) -> float:
        return table[step]

    (warning,) = objective_warnings(1.0 * CrossEntropy() + own * ReverseKL(), 8)
    assert warning.startswith("reverse_kl never begins: its weight, own(step), is 0 in all 8 steps")
    table[7] = 0.1
    assert objective_warnings(1.0 * CrossEntropy() + own * ReverseKL(), 8) == []


def test_of_a_balanced_weight_its_share_is_asked_without_a_step_being_played():
    weight = balanced(ramp(0.1, start=8))
    (warning,) = objective_warnings(1.0 * CrossEntropy() + weight * ReverseKL(), 8)
    assert warning.startswith("reverse_kl never begins")
    assert weight._weight == 0.0
    assert objective_warnings(1.0 * CrossEntropy() + weight * ReverseKL(), 9) == []
    assert weight._weight == 0.0


def test_an_objective_without_a_weight_is_told():
    (warning,) = objective_warnings(0.0 * CrossEntropy() + ramp(0.5, start=20) * ReverseKL(), 8)
    formula = "0 * cross_entropy + ramp(0.5, start=20, steps=1) * reverse_kl"
    assert warning.startswith(f"all weights are 0 in every one of 8 steps: {formula}; ")
    assert "\n" not in warning


def test_a_run_tells_of_a_game_that_never_starts(material, tmp_path, capsys):
    given = arguments(material, tmp_path / "run", "--steps", "1", "--adversarial-start", "9", "--evaluate-every", "0")
    run_here("gakd", *given)
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: adversarial never begins: its weight, ramp(0.1, start=9, steps=2), is 0 in all 1 steps" in printed


def test_a_file_of_two_rows_trains_where_nothing_is_validated(material, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"prompt": f"q {n}", "response": "x"}) + "\n" for n in range(2)))
    flags = ("--dataset", str(few), "--batch-size", "1", "--micro-batch-size", "1", "--steps", "1")
    given = arguments(material, tmp_path / "run", *flags, recipe="reverse_kl")
    with pytest.raises(
        InputError, match=r"few.jsonl has no rows to validate on: give more, --valid-dataset FILE, or --e"
    ):
        run_here("reverse_kl", *given)
    run_here("reverse_kl", *given, "--evaluate-every", "0", "--output-dir", str(tmp_path / "blind"))


def test_weights_of_0_train_nothing_and_say_so(material, tmp_path, capsys):
    off = ("--cross-entropy-weight", "0", "--reverse-kl-weight", "0", "--evaluate-every", "0", "--steps", "1")
    run_here("reverse_kl", *arguments(material, tmp_path / "run", *off, recipe="reverse_kl"))
    assert "warning: all weights are 0 in every one of 1 steps" in " ".join(capsys.readouterr().out.split())
