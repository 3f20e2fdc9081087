"""Rows from files, folders and the hub: every format read, every malformation named with file and line."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from gakd.data import DataConfig, DataError, Row, load_data, load_rows
from gakd.data.formats import unwrap_alpaca
from gakd.data.splits import SPLITS, split_of
from tests import tiny

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GAKD_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def only_row(tmp_path: Path, record: object) -> Row:
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    write(folder / "train.jsonl", record)
    (row,) = load_rows(str(folder), "train")
    return row


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "Add", "input": "1 2", "output": "3"}, ("Add", "1 2", ("3",), ())),
        ({"instruction": "Add", "context": "1 2", "response": "3", "category": "maths"}, ("Add", "1 2", ("3",), ())),
        ({"instruction": "Add", "input": "", "output": ["3", "three"]}, ("Add", "", ("3", "three"), ())),
        ({"prompt": "Add 1 2", "response": "3"}, ("Add 1 2", "", ("3",), ())),
        ({"prompt": "Add 1 2", "completion": ["3"]}, ("Add 1 2", "", ("3",), ())),
        (
            {"messages": [{"role": "user", "content": "Add 1 2"}, {"role": "assistant", "content": "3"}]},
            ("Add 1 2", "", ("3",), ()),
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hi."},
                    {"role": "user", "content": "Add 1 2"},
                    {"role": "assistant", "content": "3"},
                ]
            },
            (
                "Add 1 2",
                "",
                ("3",),
                (
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hi."},
                ),
            ),
        ),
    ],
)
def test_formats(tmp_path, record, expected):
    assert only_row(tmp_path, record)[:4] == expected


def test_prompts_already_set_in_the_alpaca_template_are_taken_out_of_it():
    text = "Below is an instruction.\n\n### Instruction:\nAdd\nthem\n\n### Input:\n1 2\n\n### Response:\n"
    assert unwrap_alpaca(text) == ("Add\nthem", "1 2")
    assert unwrap_alpaca(text.replace("### Input:\n1 2\n\n", "")) == ("Add\nthem", "")
    assert unwrap_alpaca("### Instruction:\nno response mark") == ("### Instruction:\nno response mark", "")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"instruction": "a", "output": ', "not JSON"),
        (b"[1, 2]", "a row is an object, got list"),
        (b'"text"', "a row is an object, got str"),
        (b'{"question": "a", "answer": "b"}', r"no known format in keys \['answer', 'question'\]"),
        (b'{"instruction": "a"}', "no response in keys"),
        (b'{"instruction": "", "output": "b"}', "the instruction is empty"),
        (b'{"instruction": "a", "output": "  \\n "}', "the response is empty"),
        (b'{"instruction": "a", "output": []}', "the response is an empty list"),
        (b'{"instruction": "a", "output": ["b", 3]}', "the response must be text, got 3"),
        (b'{"instruction": 5, "output": "b"}', "the instruction must be text, got 5"),
        (b'{"instruction": "a", "input": {}, "output": "b"}', "the input must be text"),
        (b'{"instruction": "a", "output": null}', "the response must be text, got None"),
        (b'{"instruction": "a", "output": "b\\u0000"}', "NUL"),
        (b'{"instruction": "a\\ud800", "output": "b"}', "lone surrogate"),
        (b'{"instruction": "\xff\xfe", "output": "b"}', "not UTF-8"),
        (b'{"messages": []}', "at least one message"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "at least two messages"),
        (b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}', "must end with"),
        (b'{"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": "b"}]}', "a message is"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_or_counted_on_request(tmp_path, line, reason):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"instruction": "good", "output": "row"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"train\.jsonl:3: .*{reason}") as refused:
        load_rows(str(tmp_path), "train")
    assert "\n" not in str(refused.value)
    with pytest.warns(UserWarning, match=r"left out 1 bad rows \(1x .*the first at .*train\.jsonl:3"):
        rows = load_rows(str(tmp_path), "train", skip_bad_rows=True)
    assert [row.instruction for row in rows] == ["good"]


def test_a_byte_order_mark_and_blank_lines_are_no_errors(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a", "response": "b"}\n\n  \n')
    assert len(load_rows(str(tmp_path), "train")) == 1


def test_a_single_file_is_split_by_prompt_the_same_way_everywhere(tmp_path):
    path = write(tmp_path / "all.jsonl", *({"prompt": f"question {i % 2000}", "response": f"{i}"} for i in range(4000)))
    parts = {split: load_rows(str(path), split) for split in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 4000
    prompts = {split: {row.instruction for row in rows} for split, rows in parts.items()}
    assert not prompts["train"] & (prompts["valid"] | prompts["test"])
    assert not prompts["valid"] & prompts["test"]
    assert 0.01 < len(parts["valid"]) / 4000 < 0.03
    assert len(load_rows(str(path), "test", whole=True)) == 4000
    # Pinned: other machines and versions must agree.
    assert {split_of(Row(f"question {i}")): i for i in (111, 21, 0)} == {"train": 0, "valid": 21, "test": 111}


@pytest.mark.parametrize(("count", "sizes"), [(2, (1, 0, 1)), (3, (1, 1, 1)), (8, (6, 1, 1)), (64, None)])
def test_a_file_of_a_few_prompts_gives_each_split_one(count, sizes, tmp_path):
    """One for test first, then one for validation, of the highest numbers of the hash; the same to a run and to `load_rows`."""
    path = write(tmp_path / "few.jsonl", *({"prompt": f"q {n % count}", "response": f"{n}"} for n in range(2 * count)))
    data = load_data(DataConfig(str(path)), tiny.tokenizer())
    prompts = {split: [example.row.instruction for example in getattr(data, split)] for split in SPLITS}
    assert all(names.count(name) == 2 for names in prompts.values() for name in names)  # a prompt is on one side
    assert sorted(name for names in prompts.values() for name in names) == sorted(2 * [f"q {n}" for n in range(count)])
    if sizes is not None:
        assert tuple(len(set(prompts[split])) for split in SPLITS) == sizes
        number = {f"q {n}": int.from_bytes(sha256(f"q {n}\n".encode()).digest()[:4], "big") for n in range(count)}
        last = sorted(number, key=lambda name: (number[name] % 100, number[name]))
        assert [set(prompts["test"]), set(prompts["valid"])] == [{last[-1]}, {last[-2]} if count > 2 else set()]
    else:
        assert all(prompts.values())
    for split in SPLITS:
        if prompts[split]:
            assert [row.instruction for row in load_rows(str(path), split)] == prompts[split]


def test_one_row_is_trained_on_where_the_others_come_from_elsewhere(tmp_path):
    path, other = (write(tmp_path / name, {"prompt": name, "response": "x"}) for name in ("one.jsonl", "other.jsonl"))
    with pytest.raises(DataError, match=r"one.jsonl has no rows for the split 'test': give .*, or --test-dataset"):
        load_data(DataConfig(str(path)), tiny.tokenizer())
    data = load_data(DataConfig(str(path), test_dataset=str(other)), tiny.tokenizer())
    assert [len(split) for split in data[:3]] == [1, 0, 1]
    with pytest.raises(
        DataError, match=r"1 training examples do not fill one batch of 2: .* a smaller --batch-size, 1 at most"
    ):
        load_data(DataConfig(str(path), test_dataset=str(other)), tiny.tokenizer(), 2)


def test_folders_take_their_files_by_name(tmp_path):
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.jsonl", {"prompt": name, "response": "x"})
    assert load_rows(str(tmp_path), "valid")[0].instruction == "dev"
    assert load_rows(str(tmp_path), "test")[0].where.endswith("test.jsonl:1")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no train split, only dev, test: name .* with --train-split NAME"):
        load_rows(str(tmp_path), "train")


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no rows for the split 'train'"):
        load_rows(str(tmp_path), "train")


@pytest.mark.parametrize("name", ["doly", "nothing.jsonl", "./no/where", "/no/where.jsonl"])
def test_an_unknown_name_lists_what_is_accepted(name):
    with pytest.raises(DataError, match=r"give docstrings, dolly, self-inst, vicuna, sinst, uinst, a \.jsonl file"):
        load_rows(name, "train")
    if name == "doly":
        with pytest.raises(DataError, match="did you mean 'dolly'"):
            load_rows(name, "train")


@pytest.fixture
def hub(monkeypatch):
    """The hub's answers, and a record of what was asked of it."""
    import datasets

    calls: list[tuple] = []
    answers: dict[object, list[dict]] = {}

    def load(repository, data_files=None, split=None):
        calls.append((repository, tuple(data_files or ()), split))
        return datasets.Dataset.from_list(answers[repository])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda repository: ["train"])
    return calls, answers


