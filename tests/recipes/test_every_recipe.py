"""Every recipe there is, on tiny models: it trains, lowers its own loss, exports, resumes bit for bit, explains its flags."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gakd.cli import parse
from gakd.losses import SampledTokenLoss
from gakd.objective import Objective
from gakd.run import Run
from gakd.weights import weight_at
from tests.recipe_runs import (
    arguments,
    assert_identical,
    flags_of,
    make_material,
    metrics,
    module_of,
    run_here,
    scores,
)
from tests.recipe_table import RECIPES

# Most lower their loss in so many steps. A student's own text tells less at a time, and GAD's first steps are of another loss.
STEPS = dict.fromkeys(RECIPES, 16) | {"on_policy_reverse_kl": 24, "gad": 24}


# In the quick tier: an ablation differs from the template by a game, a term or what is read, each with tests of its own. Those
# whose loop is their own are resumed here; test_kill.py kills and resumes every one.
OWN_LOOP = {"gakd", "released", "gad", "minillm", "distillm", "distillm2", "gkd", "seqkd"}
TRAINED = [
    pytest.param(name, marks=pytest.mark.slow if path.parent.name == "ablations" and name not in OWN_LOOP else ())
    for name, path in RECIPES.items()
]
RESUMED = sorted(OWN_LOOP)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    # Short texts for speed, and a teacher with opinions: of its own text there must be something to learn.
    return make_material(tmp_path_factory.mktemp("material"), longest=10, certainty=20.0)


def flags(material: Path, output: Path, recipe: str) -> list[str]:
    game = (
        ["--adversarial-start", str(STEPS[recipe] // 2 - 2)]
        if "adversarial_start" in flags_of(module_of(recipe).PAPER)
        else []
    )
    return arguments(material, output, "--steps", str(STEPS[recipe]), "--save-every", "5", *game, recipe=recipe)


@pytest.fixture(scope="module", params=TRAINED)
def trained(request, material, tmp_path_factory) -> tuple[str, Path, Objective]:
    """A recipe, the folder of its uninterrupted run, and its objective."""
    recipe, output, objectives = request.param, tmp_path_factory.mktemp(request.param) / "run", set()
    finish_step = Run.finish_step

    def finish_and_keep(run: Run, objective: Objective) -> None:
        objectives.add(objective)
        finish_step(run, objective)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "finish_step", finish_and_keep)
        run_here(recipe, *flags(material, output, recipe), plots=True)
    (objective,) = objectives
    return recipe, output, objective


def test_it_lowers_its_own_loss(trained):
    recipe, output, objective = trained
    terms = [(weight, term) for weight, term in objective.terms if term.unit == "token" and weight != 0]
    rows = [row for row in metrics(output) if row["gradient_norm"]]
    assert [row["step"] for row in rows] == [str(step) for step in range(1, STEPS[recipe] + 1)]
    # Minus the mean advantage is a loss where nothing was subtracted: there, the reverse KL of the drawn tokens.
    measured = [pair for pair in terms if not isinstance(pair[1], SampledTokenLoss)] or terms
    first, last = 0.0, 0.0
    for weight, term in measured:
        # A step on one text does not tell about terms of another.
        losses = [weight_at(weight, step) * float(row[term.name]) for step, row in enumerate(rows) if row[term.name]]
        assert len(losses) >= 6
        first, last = first + sum(losses[:3]) / 3, last + sum(losses[-3:]) / 3
    assert last < 0.95 * first


def test_it_reports_and_exports(trained):
    recipe, output, _ = trained
    rows = metrics(output)
    assert {row["step"] for row in rows if row["valid/cross_entropy"]} == {
        str(step) for step in range(4, STEPS[recipe] + 1, 4)
    }
    assert (output / "curves.png").stat().st_size > 10_000
    assert scores(output, "before")["predictions"] != []
    assert scores(output, "before")["cross_entropy"] != scores(output, "after")["cross_entropy"]
    student = AutoModelForCausalLM.from_pretrained(output / "student")
    words = AutoTokenizer.from_pretrained(output / "student")
    assert len(student.model.layers) == 2
    prompt = words.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = student.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]


@pytest.mark.parametrize("trained", RESUMED, indirect=True)
def test_it_resumes_bit_for_bit(trained, material, tmp_path, monkeypatch):
    """Broken off in the middle of a step, three steps after the last checkpoint."""
    recipe, straight, _ = trained
    update, broken = Run.update, tmp_path / "run"

    def update_or_stop(run: Run) -> None:
        if run.step == 13:
            raise Interrupted
        update(run)

    monkeypatch.setattr(Run, "update", update_or_stop)
    with pytest.raises(Interrupted):
        run_here(recipe, *flags(material, broken, recipe))
    assert not (broken / "student").exists()
    monkeypatch.undo()
    run_here(recipe, *flags(material, broken, recipe), "--resume")
    assert_identical(broken, straight)


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_explains_every_flag(recipe, capsys):
    module = module_of(recipe)
    with pytest.raises(SystemExit) as stopped:
        parse(module.PAPER, module.DEMO, module.__doc__, ["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert " ".join((module.__doc__ or "").split())[:60] in " ".join(printed.split())
    # Out of its frame, what follows each flag up to the next.
    _, *parts = re.split(r"\n\W*(--[a-z][a-z0-9-]+)", printed)
    explained = dict(zip(parts[::2], parts[1::2], strict=True))
    assert explained.keys() == {"--config"} | {f"--{name.replace('_', '-')}" for name in flags_of(module.PAPER)}
    for flag, text in explained.items():
        own = re.sub(r"\{.*?\}", "", text.partition("(default:")[0], flags=re.S)  # its choices
        assert re.search(r"\b[a-z]{2,}\b", own), f"{flag} says {own!r}"
