"""What a run says of itself to others: a command that repeats it, names without folders."""

from __future__ import annotations

import dataclasses
import json
import shlex

import pytest

from gakd.cli import parse
from gakd.cli.recipe_files import load_recipe
from gakd.models.origin import Origin
from gakd.run import RunConfig
from gakd.run.about import ABOUT, About, command_of, read_about, write_about
from tests.recipe_runs import module_of
from tests.recipe_table import RECIPES


def parsed(recipe: str, *flags: str):
    module = module_of(recipe)
    return parse(module.PAPER, module.DEMO, None, flags)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_makes_the_same_settings(recipe):
    """Of the demo, whose every other flag differs from the paper's, through the recipe's own parser."""
    module = module_of(recipe)
    command = command_of(module.DEMO)
    program, run, name, *flags = shlex.split(command)
    assert (program, run, name) == ("gakd", "run", recipe.rpartition("/")[2])
    again = parsed(recipe, *flags)
    again.run.output_dir = module.DEMO.run.output_dir
    assert dataclasses.asdict(again) == dataclasses.asdict(module.DEMO)


@pytest.mark.parametrize(
    "flags",
    [
        ("--activation-checkpointing", "--skip-bad-rows"), ("--clip", "inf", "--adversarial-share", "0.1"),
        ("--student-layers", "0", "3", "5"), ("--lora-targets", "q_proj", "v_proj"), ("--columns", "prompt=a b,response=c"),
        ("--learning-rate", "1e-7", "--steps", "7"), ("--export-dtype", "auto", "--micro-batch-tokens", "64"),
        ("--discriminator-every", "micro", "--router-balance-weight", "0.01"),
    ],
)  # fmt: skip
def test_flags_of_each_kind_come_back(flags):
    config = parsed("gakd", "--student", "Qwen3-1.7B", *flags)
    words = shlex.split(command_of(config))
    assert dataclasses.asdict(parsed("gakd", *words[3:])) == dataclasses.asdict(config)
    assert len(words) <= 3 + 2 + len(flags) + 1  # what is the paper's anyway is not said


def test_folders_and_places_of_this_machine_are_not_told(tmp_path):
    (tmp_path / "student").mkdir()
    config = parsed(
        "gakd", "--student", str(tmp_path / "student"), "--teacher", "me/teacher", "--dataset", str(tmp_path / "rows.jsonl"),
        "--teacher-cache", str(tmp_path / "cache"), "--output-dir", str(tmp_path / "out"), "--resume", "--push-to-hub", "me/x",
        "--log-to", "tensorboard",
    )  # fmt: skip
    assert command_of(config) == (
        "gakd run gakd --student student --teacher me/teacher --teacher-cache cache --dataset rows.jsonl"
    )


def test_a_script_of_ones_own_is_named_as_it_is_and_a_notebook_has_no_command(tmp_path):
    (tmp_path / "mine.py").write_text(RECIPES["sft"].read_text())
    module = load_recipe(tmp_path / "mine.py")
    assert command_of(module.PAPER).startswith("python mine.py --student ")
    assert command_of(RunConfig()) is None


def test_what_is_kept_is_read_back_and_an_older_folder_says_nothing(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text(
        json.dumps({"model_type": "qwen3", "dtype": "bfloat16", "license": "mit"})
    )
    config = parsed("gakd", "--student", str(tmp_path / "student"), "--dataset", "dolly", "--export-dtype", "auto")
    write_about(tmp_path, config.run, config, "gakd", "1 * cross_entropy")
    about = read_about(tmp_path)
    assert (about.base, about.teacher) == (Origin("student", False), Origin("Qwen/Qwen3-8B", True))
    assert about.dataset == Origin("MiniLLM/dolly", True)
    assert (about.objective, about.export_dtype, about.licence) == ("1 * cross_entropy", "bfloat16", {"license": "mit"})
    assert {"gakd", "torch", "transformers"} <= about.versions.keys()
    assert str(tmp_path) not in (tmp_path / ABOUT).read_text()
    for damaged in ("", "[]", '{"objective": 1, "another": 2}', '{"base": 3}'):
        (tmp_path / ABOUT).write_text(damaged)
        assert read_about(tmp_path) == About()
    assert read_about(tmp_path / "none") == About()
