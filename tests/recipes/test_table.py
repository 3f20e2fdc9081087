"""The recipes as text: the README's table is made from them, and each changes little of the template."""

from __future__ import annotations

import re

import pytest

from gakd.cli.recipe_files import entry
from tests import recipe_table
from tests.recipe_table import README, RECIPES, code, difference

ABLATIONS = [name for name, path in RECIPES.items() if path.parent.name == "ablations"]
BASELINES = [name for name, path in RECIPES.items() if path.parent.name == "baselines"]
# The released code reads whole logits, with a loop of its own; these rivals train on text that they write, with rewards.
FURTHEST = {"released": 120, "gakd_on_policy": 32, "distillm": 120, "distillm2": 125, "gad": 147, "minillm": 135}
LONGEST = {"gakd_on_policy": 145}  # the template whole, and a sampler


def test_the_readme_holds_the_table_of_the_recipes():
    text = README.read_text()
    assert recipe_table.with_table(text) == text, "run python -m tests.recipe_table"


def test_every_recipe_of_the_plan_is_there():
    assert set(ABLATIONS) >= {
        "gakd_forward_kl", "gakd_gan", "gakd_hinge", "gakd_log_probs", "gakd_mlp_discriminator", "gakd_no_kl",
        "gakd_no_penalty", "gakd_on_policy", "gakd_probabilities", "gakd_raw_logits", "gakd_teacher_text", "gakd_wgan",
        "released",
    }  # fmt: skip
    assert set(BASELINES) >= {
        "adaptive_kl", "alpha_beta", "distillm", "distillm2", "forward_kl", "gad", "gkd", "jensen_shannon", "minillm",
        "on_policy_reverse_kl", "reverse_kl", "seqkd", "sft", "skd", "skew_kl", "skew_reverse_kl", "total_variation", "uld",
    }  # fmt: skip
    assert "gakd" not in {*ABLATIONS, *BASELINES}, "`import gakd` would find it instead of the package"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_what_it_is_and_how_it_starts(recipe):
    text = RECIPES[recipe].read_text()
    documentation = text.split('"""')[1]
    assert entry(RECIPES[recipe]).paper == "GAKD" or re.search(
        r"GAKD's release|arXiv \d{4}\.\d{5}|arXiv \d{4}\.\d{4}", documentation
    )
    assert "Without --student: " in documentation
    assert "In --help, [brackets] hold the " in documentation
    for command in re.findall(r"python (recipes/\S+\.py)", documentation):
        assert (recipe_table.ROOT / command).is_file(), f"{recipe} names {command}"
    assert len(text.splitlines()) <= LONGEST.get(recipe, 130)


@pytest.mark.parametrize("recipe", ABLATIONS)
def test_an_ablation_changes_one_thing(recipe):
    changed = difference(RECIPES[recipe])
    assert changed <= FURTHEST.get(recipe, 30), f"{recipe} now differs by {changed} lines"
    assert f'"runs/{recipe}"' in RECIPES[recipe].read_text()


@pytest.mark.parametrize("recipe", BASELINES)
def test_a_baseline_differs_by_its_method(recipe):
    changed = difference(RECIPES[recipe])
    assert changed <= FURTHEST.get(recipe, 110), f"{recipe} now differs by {changed} lines"
    assert f'"runs/{recipe}"' in RECIPES[recipe].read_text()


def test_a_difference_counts_code_and_not_documentation(tmp_path):
    text = recipe_table.TEMPLATE.read_text()
    changed = tmp_path / "changed.py"
    changed.write_text(text.replace('"""GAKD: ', '"""Another: first\n\n', 1))
    assert difference(changed) == 0
    changed.write_text(
        text.replace("run.restore()", "run.restore()\n    print()", 1).replace("    run.close()\n", "", 1)
    )
    assert difference(changed) == 2
    assert code(changed)[0] == ""


def test_a_docstring_that_the_table_cannot_read_is_refused(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text('"""A method without its paper."""\n')
    with pytest.raises(ValueError, match=r"begins with `Method, one clause \(Paper, arXiv ID\).`, got 'A method"):
        entry(recipe)
