"""--kl-temperature in a recipe's own run: T^2 times the KL of both models' distributions at T, as a float64 loop has it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import gakd
from gakd.cli import parse
from gakd.distiller import Distiller
from gakd.losses.token_loss import Divergence
from gakd.models import load_model, load_student
from gakd.types import Batch
from tests.recipe_runs import arguments, flags_of, make_material, metrics, module_of, run_here
from tests.recipe_table import RECIPES


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"), longest=10, certainty=20.0)


def by_hand(recipe: str, student: torch.nn.Module, teacher: torch.nn.Module, batches: list[Batch], t: float) -> float:
    """Mean over all supervised tokens of a step, one at a time."""
    losses: list[float] = []
    for batch in batches:
        log_q_BTV, log_p_BTV = (
            (model(input_ids=batch.input_ids).logits.double() / t).log_softmax(-1) for model in (student, teacher)
        )
        for row in batch.rows_N.tolist():
            place = divmod(row, batch.input_ids.shape[1])
            log_q_V, log_p_V = log_q_BTV[place], log_p_BTV[place]
            first, second = (log_q_V, log_p_V) if recipe == "reverse_kl" else (log_p_V, log_q_V)
            losses.append(t**2 * float((first.exp() * (first - second)).sum()))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("recipe", "temperature"), [("reverse_kl", 2.0), ("forward_kl", 0.5)])
def test_the_first_steps_loss_is_that_of_a_loop(recipe, temperature, material, tmp_path, monkeypatch):
    batches: list[Batch] = []
    forward = Distiller.forward

    def watched(self: Distiller, batch: Batch, *rest: object) -> object:
        batches.append(batch)
        return forward(self, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Distiller, "forward", watched)
    given = arguments(
        material, tmp_path / "run", "--steps", "1", "--evaluate-every", "0", "--kl-temperature", str(temperature),
        recipe=recipe,
    )  # fmt: skip
    run_here(recipe, *given)
    module = module_of(recipe)
    config = parse(module.PAPER, module.DEMO, None, given)
    student, teacher = (
        model.double().eval() for model in (load_student(config.models), load_model(config.models.teacher))
    )
    with torch.no_grad():
        expected, plain = (by_hand(recipe, student, teacher, batches, t) for t in (temperature, 1.0))
    (row,) = metrics(tmp_path / "run")
    assert float(row[recipe]) == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(plain, rel=0.05), "this pair would not tell"


def test_every_recipe_that_compares_distributions_has_the_flag_and_uses_it():
    """But the release's own code, which has none, and a distance to the student's own beginning at the text's temperature."""
    divergences = {name for name in dir(gakd) if _is_divergence(getattr(gakd, name))} - {"KLToReference"}
    assert {"ReverseKL", "UniversalLogit", "SkewForwardKL"} <= divergences
    compared = set()
    for recipe, path in RECIPES.items():
        tree = ast.parse(path.read_text())
        imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
        used = any(isinstance(node, ast.Attribute) and node.attr == "kl_temperature" for node in ast.walk(tree))
        has = "kl_temperature" in flags_of(module_of(recipe).PAPER)
        assert has == used == bool(imported & divergences) or recipe == "released", recipe
        compared |= {recipe} if has else set()
    assert len(compared) > 20


def _is_divergence(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, Divergence) and thing is not Divergence
