"""Files of every kind, patterns and folders: the same rows, each named by its place; broken ones in one line."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gakd.data import DataError, load_rows
from gakd.data.records import belongs, open_records, read
from gakd.data.splits import SPLITS
from gakd.files import cache_dir

RECORDS = [
    {"instruction": "Say NA", "input": "", "output": "007"},
    {"instruction": "Two\nlines, \"quoted\"", "input": "1,5", "output": "Ünïcödé ✓"},
]  # fmt: skip
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GAKD_CACHE", str(tmp_path_factory.mktemp("cache")))


def many(prefix: str, count: int = 1000) -> bytes:
    return "".join(json.dumps({"prompt": f"{prefix} {n}", "response": "r"}) + "\n" for n in range(count)).encode()


def separated(path: Path, delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(RECORDS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(RECORDS)


def parquet(path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(RECORDS).to_parquet(str(path))


def arrow(path: Path, streaming: bool) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(RECORDS)
    write = pa.ipc.new_stream if streaming else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, write(sink, table.schema) as writer:
        writer.write_table(table)


def zstandard(path: Path) -> None:
    import pyarrow as pa

    with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as file:
        file.write(LINES)


KINDS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.ndjson": lambda path: path.write_bytes(LINES),
    "crlf.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n").rstrip()),
    "lines.json": lambda path: path.write_bytes(b"\n" + LINES),
    "array.json": lambda path: path.write_text(json.dumps(RECORDS)),
    "pretty.json": lambda path: path.write_text(json.dumps(RECORDS, indent=2), encoding="utf-8-sig"),
    "object.json": lambda path: path.write_text(json.dumps({"version": 1, "data": RECORDS})),
    "object_pretty.json": lambda path: path.write_text(json.dumps({"data": RECORDS}, indent=1)),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "array.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(RECORDS).encode())),
    "a.jsonl.zst": zstandard,
    "a.csv": lambda path: separated(path, ","),
    "a.tsv": lambda path: separated(path, "\t"),
    "a.parquet": parquet,
    "stream.arrow": lambda path: arrow(path, True),
    "file.arrow": lambda path: arrow(path, False),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    KINDS[name](path)
    for _ in range(2):  # read, then from the cache
        rows = load_rows(str(path), "train", whole=True)
        assert [(row.instruction, row.input, *row.responses) for row in rows] == [
            (record["instruction"], record["input"], record["output"]) for record in RECORDS
        ]
        first = 2 if name == "lines.json" else 1
        assert [row.where for row in rows] == [f"{path}:{first}", f"{path}:{first + 1}"]


def test_a_pretty_row_by_itself_is_a_row(tmp_path):
    path = tmp_path / "one.json"
    for indent in (None, 2):
        path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
                                   indent=indent))  # fmt: skip
        assert len(load_rows(str(path), "train", whole=True)) == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"[1, 2", "not JSON"),
        ("a.json", b'[{"prompt": "\xff"}]', "not UTF-8"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.json", b'{"prompt": "a"', "a.json:1: not JSON"),
        ("a.jsonl.gz", gzip.compress(LINES)[:-9], "end-of-stream"),
        ("a.jsonl.gz", b"junk", "Not a gzipped file"),
        ("a.jsonl.zst", b"junk", "cannot read"),
        ("a.parquet", b"PAR1 junk PAR1", "cannot read"),
        ("a.parquet", b"", "cannot read"),
        ("a.arrow", b"junk", "cannot read"),
        ("a.csv", b"prompt,prompt\na,b\n", "stands twice in the header"),
        ("a.csv", b"prompt,response\na,\xff\n", "not UTF-8"),
        ("a.csv", b'prompt,response\na,"b\n', "a.csv:2: not comma-separated text"),
        ("a.csv", b"prompt,response\na,b,c\n", "a.csv:1: 3 cells in a row, but 2 in the header"),
        ("a.csv", b"prompt,response\na,\n", "a.csv:1: the response is empty"),
        ("a.csv", b"", "has no rows for the split"),
        ("a.jsonl", b"", "has no rows for the split"),
        ("a.json", b"[]", "has no rows for the split"),
        ("a.parquet.gz", b"", "unpack it first"),
    ],
)
def test_broken_files_are_one_line(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        load_rows(str(path), "train", whole=True)
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert not list(cache_dir().rglob("*.tmp"))


def test_bad_rows_of_a_csv_file_are_left_out_on_request(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,response\na,b,c\n\nd,e\n")
    with pytest.warns(UserWarning, match=r"left out 1 bad rows \(1x 3 cells in a row"):
        (row,) = load_rows(str(path), "train", skip_bad_rows=True, whole=True)
    assert (row.instruction, row.where) == ("d", f"{path}:3")


def test_a_file_is_read_anew_when_it_changes_and_kept_once(tmp_path):
    path = tmp_path / "a.jsonl"
    marks = []
    for prompt in ("a", "b", "a"):
        path.write_text(json.dumps({"prompt": prompt, "response": "r"}))
        assert load_rows(str(path), "train", whole=True)[0].instruction == prompt
        marks.append(open_records(str(path), "train").fingerprint)
    assert marks[0] == marks[2] != marks[1]
    assert len(list((cache_dir() / "tables").iterdir())) == 1


def test_a_large_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "r" * 2_000_000}) + "\n")
    first = open_records(str(path), "train", whole=True)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("read again"))
    again = open_records(str(path), "train", whole=True)
    assert again.fingerprint == first.fingerprint
    assert again.table[:] == first.table[:]
    assert again.table.cache_files  # memory-mapped
    os.utime(path, ns=(0, 0))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        open_records(str(path), "train", whole=True)


def test_patterns_take_their_files_in_order(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_bytes(many(name, 2))
    rows = load_rows(str(tmp_path / "*.jsonl"), "train", whole=True)
    assert [row.instruction for row in rows] == ["a 0", "a 1", "b 0", "b 1"]
    assert [row.where.rsplit("/")[-1] for row in rows] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "b.jsonl:2"]
    (tmp_path / "c.json").write_bytes(many("c", 2))
    with pytest.raises(DataError, match="are files of different kinds, lines, json: give files of one kind"):
        load_rows(str(tmp_path / "*.json*"), "train")
    with pytest.raises(DataError, match="no file matches"):
        load_rows(str(tmp_path / "*.parquet"), "train")
    (tmp_path / "train.jsonl").write_bytes(many("t"))
    (tmp_path / "test.jsonl").write_bytes(many("t"))
    with pytest.raises(DataError, match="matches files of several splits, test, train: give their folder"):
        load_rows(str(tmp_path / "*.jsonl"), "train")


def fill(folder: Path, names: list[str]) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(many(name))
    return str(folder)


@pytest.mark.parametrize(
    ("names", "own"),
    [
        (["train.jsonl"], {}),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], {}),
        (["my_train.jsonl", "my_eval.jsonl"], {"test": "my_eval"}),
        (["train.jsonl", "validation.jsonl"], {"valid": "validation"}),
        (["data/train/a.jsonl", "data/train/b.jsonl", "data/dev/a.jsonl", "test2.jsonl"],
         {"valid": "data/dev", "test": "test2"}),
        (["alpha.jsonl", "beta.jsonl"], {}),
        (["train.jsonl", "latest.jsonl", ".hidden/test.jsonl"], {}),
    ],
)  # fmt: skip
def test_splits_of_a_folder_are_disjoint_and_go_by_its_files_names(tmp_path, names, own):
    folder = fill(tmp_path / "set", names)
    prompts = {split: {row.instruction for row in load_rows(folder, split)} for split in SPLITS}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values()))
    for split, begin in own.items():
        assert len(prompts[split]) == 1000
        assert all(prompt.startswith(begin) for prompt in prompts[split])
    named = 1000 * sum("latest" not in name and "hidden" not in name for name in names)
    assert sum(map(len, prompts.values())) == named


def test_a_folder_of_one_set_can_be_taken_whole(tmp_path):
    for names in (["train.jsonl"], ["a.jsonl"], ["test.jsonl"]):
        folder = fill(tmp_path / names[0], names)
        assert len(load_rows(folder, "test", whole=True)) == 1000
    assert len(load_rows(folder, "test")) == 1000


def test_the_split_to_train_on_can_be_named(tmp_path):
    folder = fill(tmp_path / "set", ["sft-train.jsonl", "rl-train.jsonl", "test.jsonl"])
    assert {row.instruction[:3] for row in load_rows(folder, "train")} == {"sft", "rl-"}
    assert {row.instruction[:3] for row in load_rows(folder, "train", train_split="sft")} == {"sft"}
    assert {row.instruction[:3] for row in load_rows(folder, "valid", train_split="sft")} == {"sft"}
    assert {row.instruction[:3] for row in load_rows(folder, "test", train_split="sft")} == {"tes"}
    with pytest.raises(DataError, match="has no split 'dpo', only train, test: correct --train-split"):
        load_rows(folder, "train", train_split="dpo")
    for alone in (str(tmp_path / "set" / "test.jsonl"), "dolly", "docstrings", fill(tmp_path / "plain", ["a.jsonl"])):
        with pytest.raises(
            DataError, match=r"--train-split sft names a split of a folder or of a hub set, but .* has none"
        ):
            load_rows(alone, "train", train_split="sft")


def test_folders_without_an_answer_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no data files: expected train\.jsonl"):
        load_rows(str(tmp_path / "empty"), "train")
    with pytest.raises(DataError, match=r"names two splits, train and test: rename it"):
        load_rows(fill(tmp_path / "two", ["train_test.jsonl"]), "train")
    with pytest.raises(DataError, match="are files of different kinds"):
        load_rows(fill(tmp_path / "mixed", ["train.jsonl", "train.csv"]), "train")


@pytest.mark.parametrize("splits", [None, ("train",), ("train", "test"), ("one", "two")])
def test_folders_that_datasets_saved(tmp_path, splits):
    import datasets

    def made(name: str) -> datasets.Dataset:
        return datasets.Dataset.from_list([{"prompt": f"{name} {n}", "response": "r"} for n in range(1000)])

    saved = datasets.DatasetDict({name: made(name) for name in splits}) if splits else made("all")
    saved.save_to_disk(str(tmp_path / "saved"))
    folder = str(tmp_path / "saved")
    if splits == ("one", "two"):
        with pytest.raises(DataError, match=r"has no train split, only one, two: name .* --train-split NAME"):
            load_rows(folder, "train")
        assert {row.instruction[:3] for row in load_rows(folder, "train", train_split="two")} == {"two"}
        return
    parts = {split: load_rows(folder, split) for split in SPLITS}
    assert sum(map(len, parts.values())) == 1000 * len(splits or ("all",))
    assert parts["train"][0].where.startswith(f"{folder}[train]:" if splits else f"{folder}:")
    if splits == ("train", "test"):
        assert {row.instruction[:4] for row in parts["test"]} == {"test"}


def test_the_first_rows_alone(tmp_path):
    for name in ("a.jsonl", "a.parquet"):
        KINDS[name](tmp_path / name)
        (row,) = load_rows(str(tmp_path / name), "train", whole=True, max_rows=1)
        assert row.instruction == "Say NA"
    all_of, first = (open_records(str(tmp_path / "a.jsonl"), "train", max_rows=count) for count in (None, 1))
    assert all_of.fingerprint != first.fingerprint


def test_records_are_read_in_batches_of_any_order(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(many("a", 200) + b"\n{\n")
    records = open_records(str(path), "train")
    assert len(records.table) == 202
    found = read(records, records.table[[201, 200, 5]], [201, 200, 5])
    assert [where for where, _ in found] == [f"{path}:202", f"{path}:6"]  # a blank line is none
    assert isinstance(found[0][1], DataError)
    assert found[1][1] == {"prompt": "a 5", "response": "r"}
    rows = [row for split in SPLITS for row in load_rows(str(tmp_path), split, skip_bad_rows=False, max_rows=200)]
    assert all(sum(belongs(records, row, split) for split in SPLITS) == 1 for row in rows)


def test_messages_and_tools_of_parquet_files(tmp_path):
    import datasets

    tools = [{"name": "add", "a": {"type": "integer"}}, {"name": "say", "text": {"type": "string"}}]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    datasets.Dataset.from_list(
        [
            {"messages": turns, "tools": tools},
            {"messages": [*turns, {**turns[0], "name": "me"}, turns[1]], "tools": None},
        ]
    ).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match=r"a\.parquet:2: the last user's message has the key 'name'"):
        load_rows(str(tmp_path / "a.parquet"), "train", whole=True)
    (row,) = load_rows(str(tmp_path / "a.parquet"), "train", whole=True, max_rows=1)
    assert row.tools == tuple(tools)
    assert row.answer is None
