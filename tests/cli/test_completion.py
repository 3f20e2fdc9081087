"""`gakd completion bash`, in a real bash: what TAB offers after subcommands, recipes and flags."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gakd.cli.command import SUBCOMMANDS, main
from gakd.cli.recipe_files import recipes, tools
from tests.recipe_runs import flags_of, module_of

# What bash does when TAB is pressed at the end of a line: the words, the function that was registered, its answers.
DRIVE = """
source "$1"
read -ra COMP_WORDS <<< "$2"
[[ $2 != *" " ]] || COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
[[ $(complete -p gakd) =~ -F\\ ([^ ]+) ]]
"${BASH_REMATCH[1]}" gakd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    capture = pytest.MonkeyPatch()
    path = tmp_path_factory.mktemp("completion") / "gakd"
    with path.open("w") as file, capture.context() as patched:
        patched.setattr("sys.stdout", file)
        main(["completion", "bash"])
    return path


def offered(script: Path, line: str, folder: Path) -> set[str]:
    command = ["bash", "-c", DRIVE, "bash", script, line]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    assert result.stderr == ""
    return {*result.stdout.split()}


def test_subcommands_and_recipes_are_offered_and_taken_further(script, tmp_path):
    assert offered(script, "gakd ", tmp_path) == {*SUBCOMMANDS, "-h", "--help"}
    assert offered(script, "gakd re", tmp_path) == {"report"}
    for subcommand in ("run", "cp"):
        assert offered(script, f"gakd {subcommand} ", tmp_path) == {*recipes(), *tools(), "-h", "--help"}
    assert offered(script, "gakd run baselines/rev", tmp_path) == {"baselines/reverse_kl"}


def test_flags_are_those_of_the_subcommand_and_of_the_recipe(script, tmp_path):
    assert offered(script, "gakd plan --st", tmp_path) == {"--student", "--student-layers", "--strategy"}
    found = offered(script, "gakd run gakd --student ./mine --", tmp_path)
    known = {f"--{name.replace('_', '-')}" for name in flags_of(module_of("gakd").PAPER)}
    assert known <= found
    assert {flag for flag in found - known if not flag.startswith("--no-")} == {"--help"}
    assert "--adversarial-weight" not in offered(script, "gakd run baselines/reverse_kl --", tmp_path)
    assert "--students" in offered(script, "gakd run tools/evaluate --", tmp_path)


def test_values_are_offered_where_they_are_few_and_files_are_left_to_bash(script, tmp_path):
    assert offered(script, "gakd run gakd --precision bf", tmp_path) == {"bf16-mixed", "bf16-true"}
    (tmp_path / "runs").mkdir()
    for line in ("gakd run gakd --output-dir ru", "gakd report ru", "gakd cp gakd ru"):
        assert offered(script, line, tmp_path) == set()
    assert "complete -o default -F _gakd gakd" in script.read_text()


def test_a_shell_that_it_does_not_know_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["completion", "tcsh"])
    assert stopped.value.code == 2
    assert "tcsh" in capsys.readouterr().err
