"""What a command line becomes, what is said of one that is none, and that nobody waits for either."""

from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gakd.cli import DataConfig, EndpointConfig, ModelConfig, RunConfig, announce, parse, start
from gakd.cli.read_flags import read_flags
from gakd.errors import InputError
from gakd.extras import Need, check_needs, needs_of
from tests.recipe_runs import ROOT, module_of

HEAVY = {"torch", "transformers", "datasets", "lightning_fabric", "matplotlib", "peft", "torchao"}
# Every recipe and tool is asked for its flags, and told a wrong one; every subcommand for its own.
ASK = """
import contextlib, io, sys
from gakd.cli.command import SUBCOMMANDS, main
from gakd.cli.entry import start_tool
from gakd.cli.read_flags import read_flags
from gakd.cli.recipe_files import load_recipe, recipes, tools
from gakd.errors import InputError

with contextlib.redirect_stdout(io.StringIO()) as printed:
    for path in (recipes() | tools()).values():
        module = load_recipe(path)
        with contextlib.suppress(SystemExit):
            read_flags(module.Config, ["--help"], "it", module.__doc__, vars(module).get("PAPER"))
        with contextlib.suppress(InputError):
            read_flags(module.Config, ["--no-such-flag"], "it", None, vars(module).get("PAPER"))
        assert not HEAVY & set(sys.modules), (path, HEAVY & set(sys.modules))
    for name, subcommand in SUBCOMMANDS.items():
        if subcommand.tool is None:
            with contextlib.suppress(SystemExit):
                main([name, "--help"])
        assert not HEAVY & set(sys.modules), (name, HEAVY & set(sys.modules))
    main(["completion", "bash"])
    assert not HEAVY & set(sys.modules)
print(printed.getvalue().count("usage: "))
"""


def test_flags_are_read_without_what_takes_seconds_to_import():
    code = f"HEAVY = {HEAVY}\n{ASK}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 40


@dataclass
class Flags:
    folder: Path
    """Where."""
    steps: int | None = None
    """How many."""
    seed: int = 1
    """Which."""
    scales: tuple[float, ...] = ()
    """Factors."""
    precision: str = "auto"
    """Arithmetic."""


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--stepz", "3"], "--stepz is no flag of this command, did you mean --steps? `gakd it --help` lists them"),
        (["--wibble", "x"], "--wibble is no flag of this command: `gakd it --help` lists them"),
        (["more"], "more is no flag of this command: `gakd it --help` lists them"),
        (
            ["--seeed", "1", "--step", "2"],
            "--seeed --step are no flags of this command, did you mean --seed, --steps? ",
        ),
        (["--steps", "many"], "--steps {None}|INT: got many; `gakd it --help` explains"),
        (["--seed", "x"], "--seed INT: invalid literal for int() with base 10: 'x'; `gakd it --help` explains"),
        (["--scales", "1", "x"], "--scales [FLOAT [FLOAT ...]]: "),
        (["--steps"], "Missing value for argument '--steps'. Expected 1 values; `gakd it --help` explains"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_flag(flags, line, wide, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200" if wide else "60")
    with pytest.raises(InputError) as refused:
        read_flags(Flags, ["--folder", "here", *flags], "gakd it", None)
    said = str(refused.value)
    assert said.startswith(line)
    assert "\n" not in said
    assert not set("│─╭╮╰╯\x1b") & set(said)


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match=r"^missing --folder PATH: `gakd it --help` explains$"):
        read_flags(Flags, [], "gakd it", None)


def test_help_has_the_command_as_typed_and_breaks_no_word(capsys, monkeypatch):
    words = {}
    module = module_of("gakd")
    for columns in ("80", "4000"):
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit) as stopped:
            read_flags(module.Config, ["--help"], "gakd run gakd", module.__doc__, module.PAPER)
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        assert printed.startswith("usage: gakd run gakd [-h] [OPTIONS]\n")
        assert columns != "80" or max(map(len, printed.splitlines())) <= 80
        words[columns] = {word for word in printed.split() if word.isalnum()}
    assert words["80"] == words["4000"]


# ---- what a run says and asks for before it loads ----


def config(*flags: str):
    module = module_of("gakd")
    return parse(module.PAPER, module.DEMO, None, ["--student", "./mine", *flags])


