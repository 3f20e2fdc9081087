"""`gakd ls`, `gakd cp` and `gakd run`, from a checkout and from a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from gakd.cli.command import main
from gakd.cli.recipe_files import FOLDER, find, recipes, tools
from gakd.errors import InputError
from tests.doc_blocks import PAGES
from tests.recipe_runs import ROOT, arguments, environment, make_material, scores
from tests.recipe_table import RECIPES


def test_ls_names_each_recipe_and_tool_once_with_its_paper(capsys):
    main(["ls"])
    printed = capsys.readouterr().out
    starts = [line.split()[0] for line in printed.splitlines() if line.strip() and not line.startswith(" ")]
    assert starts == ["recipe", *recipes(), *tools()]
    assert {path.stem for path in recipes().values()} == RECIPES.keys()
    assert "MiniLLM, arXiv 2306.08543" in printed


@pytest.mark.parametrize(
    "name", ["baselines/reverse_kl", "reverse_kl", "reverse_kl.py", "recipes/baselines/reverse_kl.py"]
)
def test_a_recipe_is_found_by_each_of_its_names(name):
    assert find(name) == FOLDER / "baselines" / "reverse_kl.py"


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"no recipe 'revers_kl', did you mean '.*reverse_kl'\?: `gakd ls` lists them"):
        find("revers_kl")


def test_cp_copies_and_never_replaces_or_hides_anything(tmp_path, capsys):
    main(["cp", "baselines/reverse_kl", str(tmp_path / "new" / "my_recipe.py")])
    assert (tmp_path / "new" / "my_recipe.py").read_bytes() == find("reverse_kl").read_bytes()
    main(["cp", "gakd", str(tmp_path)])
    assert (tmp_path / "gakd.py").exists()
    capsys.readouterr()
    for target, reason in (
        (tmp_path / "gakd.py", "exists: give another name"),
        (tmp_path / "recipe.txt", "is no Python file"),
        (tmp_path / "torch.py", "would hide the module torch"),
    ):
        before = target.read_bytes() if target.exists() else None
        with pytest.raises(SystemExit) as stopped:
            main(["cp", "reverse_kl", str(target)])
        assert stopped.value.code == 2
        assert reason in capsys.readouterr().err
        assert (target.read_bytes() if target.exists() else None) == before


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    for module in ("hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(module, reason="the extra gakd[dev] builds wheels")
    return built(ROOT, tmp_path_factory.mktemp("wheel"))


def built(source: Path, folder: Path) -> Path:
    """The wheel of a checkout or of a source distribution."""
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> dict[str, str]:
    """The environment of a machine that has the wheel, with its command, and no checkout."""
    site = tmp_path_factory.mktemp("site")
    subprocess.run([*PIP, "install", "--no-deps", "--target", site, wheel], check=True)
    return environment() | {"PYTHONPATH": str(site)}


def gakd(installed: dict[str, str], folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(installed["PYTHONPATH"]) / "bin" / "gakd"), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=installed, check=False)


def test_a_wheel_has_every_recipe_and_its_own_code(installed, tmp_path):
    site = Path(installed["PYTHONPATH"])
    where = subprocess.run(
        [sys.executable, "-c", "import gakd; print(gakd.__file__)"],
        capture_output=True, text=True, cwd=tmp_path, env=installed, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()) == site / "gakd" / "__init__.py"
    for path in [*recipes().values(), *tools().values()]:
        assert (site / "gakd" / "recipes" / path.relative_to(FOLDER)).read_bytes() == path.read_bytes()
    listed = gakd(installed, tmp_path, "ls")
    assert all(f"{name} " in listed.stdout for name in recipes())


def test_the_source_distribution_holds_the_tests_and_makes_the_same_wheel(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path], cwd=ROOT, check=True)
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / packed.name.removesuffix(".tar.gz")
    for page in [*PAGES, ROOT / "mkdocs.yml", ROOT / "Makefile", ROOT / "constraints.txt", Path(__file__)]:
        assert (source / page.relative_to(ROOT)).read_bytes() == page.read_bytes()
    with zipfile.ZipFile(built(source, tmp_path)) as ours, zipfile.ZipFile(wheel) as theirs:
        assert {name: ours.read(name) for name in ours.namelist()} == {
            name: theirs.read(name) for name in theirs.namelist()
        }


@pytest.mark.slow
def test_from_a_wheel_a_copied_recipe_runs_where_it_lands(installed, tmp_path):
    material = make_material(tmp_path)
    assert gakd(installed, tmp_path, "cp", "baselines/reverse_kl", "my_recipe.py").returncode == 0
    flags = arguments(material, tmp_path / "copied", "--steps", "2", recipe="reverse_kl")
    copied = subprocess.run(
        [sys.executable, "my_recipe.py", *flags],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=installed,
        check=False,
    )
    assert copied.returncode == 0, copied.stderr[-3000:]
    flags = arguments(material, tmp_path / "run", "--steps", "2", "--devices", "2", recipe="reverse_kl")
    result = gakd(installed, tmp_path, "run", "reverse_kl", *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    ours, theirs = (scores(tmp_path / name, "after")["cross_entropy"] for name in ("copied", "run"))
    assert ours == pytest.approx(theirs, rel=1e-3)


RUN = [sys.executable, "-m", "gakd", "run"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_run_passes_flags_on(tmp_path):
    command = [*RUN, "gakd", "--help"]
    helped = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert (helped.returncode, "--adversarial-weight" in helped.stdout) == (0, True)


@pytest.mark.parametrize(
    ("flags", "words"), [(("gakd", "--student", "nobody"), "error: "), ((), "error: gakd run NAME [flags]")]
)
def test_run_passes_flags_and_exit_status_on(tmp_path, flags, words):
    refused = subprocess.run([*RUN, *flags], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert refused.returncode == 2
    assert words in refused.stderr