def test_dolly_as_in_the_paper_first_thousand_for_validation(hub):
    calls, answers = hub
    answers["MiniLLM/dolly"] = [{"instruction": f"i{n}", "input": "", "output": f"o{n}"} for n in range(1200)]
    valid, train = load_rows("dolly", "valid"), load_rows("dolly", "train")
    assert [row.instruction for row in valid] == [f"i{n}" for n in range(1000)]
    assert [row.instruction for row in train] == [f"i{n}" for n in range(1000, 1200)]
    load_rows("dolly", "test")
    assert calls == [("MiniLLM/dolly", (f,), "train") for f in ("raw.jsonl", "raw.jsonl", "valid.jsonl")]


@pytest.mark.parametrize(("name", "repository"), [("self-inst", "MiniLLM/self-inst"), ("vicuna", "MiniLLM/Vicuna")])
def test_evaluation_sets_are_read_for_testing_and_refused_for_training(hub, name, repository):
    _, answers = hub
    prompt = "Below.\n\n### Instruction:\nAdd\n\n### Response:\n"
    answers[repository] = [{"prompt": prompt, "output": ["3", "three"]}]
    assert load_rows(name, "test")[0][:3] == ("Add", "", ("3", "three"))
    with pytest.raises(DataError, match=f"{name} is for evaluation alone, it has no train split: train on dolly"):
        load_rows(name, "train")


def test_any_hub_id_without_splits_is_divided_by_hash(hub):
    _, answers = hub
    answers["owner/name"] = [{"instruction": f"i{n}", "context": "", "response": "r"} for n in range(1000)]
    assert sum(len(load_rows("owner/name", split)) for split in ("train", "valid", "test")) == 1000


def test_an_unreachable_hub_is_one_line_with_what_to_do(monkeypatch):
    import datasets

    def fail(repository):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(DataError, match=r"cannot load owner/name from the hub: no route. Give a .jsonl file"):
        load_rows("owner/name", "train")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(
    ("file", "rows"), [("dolly_dev.jsonl", 999), ("dolly_eval.jsonl", 500), ("self_inst.jsonl", 252)]
)
def test_real_files_are_read_whole(file, rows):
    assert len(load_rows(str(SHARED / file), "test", whole=True)) == rows
