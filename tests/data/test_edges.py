"""Splits that must not leak, names and settings that must be refused in one line, and the hub client itself."""

from __future__ import annotations

import json
import os
import sys

import pytest

from gakd.data import DataError, Row, encode, load_rows
from gakd.data import sources as sources_module
from gakd.data.docstrings import harvest, harvested
from gakd.data.splits import split_of
from tests import tiny

SPLITS = ("train", "valid", "test")


def rows_of(prefix: str, count: int) -> list[dict[str, str]]:
    """Records with the columns of Dolly on the hub."""
    return [
        {"instruction": f"{prefix} {n}", "context": "", "response": "r", "category": "open_qa"} for n in range(count)
    ]


@pytest.fixture
def hub(monkeypatch):
    """Sets by name and split, and a record of the positional arguments they were asked for with."""
    import datasets

    sets: dict[str, dict[str, list[dict[str, str]]]] = {}
    asked: list[tuple] = []

    def load(repository, *config, data_files=None, split=""):
        asked.append((repository, *config))
        return datasets.Dataset.from_list(sets[repository][split])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda repository, *config: list(sets[repository]))
    return sets, asked


@pytest.mark.parametrize("own", [("train",), ("train", "test"), ("train", "validation"), SPLITS, ("part_a", "part_b")])
def test_splits_of_a_hub_set_are_disjoint_and_keep_its_own(hub, own):
    sets, _ = hub
    sets["a/b"] = {name: rows_of(name, 1000) for name in own}
    prompts = {split: {row.instruction for row in load_rows("a/b", split)} for split in SPLITS}
    assert not prompts["train"] & prompts["valid"]
    assert not prompts["train"] & prompts["test"]
    assert not prompts["valid"] & prompts["test"]
    if "test" in own:
        assert prompts["test"] == {f"test {n}" for n in range(1000)}
    if "validation" in own:
        assert prompts["valid"] == {f"validation {n}" for n in range(1000)}
    first = {f"{own[0]} {n}" for n in range(1000)}
    assert set().union(*prompts.values()) & first == first


def test_a_hub_set_of_held_out_splits_is_not_trained_on(hub):
    sets, _ = hub
    sets["a/b"] = {"test": rows_of("t", 60), "validation": rows_of("v", 60)}
    assert len(load_rows("a/b", "test")) == 60
    with pytest.raises(
        DataError, match=r"a/b has no train split, only test, validation: save the rows as train\.jsonl"
    ):
        load_rows("a/b", "train")


def test_a_configuration_follows_the_hub_id(hub):
    sets, asked = hub
    sets["a/b"] = {"train": rows_of("x", 100)}
    load_rows("a/b:main", "train")
    load_rows("a/b", "train")
    assert asked == [("a/b", "main"), ("a/b",)]


def test_the_hub_client_reads_such_files(tmp_path, monkeypatch):
    """A local folder instead of the hub, but the same call with the same arguments."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    known = sources_module._SHORT_NAMES["sinst"]
    for file in known.test:
        path = tmp_path / "sinst" / file
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"instruction": file, "input": "", "output": ["a", "b"]}) + "\n")
    monkeypatch.setitem(sources_module._SHORT_NAMES, "sinst", known._replace(name=str(tmp_path / "sinst")))
    rows = load_rows("sinst", "test")
    assert [row.instruction for row in rows] == list(known.test)
    assert rows[0].responses == ("a", "b")


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x.jsonl", "x" * 5000])
def test_names_the_file_system_refuses_are_one_short_line(name):
    with pytest.raises(DataError, match="no usable path") as refused:
        load_rows(name, "train")
    assert len(str(refused.value)) < 200


def test_a_number_of_thousands_of_digits_is_a_bad_row(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "response": "b", "n": ' + "1" * 5000 + "}\n")
    with pytest.raises(DataError, match=r"train\.jsonl:1: not JSON"):
        load_rows(str(tmp_path), "train")


def test_what_cannot_be_tokenized_is_refused_with_its_row():
    words = tiny.tokenizer()
    with pytest.raises(DataError, match="'f:4': the row has no response"):
        encode([Row("a", where="f:4")], words)
    words.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(
        DataError, match=r"'f:5': the chat template refuses this conversation \(System role not supported\)"
    ):
        encode([Row("a", "", ("b",), where="f:5")], words)
    words.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        encode([Row("a", "", ("b",))], words, "alpaca")


def test_the_harvest_imports_no_file_of_the_folder_it_stands_in(tmp_path, monkeypatch):
    (tmp_path / "inspect.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("gakd.data.docstrings.PACKAGES", ("platform",))
    assert "platform.architecture" in harvested().read_text()


def test_signatures_hold_no_path_of_this_machine():
    records = list(harvest(["platform", "pydoc"]))
    assert {"platform.architecture", "pydoc.Doc.getdocloc"} <= {record["name"] for record in records}
    assert not any(sys.prefix in record["instruction"] for record in records)
    assert not any(os.path.dirname(os.__file__) in record["instruction"] for record in records)


def test_the_split_of_a_prompt_ignores_its_responses_and_its_origin():
    rows = [Row("q", "i", responses=(text,), where=where) for text, where in (("a", "f:1"), ("b", "g:2"))]
    assert split_of(rows[0]) == split_of(rows[1])
