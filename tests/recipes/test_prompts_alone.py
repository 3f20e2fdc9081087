"""Recipes that write the responses themselves train on prompts alone; what they are judged by has responses."""

from __future__ import annotations

import json

import pytest

from gakd.data import DataError
from tests.recipe_runs import arguments, make_material, metrics, run_here

# Flags with which a recipe reads no response of the dataset.
WRITING = {
    "on_policy_reverse_kl": (), "skd": (), "seqkd": (), "distillm2": (), "gad": ("--adversarial-start", "1"),
    "gakd_teacher_text": (), "minillm": ("--language-weight", "0"), "gkd": ("--student-text", "1"),
    "gakd_on_policy": ("--student-text", "1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = make_material(tmp_path_factory.mktemp("prompts"))
    rows = [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text().splitlines()]
    (folder / "data" / "train.jsonl").write_text(
        "".join(json.dumps({"prompt": row["instruction"]}) + "\n" for row in rows)
    )
    return folder


def flags(material, output, recipe, *more):
    few = ("--steps", "2", "--save-every", "0", "--evaluate-every", "0", "--text-examples", "1")
    return arguments(material, output, *few, *WRITING.get(recipe, ()), *more, recipe=recipe)


@pytest.mark.parametrize("recipe", WRITING)
def test_it_trains_on_prompts_alone(recipe, material, tmp_path):
    run_here(recipe, *flags(material, tmp_path / "run", recipe))
    assert len(metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("recipe", "more"), [("sft", ()), ("gkd", ("--student-text", "0.5")), ("minillm", ("--language-weight", "1"))]
)
def test_one_that_reads_responses_refuses_them(recipe, more, material, tmp_path):
    with pytest.raises(DataError, match=r"train\.jsonl:1: no response in keys"):
        run_here(recipe, *flags(material, tmp_path / "run", recipe, *more))


def test_what_is_judged_needs_responses(material, tmp_path):
    only = flags(material, tmp_path / "run", "skd", "--valid-dataset", str(material / "data" / "train.jsonl"))
    with pytest.raises(DataError, match=r"the valid split is what a student is judged by"):
        run_here("skd", *only)
    every = flags(material, tmp_path / "run", "skd", "--train-on", "all")
    with pytest.raises(DataError, match="give --train-on last"):
        run_here("skd", *every)
