"""Splits that must not leak, names and settings that must be refused in one line, and the hub client itself."""

from __future__ import annotations

import json
import os
import sys

import pytest

from gakd.data import DataError, Row, encode, load_rows
from gakd.data.docstrings import harvest, harvested
from gakd.data.hub import SHORT_NAMES
from gakd.data.splits import split_of
from tests import tiny

SPLITS = ("train", "valid", "test")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GAKD_CACHE", str(tmp_path_factory.mktemp("cache")))


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


@pytest.mark.parametrize("own", [("train",), ("train", "test"), ("train", "validation"), SPLITS, ("part_a",)])
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


@pytest.mark.parametrize("names", [("test", "validation"), ("test",), ("part_a", "part_b")])
def test_what_no_split_is_named_for_is_not_trained_on_unless_asked_for(hub, names):
    sets, _ = hub
    sets["a/b"] = {name: rows_of(name, 1000) for name in names}
    if "test" in names:
        assert len(load_rows("a/b", "test")) == 1000
    with pytest.raises(DataError, match=f"a/b has no train split, only {', '.join(names)}: name .* --train-split NAME"):
        load_rows("a/b", "train")
    parts = [load_rows("a/b", split, train_split=names[0]) for split in SPLITS]
    prompts = [{row.instruction for row in rows} for rows in parts]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    assert all(prompt.startswith(names[0]) for prompt in prompts[0])
    with pytest.raises(DataError, match=r"a/b has no split 'other', only .*: correct --train-split"):
        load_rows("a/b", "train", train_split="other")


def test_the_first_rows_of_a_hub_set_are_streamed(monkeypatch):
    import datasets

    asked = []

    def load(repository, split="", streaming=False):
        asked.append((repository, split, streaming))
        return datasets.Dataset.from_list(rows_of("i", 50)).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train", "test", "valid"])
    rows = load_rows("a/b", "train", max_rows=3)
    assert [row.where for row in rows] == ["a/b[train]:1", "a/b[train]:2", "a/b[train]:3"]
    assert asked == [("a/b", "train", True)]


def test_a_hub_set_of_one_split_can_be_taken_whole(hub):
    sets, _ = hub
    sets["a/b"] = {"train": rows_of("x", 100)}
    assert len(load_rows("a/b", "test", whole=True)) == 100


def test_the_names_of_a_sets_configurations_are_told(monkeypatch):
    import datasets

    def fail(*_):
        raise ValueError(
            "Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']\nmore"
        )

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(
        DataError, match=r"cannot load a/b from the hub: Config .* configs: \['main', 'socratic'\]\. Give"
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
    known = SHORT_NAMES["sinst"]
    for file in known.test:
        path = tmp_path / "sinst" / file
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"instruction": file, "input": "", "output": ["a", "b"]}) + "\n")
    monkeypatch.setitem(SHORT_NAMES, "sinst", known._replace(name=str(tmp_path / "sinst")))
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
