"""The harvest: real docstrings, none twice, the same every time."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys

import pytest

from gakd.data import docstrings
from gakd.data.docstrings import docstring_rows, harvest, harvested

SMALL = ["json", "textwrap", "fractions"]


def test_public_functions_classes_and_methods_with_their_own_docstrings():
    import fractions
    import textwrap

    found = {record["name"]: record for record in harvest(SMALL)}
    dedent = found["textwrap.dedent"]
    assert dedent["instruction"] == "Write the docstring of the Python function `textwrap.dedent(text)`"
    assert dedent["output"] == inspect.cleandoc(textwrap.dedent.__doc__ or "")
    limit = found["fractions.Fraction.limit_denominator"]
    assert "Python method `fractions.Fraction.limit_denominator(self, max_denominator=1000000)`" in limit["instruction"]
    assert "Python class" in found["fractions.Fraction"]["instruction"]
    assert (fractions.Fraction.__doc__ or "").strip()[:20] in found["fractions.Fraction"]["output"]
    # json.loads is reachable once, json.decoder.JSONDecoder as json.JSONDecoder too: the shorter name is kept.
    assert "json.JSONDecoder" in found
    assert "json.decoder.JSONDecoder" not in found
    assert not any(name.split(".")[-1].startswith("_") for name in found)


def test_no_pair_twice_sorted_and_repeatable():
    records = list(harvest(SMALL))
    pairs = [(record["instruction"], record["output"]) for record in records]
    assert len(set(pairs)) == len(pairs)
    assert [record["name"] for record in records] == sorted(record["name"] for record in records)
    assert records == list(harvest(reversed(SMALL)))


def test_a_module_that_fails_at_import_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "explodes_at_import.py").write_text("raise SystemExit(3)")
    (tmp_path / "documented_module.py").write_text('def shout(text):\n    """Return the text in capital letters."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    (record,) = harvest(["explodes_at_import", "documented_module"])
    assert record["name"] == "documented_module.shout"


def test_defaults_that_are_written_differently_each_time_are_left_out(tmp_path, monkeypatch):
    (tmp_path / "unordered_defaults.py").write_text(
        "def pick(text, kinds={int, str, float}):\n"
        '    """Pick one of the kinds that fits the text."""\n'
        "def call(function=object()):\n"
        '    """Call the function and return its result."""\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    signatures = [record["instruction"].split("`")[1] for record in harvest(["unordered_defaults"])]
    assert signatures == ["unordered_defaults.call(...)", "unordered_defaults.pick(...)"]


def test_the_harvest_runs_elsewhere_is_kept_and_does_not_depend_on_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GAKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(docstrings, "PACKAGES", ())
    (tmp_path / "string.py").write_text("raise SystemExit('a file of the user must not shadow a module')")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    path = harvested()
    assert not {"pydoc_data", "telnetlib", "nntplib"} & (set(sys.modules) - before)
    stamp = path.stat().st_mtime_ns
    assert harvested().stat().st_mtime_ns == stamp
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    splits = {split: docstring_rows(split) for split in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == len(path.read_text().splitlines())
    assert len(splits["train"]) > 20 * len(splits["valid"]) > 0


@pytest.mark.slow
def test_the_whole_harvest_is_large_clean_and_deterministic(tmp_path, monkeypatch):
    if any(importlib.util.find_spec(package) is None for package in docstrings.PACKAGES):
        pytest.skip("needs numpy, torch and pandas")
    digests = set()
    for attempt in ("first", "second"):
        monkeypatch.setenv("GAKD_CACHE", str(tmp_path / attempt))
        path = harvested()
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) > 15_000
    assert sum(len(record["output"]) for record in records) > 8e6
    assert not any(" at 0x" in record["output"] + record["instruction"] for record in records)


def test_what_other_packages_must_be_there_for_is_left_out():
    """pytest and tensorboard are there where tests run, and not where the demo alone is installed."""
    for module in ("pandas.util._test_decorators", "torch.utils.tensorboard"):
        assert importlib.util.find_spec(module)
    names = [record["name"] for record in harvest(["pandas.util", "torch.utils"])]
    assert {name.split(".")[0] for name in names} == {"pandas", "torch"}
    assert not any("_test_decorators" in name or "tensorboard" in name for name in names)
