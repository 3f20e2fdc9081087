"""The grid is made of recipes and flags that exist, so that no typo waits for the end of a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from gakd.cli import parse
from gakd.cli.recipe_files import load_recipe
from gakd.errors import InputError
from gakd.study.grid import REFERENCE, chosen, methods
from gakd.study.knobs import knobs
from tests.recipe_table import ROOT, TEMPLATE

GRID = methods(300, 160, Path("world/student/student"))
KNOBS = knobs(300, 160)
COMMON = ["--student", "world/student/student", "--teacher", "world/teacher/student", "--steps", "300", "--seed", "3"]


def parsed(method):
    module = load_recipe(ROOT / "recipes" / method.recipe)
    return parse(module.PAPER, module.DEMO, module.__doc__, [*COMMON, *method.flags])


@pytest.mark.parametrize("method", GRID, ids=lambda method: method.name)
def test_the_flags_are_the_recipes_own(method):
    config = parsed(method)
    assert config.models.teacher == "world/teacher/student"
    assert config.run.seed == 3
    # The same number of updates for all.
    assert config.run.steps * getattr(config, "updates", 1) == 300
    game = hasattr(config, "adversarial_weight")
    plays = method.name.startswith("gakd") or method.name in ("released", "reverse_kl_own_text")
    assert game == (plays and method.name != "gakd_weight_0")
    if game:
        assert config.adversarial_start in (30, 240)


def test_names_and_runs_are_all_different():
    assert len({method.name for method in GRID}) == len(GRID)
    assert len({method.label for method in GRID}) == len(GRID)
    # A variant runs at GAKD's learning rate.
    configs = [(method.recipe, method.headline, repr(parsed(method))) for method in GRID]
    assert len(set(configs)) == len(configs)


def test_terms_beside_cross_entropy_weigh_the_same():
    for method in GRID:
        config = vars(parsed(method))
        weights = [config[name] for name in config if name.endswith(("entropy_weight", "kl_weight", "shannon_weight"))]
        assert set(weights) <= {0.5} or (method.name.endswith("_alone") and weights == [0, 1]), method.name


def test_the_headline_rows_are_those_of_the_question():
    named = {method.name for method in GRID if method.headline}
    assert {
        "sft", "seqkd", "forward_kl", "reverse_kl", "jensen_shannon", "skew_reverse_kl", "gkd", "minillm", "distillm", "gakd"
    } <= named  # fmt: skip
    assert TEMPLATE.exists()


def test_a_choice_keeps_the_reference_and_the_order():
    assert [method.name for method in chosen(GRID, ["gakd", "sft"])] == ["sft", REFERENCE, "gakd"]
    assert chosen(GRID, []) == list(GRID)
    with pytest.raises(InputError, match="no method 'gakdd', did you mean 'gakd'"):
        chosen(GRID, ["gakdd"])


@pytest.mark.parametrize("method", KNOBS, ids=lambda method: method.name)
def test_a_knob_is_a_flag_of_its_recipe(method):
    config = parsed(method)
    names = [other.name for other in KNOBS]
    assert names.count(method.name) == 1
    assert method.control in ("", *names)
    plays = getattr(config, "adversarial_share", None) is not None
    assert plays == method.name.endswith(("_0.1", "_0.3", "_1"))


def test_what_writes_text_reads_no_cache():
    writes = [method.name for method in (*GRID, *KNOBS) if any("max-new-tokens" in flag for flag in method.flags)]
    refused = [method.name for method in (*GRID, *KNOBS) if not method.cached]
    assert [name for name in refused if name != "released"] == writes
