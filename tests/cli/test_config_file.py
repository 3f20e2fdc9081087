"""`--config FILE`: the flags it sets, those that override it, and a run again from the file that it saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gakd.cli import parse
from gakd.errors import InputError
from tests.recipe_runs import arguments, assert_identical, make_material, module_of, run_here

GAKD = module_of("gakd")


def parsed(*flags: str):
    return parse(GAKD.PAPER, GAKD.DEMO, None, flags)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_file_sets_flags_and_the_command_line_overrides_it(tmp_path):
    file = write(
        tmp_path / "run.yaml",
        "student: Qwen3-1.7B\nr1: 20\nadversarial-share: null\nrun:\n  steps: 7\n  resume: true\n  learning_rate: 1e-5\n"
        "models:\n  student_layers: [0, 3]\n  teacher: null\n",
    )
    for flags in ([f"--config={file}"], ["--config", file]):
        config = parsed("--steps", "9", *flags)
        assert (config.models.student, config.models.teacher, config.models.student_layers) == (
            "Qwen3-1.7B",
            None,
            (0, 3),
        )
        assert (config.run.steps, config.run.resume, config.run.learning_rate) == (9, True, 1e-5)
        assert (config.r1, config.adversarial_share) == (20.0, None)
        # A named student: the rest is the paper's.
        assert (config.r2, config.run.batch_size) == (GAKD.PAPER.r2, GAKD.PAPER.run.batch_size)


def test_the_later_of_two_files_counts_and_one_without_a_line_changes_nothing(tmp_path):
    first = write(tmp_path / "first.yaml", "steps: 1\nseed: 5")
    second, empty = write(tmp_path / "second.yaml", "steps: 2"), write(tmp_path / "empty.yaml", "# nothing\n")
    config = parsed("--config", first, "--config", second)
    assert (config.run.steps, config.run.seed) == (2, 5)
    assert parsed("--config", empty) == GAKD.DEMO


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 3", r"step is no flag of this command, did you mean steps\?"),
        ("run:\n  wibble: 3", r"wibble is no flag of this command: --help lists them"),
        ("- 3", r"expected `flag: value` lines, got list"),
        ("a: [1", r"cannot be read \(.*\); give a YAML file, or a run's config\.json"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(text, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        parsed("--config", write(tmp_path / "bad.yaml", text))
    assert "\n" not in str(refused.value)


def test_a_flags_former_name_is_read_in_a_file_and_named_on_the_command_line(tmp_path):
    file = write(tmp_path / "config.json", json.dumps({"evaluation": {"temperature": 0.25}}))
    assert parsed("--config", file).evaluation.sampling_temperature == 0.25
    for flags in (["--temperature", "0"], ["--temperature=0"]):
        with pytest.raises(InputError, match=r"^--temperature is now called --sampling-temperature: give that$"):
            parsed(*flags)


def test_a_missing_file_and_a_value_of_another_type_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read"):
        parsed("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=r"cannot be read"):
        parsed("--config")
    with pytest.raises(InputError, match=r"^--steps \{None\}\|INT: got many; `.* --help` explains$"):
        parsed("--config", write(tmp_path / "bad.yaml", "steps: many"))


def test_every_saved_configuration_reads_back_as_itself(tmp_path):
    import dataclasses

    from tests.recipe_table import RECIPES

    for recipe in RECIPES:
        module = module_of(recipe)
        for default in (module.PAPER, module.DEMO):
            file = write(tmp_path / "config.json", json.dumps(dataclasses.asdict(default), default=str))
            assert parse(module.PAPER, module.DEMO, None, ["--config", file]) == default


def test_a_run_from_the_file_that_a_run_saved_has_its_bits(tmp_path):
    material = make_material(tmp_path)
    run_here("gakd", *arguments(material, tmp_path / "first"))
    run_here("gakd", "--config", str(tmp_path / "first" / "config.json"), "--output-dir", str(tmp_path / "second"))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second")]
    for config, name in zip(configs, ("first", "second"), strict=True):
        assert config["run"].pop("output_dir") == str(tmp_path / name)
    assert configs[0] == configs[1]
    assert_identical(tmp_path / "second", tmp_path / "first")
