"""Every command line in the documentation: its recipe, tool or subcommand exists and its own parser takes the flags."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from gakd.cli import parse
from gakd.cli.command import SUBCOMMANDS
from gakd.cli.read_flags import read_flags
from gakd.cli.recipe_files import find
from tests.doc_blocks import PAGES, blocks, name_of
from tests.recipe_table import ROOT

# Programs of others, and words of the shell.
OTHERS = {
    "export", "mv", "vllm", "lm_eval", "if", "exit", "hf", "git", "printf", "ollama",
    "llama-cli", "llama-quantize", "llama-server",
}  # fmt: skip
OTHER_SCRIPTS = {"llama.cpp/convert_hf_to_gguf.py"}
LAUNCHERS = {"torchrun", "fabric", "srun"}
# What stands for `...` where a tool cannot do without.
LEFT_OUT = {"generate_from_endpoint": ["--base-url", "http://localhost:8000/v1", "--model", "m"]}
COMMANDS = [
    (name_of(page), line)
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if shlex.split(line, comments=True)
]


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 40
    assert {page for page, _ in COMMANDS} >= {"README.md", "recipes/README.md", "docs/quickstart.md", "docs/scaling.md"}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_is_one_that_its_program_takes(page, line, tmp_path, monkeypatch):
    (tmp_path / "settings.yaml").write_text("".join(blocks(ROOT / page, "yaml")))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Za-z_]+=", words[0]):  # variables
        words = words[1:]
    if ">" in words:  # where the shell puts what is printed
        words = words[: words.index(">")]
    assert not words or check(words, page) is None


def test_what_the_check_is_for(tmp_path):
    for line in ("python recipes/gakd.py --no-such-flag 1", "gakd run gakd --steps many", "python recipes/none.py"):
        with pytest.raises((AssertionError, ValueError)):
            check(line.split(), "README.md")


def check(words: Sequence[str], page: str) -> None:
    """AssertionError or ValueError where a command line would be refused."""
    program, *rest = words
    if program in LAUNCHERS:
        start = next(index for index, word in enumerate(rest) if word.startswith("recipes/"))
        check_script(rest[start], [word for word in rest[start + 1 :] if word != "--"])
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]) is not None
    elif program == "python" and rest[0] not in OTHER_SCRIPTS:
        check_script(copies(page).get(rest[0], rest[0]), rest[1:])
    elif program == "gakd" and rest[0] == "run":
        check_script(find(rest[1]).relative_to(ROOT).as_posix(), rest[2:])
    elif program == "gakd":
        subcommand = SUBCOMMANDS[rest[0]]
        if subcommand.tool is not None:
            check_script(find(subcommand.tool).relative_to(ROOT).as_posix(), rest[1:])
            return
        assert subcommand.config is not None
        config = getattr(importlib.import_module(subcommand.module), subcommand.config)
        parsed = accepted(lambda: read_flags(config, rest[1:], "it", None))
        assert rest[0] != "cp" or find(parsed.recipe).exists()
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        extras = (
            (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("[tool")[0]
        )
        for extra in re.findall(r"(?:gakd|\.)\[(\w+)\]", " ".join(rest)):
            assert re.search(rf"^{extra} = ", extras, re.MULTILINE), f"no extra {extra}"
    else:
        assert program in OTHERS or rest[0] in OTHER_SCRIPTS, f"nothing checks {program}"


def check_script(script: str, flags: Sequence[str]) -> None:
    path = ROOT / script
    assert path.is_file(), f"{script} does not exist"
    module = loaded(path)
    for flag, following in zip(flags, [*flags[1:], ""], strict=True):
        if flag == "--config" and following.endswith(".json"):  # a run's
            Path(following).parent.mkdir(parents=True, exist_ok=True)
            Path(following).write_text(json.dumps(dataclasses.asdict(module.PAPER), default=str))
    given = [word for flag in flags for word in (LEFT_OUT.get(path.stem, []) if flag == "..." else [flag])]
    if path.parent.name == "tools":
        accepted(lambda: read_flags(module.Config, given, "it", None))
    else:
        accepted(lambda: parse(module.PAPER, module.DEMO, module.__doc__, given))


def accepted(parser):
    """What the parser makes of its flags; it leaves with status 0 for `--help`."""
    try:
        return parser()
    except SystemExit as stopped:
        if stopped.code != 0:
            raise ValueError("its own parser refuses this") from stopped
        return None


def copies(page: str) -> dict[str, str]:
    """Files that `gakd cp` on the same page makes, and the recipe that each is."""
    made = re.findall(r"^gakd cp (\S+) (\S+\.py)", "".join(blocks(ROOT / page, "bash")), re.MULTILINE)
    return {copy: find(recipe).relative_to(ROOT).as_posix() for recipe, copy in made}


def loaded(path: Path) -> ModuleType:
    name = f"documented_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
