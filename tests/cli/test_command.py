"""The command `gakd`: its table of subcommands, as a user runs it."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import gakd
from gakd.cli.command import SUBCOMMANDS, main
from gakd.cli.entry import run
from gakd.cli.read_flags import COMMAND, command_line
from gakd.cli.recipe_files import find
from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_subcommand_it_lists_them(arguments, capsys):
    assert main(arguments) is None
    printed = capsys.readouterr().out
    for name, subcommand in SUBCOMMANDS.items():
        assert any(line.split() == [name, *subcommand.summary.split()] for line in printed.splitlines())


@pytest.mark.parametrize(("name", "hint"), [("docter", "did you mean 'doctor'?"), ("xyz", "usage: gakd")])
def test_an_unknown_subcommand_is_refused_with_the_list(name, hint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: no subcommand {name!r}")
    assert hint in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("name", [name for name, subcommand in SUBCOMMANDS.items() if subcommand.config])
def test_each_subcommand_explains_its_flags(name, capsys):
    module = import_module(SUBCOMMANDS[name].module)
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert f"gakd {name}" in printed
    for field in dataclasses.fields(getattr(module, SUBCOMMANDS[name].config)):
        assert field.name.replace("_", "-") in printed.lower()


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_it_says_which_version_it_is(flag, capsys):
    assert main([flag]) is None
    assert capsys.readouterr().out == f"gakd {version('gakd')}\n"
    assert gakd.__version__ == version("gakd")


def test_run_explains_itself(capsys):
    for flag in ("--help", "-h"):
        assert main(["run", flag]) is None
        assert capsys.readouterr().out.startswith("usage: gakd run NAME [flags]\n")


@pytest.mark.parametrize("name", [name for name, subcommand in SUBCOMMANDS.items() if subcommand.tool])
def test_a_tool_as_a_command_becomes_the_tool_under_its_own_name(name, monkeypatch):
    became: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, words: became.append([program, *words]))
    monkeypatch.setenv(COMMAND, "")
    main([name, "--flag", "x"])
    assert became == [[sys.executable, sys.executable, str(find(str(SUBCOMMANDS[name].tool))), "--flag", "x"]]
    assert command_line() == f"gakd {name}"
    assert COMMAND not in os.environ


def test_a_wrong_flag_is_one_line_that_names_the_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--studnet", "x"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: --studnet is no flag of this command, did you mean --student? `gakd plan --help` lists them\n"
    )


def test_a_library_that_nobody_asked_for_says_nothing_of_itself():
    run(lambda config: None, None)
    assert not logging.getLogger("torchao").isEnabledFor(logging.WARNING)


def test_plan_plans(tmp_path, capsys):
    tiny.save(tmp_path / "student", tiny.model(), tiny.tokenizer())
    flags = [
        "--student",
        str(tmp_path / "student"),
        "--teacher",
        "None",
        "--lora-rank",
        "0",
        "--length",
        "64",
        "--device",
        "cpu",
    ]
    assert main(["plan", *flags]) is None
    assert "GB" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *flags, "--micro-batch-size", "0"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --micro-batch-size is at least 1, got 0")


def test_it_starts_as_a_module_and_fails_by_its_exit_status(tmp_path):
    command = [sys.executable, "-m", "gakd"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (listed.returncode, listed.stdout.startswith("usage: gakd")) == (0, True)
    refused = subprocess.run(
        [*command, "plan", "--student", "./none"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert refused.returncode == 2
    assert [line for line in refused.stderr.splitlines() if line.startswith("error: ")] != []
    assert "Traceback" not in refused.stderr


def test_the_script_of_the_package_is_this_command():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'gakd = "gakd.cli.command:main"' in text.partition("[project.scripts]")[2].partition("[")[0]


def test_help_for_a_reader_who_has_had_enough_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-m", "gakd", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (found.returncode, found.stderr) == (0, "")


def test_help_on_a_terminal_without_the_fields_signs_is_shown():
    found = subprocess.run(
        [sys.executable, "recipes/gakd.py", "--help"],
        cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "KL(student?teacher)" in found.stdout


def test_a_plan_refuses_what_a_run_would(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--student", "Qwen3-0.6B", "--teacher", "Qwen3-8B", "--strategy", "fsdp2", "--optimizer", "muon"])
    assert stopped.value.code == 2
    assert "--optimizer muon needs whole weights" in capsys.readouterr().err
