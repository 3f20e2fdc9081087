"""What a package index shows and what an installed package gives: its description, its types, its bounds, its papers."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.recipe_table import ROOT
from tests.test_imports import MODULES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def listed(path: Path) -> list[str]:
    """`__all__` as a type checker reads it: without running anything."""
    lists = [
        node.value for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]  # fmt: skip
    return sorted(ast.literal_eval(lists[0])) if lists else []


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    for module in ("hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(module, reason="the extra gakd[dev] builds wheels")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (found,) = folder.glob("*.whl")
    return found


def test_the_description_is_the_readme_without_links_that_lead_nowhere(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        described = Parser().parsestr(archive.read(name).decode())
    assert described["Description-Content-Type"] == "text/markdown"
    text, readme = str(described.get_payload()), (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert [target for target in targets if not target.startswith("https://")] == []
    assert len(re.findall(r"\]\((?!https:)", readme)) > 10  # or the test above says nothing
    assert re.findall(r"^#+ .*$", text, re.M) == re.findall(r"^#+ .*$", readme, re.M)
    for words in ("All results", "recipes/gakd.py", "docs/demo.png in the source distribution"):
        assert words in text


def test_a_type_checker_sees_every_public_name_and_its_type_from_outside(wheel, tmp_path):
    """In an environment that has the wheel alone: without torch's and transformers' own types it takes seconds.

    Without `py.typed` types are guessed; with it, a name in no list that can be read is an error.
    """
    checker = Path(sys.executable).with_name("basedpyright")
    if not checker.exists():
        pytest.skip("the extra gakd[dev] checks types")
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "gakd" / "py.typed").exists()
    rooms = {name: names for name, path in MODULES.items() if path.name == "__init__.py" and (names := listed(path))}
    assert {"gakd", "gakd.losses", "gakd.run", "gakd.samplers"} <= rooms.keys()
    lines = [f"from {name} import {', '.join(names)}" for name, names in rooms.items()]
    wrong = "wrong: str = gakd.ramp(0.1, start=200)"
    lines += ["import gakd", wrong, "right: gakd.Objective = 0.5 * gakd.ReverseKL()"]
    (tmp_path / "theirs.py").write_text("\n".join(lines))
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    found = subprocess.run(
        [checker, "--outputjson", "--pythonpath", tmp_path / "venv" / "bin" / "python", "theirs.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    errors = [entry for entry in json.loads(found.stdout)["generalDiagnostics"] if entry["severity"] == "error"]
    assert [(entry["rule"], lines[entry["range"]["start"]["line"]]) for entry in errors] == [
        ("reportAssignmentType", wrong)
    ]


def test_each_lower_bound_is_what_the_tests_at_the_floor_install():
    """`make test-floor`: as many digits as the bound has."""
    floor = pins("constraints-floor.txt")
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["demo"], *extras["lora"], *extras["api"]]:
        requirement = Requirement(text)
        (bound,) = (one.version for one in requirement.specifier if one.operator == ">=")
        pinned = Version(floor[requirement.name.lower()])
        assert Version(bound) == pinned, f"{text}: the floor has {pinned}"


def test_ruff_is_of_one_version_before_a_commit_and_in_ci():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["additional_dependencies"] for hook in hooks] == [[f"ruff=={pins('constraints.txt')['ruff']}"]] * 2


def test_the_workflow_runs_what_a_developer_runs():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands == {"check": [".ci/run"], "floor": ["make test-floor"]}
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    makefile = (ROOT / "Makefile").read_text()
    paths = re.findall(r"(?<![\w./-])tests/[\w/.]+", makefile)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_citation_is_of_this_version_under_this_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert cited["authors"] == PROJECT["authors"]
    assert {"cff-version", "message", "title"} <= cited.keys()
    assert f"What {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda form: form.stem
)
def test_a_form_for_issues_has_what_the_host_asks_of_one(form):
    asked = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= asked.keys()
    ids = [part["id"] for part in asked["body"]]
    assert len({*ids}) == len(ids)
    assert all(part["attributes"]["label"] for part in asked["body"])
    mentioned = re.findall(r"(?:docs|tests)/[\w-]+\.(?:md|py)", form.read_text())
    assert [file for file in mentioned if not (ROOT / file).exists()] == []