def test_the_settings_that_a_named_student_chooses_are_those_of_the_flags():
    assert announce.settings_line(config()) == (
        "The paper's settings: LoRA 16, batch 32, lr 5e-5, 20 epochs; --help lists them"
    )
    assert announce.settings_line(config("--lora-rank", "0", "--steps", "7", "--learning-rate", "0.002")) == (
        "The paper's settings: all weights, batch 32, lr 0.002, 7 steps; --help lists them"
    )
    assert announce.settings_line(DataConfig()) is None


@pytest.mark.parametrize(
    ("flags", "first"),
    [
        (
            ["--student", "./mine", "--lora-rank", "0"],
            "The paper's settings: all weights, batch 32, lr 5e-5, 20 epochs",
        ),
        ([], "Loading student SmolLM2-135M-Instruct, teacher SmolLM2-135M-Instruct, data docstrings"),
    ],
)
def test_a_recipe_says_at_once_whose_settings_it_has_and_what_it_loads(flags, first, monkeypatch, capsys):
    module, lines = module_of("gakd"), []
    monkeypatch.setattr(sys, "argv", ["recipes/gakd.py", *flags])
    monkeypatch.setattr("gakd.extras.importlib.util.find_spec", lambda name: True)
    start(lambda config: lines.append(capsys.readouterr().out), module.PAPER, module.DEMO, None)
    assert lines[0].startswith(first)
    assert lines[0].splitlines()[-1].startswith("Loading student ")


def test_flags_out_of_their_bounds_are_refused_before_a_recipe_begins(monkeypatch, capsys):
    module = module_of("gakd")
    monkeypatch.setattr(sys, "argv", ["recipes/gakd.py", "--steps", "0"])
    with pytest.raises(SystemExit) as stopped:
        start(pytest.fail, module.PAPER, module.DEMO, None)
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", "error: --steps is at least 1, got 0\n")


def test_what_is_loaded_is_named_before_it_is():
    assert announce.loading_line(config()) == "Loading student ./mine, teacher Qwen3-8B, data dolly"
    assert announce.loading_line(config("--teacher", "None")) == "Loading student ./mine, data dolly"
    cached = config("--teacher-cache", "caches/dolly", "--dataset", "rows.jsonl")
    assert announce.loading_line(cached) == "Loading student ./mine, teacher caches/dolly, data rows.jsonl"


def test_a_bar_moves_on_a_terminal_and_leaves_nothing(monkeypatch, capsys):
    import rich.console

    with announce.waiting("Importing"):
        pass
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(rich.console, "Console", functools.partial(rich.console.Console, force_terminal=True, width=80))
    with announce.waiting("Importing"):
        pass
    shown = capsys.readouterr().out
    assert "Importing" in shown
    assert shown.endswith("\x1b[2K")  # the line is cleared


@pytest.fixture
def bare(monkeypatch):
    """A machine on which no package of an extra is installed."""
    monkeypatch.setattr("gakd.extras.importlib.util.find_spec", lambda name: None)


def test_missing_packages_are_named_with_the_one_line_that_installs_them(bare):
    asked = config("--log-to", "wandb")
    with pytest.raises(InputError) as refused:
        check_needs(needs_of(asked))
    assert str(refused.value) == (
        "LoRA needs peft, --log-to wandb needs wandb: pip install 'gakd[lora,wandb]', or train all weights with "
        "--lora-rank 0 and leave it out"
    )
    check_needs(needs_of(config("--lora-rank", "0")))


def test_every_need_is_of_an_extra_that_brings_its_packages():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    loggers = RunConfig(log_to=("tensorboard", "wandb", "trackio"))
    needs = [*needs_of(ModelConfig()), *needs_of(loggers), *needs_of(EndpointConfig("http://localhost:8000/v1", "m"))]
    assert {need.extra for need in needs} == {"lora", "tensorboard", "wandb", "trackio", "api"}
    for need in needs:
        assert all(any(wanted.startswith(name) for wanted in extras[need.extra]) for name in need.packages)


def test_a_recipe_refuses_before_it_imports_what_takes_seconds(tmp_path):
    hide = (
        "import importlib.util as u, sys\nreal = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'peft' else real(name, *more)\n"
        f"sys.argv = ['recipes/gakd.py', '--student', 'Qwen3-0.6B', '--output-dir', {str(tmp_path / 'run')!r}]\n"
        "import runpy\ntry:\n    runpy.run_path('recipes/gakd.py', run_name='__main__')\n"
        "finally:\n    print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr == "error: LoRA needs peft: pip install 'gakd[lora]', or train all weights with --lora-rank 0\n"
    assert not (tmp_path / "run").exists()


def test_a_need_that_is_met_is_silent():
    assert check_needs([Need("this test", ("pytest",), "dev")]) is None
