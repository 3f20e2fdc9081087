"""The tools as a user runs them: as scripts, from another folder, on tiny models that were saved to disk."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from gakd.data import DataConfig, Example, Message, Row, encode, load_rows, load_split
from gakd.errors import InputError
from gakd.evaluation import evaluate
from gakd.models import load_model, load_tokenizer
from gakd.samplers import Generation, Sampling
from gakd.samplers.teacher_text import records
from tests import tiny
from tests.chat_server import ChatServer, Reply, completion, prompt_of, serving

TOOLS = Path(__file__).parents[2] / "recipes" / "tools"
# One thread: the text that is compared must not depend on how a product was split over threads.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def command(tool: str, *arguments: object) -> list[str]:
    return [sys.executable, str(TOOLS / f"{tool}.py"), *map(str, arguments)]


def run(tool: str, *arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        command(tool, *arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(tool: str) -> ModuleType:
    name = f"tool_{tool}"
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{tool}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses looks its annotations up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models a, b and teacher, and a dataset folder."""
    folder = tmp_path_factory.mktemp("tools")
    for seed, name in enumerate(("a", "b", "teacher")):
        tiny.save(folder / name, tiny.model(seed=seed, tied=False, scale=4.0), tiny.tokenizer())
    (folder / "data").mkdir()
    train: list[dict[str, object]] = [
        {"instruction": f"Say {index}.", "input": "twice" * (index % 3), "output": "so"} for index in range(31)
    ]
    messages = [("system", "Be short."), ("user", "Well?"), ("assistant", "Well.")]
    train.append({"messages": [{"role": role, "content": content} for role, content in messages]})
    test = [{"instruction": f"Name {index}.", "output": ["e", "the name"]} for index in range(5)]
    for name, rows in (("train", train), ("test", test)):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
def test_generate_killed_and_run_again_writes_the_same_rows(folder, tmp_path):
    arguments = ["--model", folder / "a", "--dataset", folder / "data", "--batch-size", 2, "--max-new-tokens", 40]
    run("generate", *arguments, "--output", "whole/train.jsonl", cwd=tmp_path)

    killed, state = tmp_path / "killed" / "train.jsonl", tmp_path / "killed" / "train.jsonl.json"
    process = subprocess.Popen(
        command("generate", *arguments, "--output", killed), cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not state.exists() or json.loads(state.read_text())["batches"] < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= json.loads(state.read_text())["batches"] < 16
    printed = run("generate", *arguments, "--output", killed, cwd=tmp_path)
    assert killed.read_bytes() == (tmp_path / "whole" / "train.jsonl").read_bytes()
    assert "rows for 31 prompts" in printed  # one of 32 is held out to test on

    rows, prompts = load_rows(str(tmp_path / "killed"), "train", whole=True), load_rows(str(folder / "data"), "train")
    totals = json.loads(state.read_text())["totals"]
    assert len(rows) == totals["rows"] > 25
    asked = [(prompt.instruction, prompt.input, prompt.history) for prompt in prompts]
    answered = [(row.instruction, row.input, row.history) for row in rows]
    assert [prompt for prompt in asked if prompt in answered] == answered
    assert len({row.responses for row in rows}) > 20


def test_generate_refuses_other_settings_and_skips_what_is_done(folder, tmp_path, capsys, monkeypatch):
    tool = imported("generate")
    data = DataConfig(dataset=str(folder / "data"))
    config = tool.Config(str(folder / "a"), tmp_path / "out.jsonl", examples=3, data=data, sampling=Sampling(3))
    tool.main(config)
    first = (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.setattr(
        "gakd.models.loading.load_model", None
    )  # calling it would raise: a finished file needs no model
    tool.main(config)
    assert (tmp_path / "out.jsonl").read_bytes() == first
    assert capsys.readouterr().out.count("rows for 3 prompts") == 2
    config.sampling = Sampling(4)
    with pytest.raises(ValueError, match=r"begun with other settings: sampling was .*3.* is .*4"):
        tool.main(config)


def test_generate_leaves_out_what_data_would_refuse():
    history: tuple[Message, ...] = ({"role": "system", "content": "Be short."},)
    examples = [Example([1], [2], Row("Why?", "now", ("r",))), Example([1], [2], Row("Well?", "", ("r",), history))]
    texts, generations = ["Because.", "Well."], [Generation([1], 258), Generation([1])]
    first = {"instruction": "Why?", "input": "now", "output": "Because.", "finished": True}
    turns = [*history, {"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Well."}]
    second = {"messages": turns, "finished": False}
    assert records(examples, texts, generations) == [first, second]
    assert records(examples, texts, generations, drop_unfinished=True) == [first]
    assert records(examples, ["", "Well."], generations) == [second]
    assert records(examples, ["Because.", "a\0b"], generations) == [first]


def test_evaluate_one_table_over_checkpoints(folder, tmp_path):
    printed = run(
        "evaluate", "--students", folder / "a", folder / "b", "--teacher", folder / "teacher",
        "--dataset", folder / "data", "--seeds", 10, 20, "--max-new-tokens", 6, "--batch-size", 4, "--examples", 4,
        "--output", "numbers/result.json", cwd=tmp_path,
    )  # fmt: skip
    result = json.loads((tmp_path / "numbers" / "result.json").read_text())
    assert result["config"]["seeds"] == [10, 20]
    assert list(result["evaluations"]) == [str(folder / "a"), str(folder / "b")]

    tokenizer = load_tokenizer(str(folder / "a"))
    examples = load_split(DataConfig(dataset=str(folder / "data")), tokenizer, "test")[:4]
    student, teacher = load_model(str(folder / "b")), load_model(str(folder / "teacher"))
    expected = evaluate(student, teacher, tokenizer, examples, Sampling(6), batch_size=4, seeds=[10, 20])
    found = result["evaluations"][str(folder / "b")]
    for name in ("cross_entropy", "forward_kl", "reverse_kl"):
        assert found[name] == pytest.approx(getattr(expected, name), rel=1e-5)
        assert f"{found[name]:.3f}" in printed
    assert found["predictions"] == expected.predictions
    assert found["by_seed"] == expected.by_seed
    assert "4 test examples, seeds 10, 20" in printed
    assert all(len(line) <= 100 for line in printed.splitlines())


def test_evaluate_greedy_without_teacher(folder, capsys):
    tool = imported("evaluate")
    data = DataConfig(dataset=str(folder / "data"))
    config = tool.Config([str(folder / "a")], sampling_temperature=0.0, max_new_tokens=3, examples=2, data=data)
    tool.main(config)
    printed = capsys.readouterr().out
    assert "greedy" in printed
    assert "KL" not in printed
    config.students *= 2
    with pytest.raises(InputError, match="name each once"):
        tool.main(config)


@pytest.mark.slow
def test_evaluate_a_suite_of_files_one_table_that_is_gone_on_from(folder, tmp_path):
    for name, words in (("short", 3), ("mixed", 6)):
        rows = [{"instruction": f"{name} {i}", "output": ["so " * (i + words), "the name " * 4]} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (
        "--suite", "short.jsonl,own=mixed.jsonl", "--long-words", 7, "--seeds", 10, 20, "--max-new-tokens", 6,
        "--batch-size", 4, "--output", "numbers/suite.json", "--teacher", folder / "teacher",
    )  # fmt: skip
    run("evaluate", "--students", folder / "a", *flags, cwd=tmp_path)
    first = json.loads((tmp_path / "numbers" / "suite.json").read_text())
    printed = run("evaluate", "--students", folder / "a", folder / "b", *flags, cwd=tmp_path)
    result = json.loads((tmp_path / "numbers" / "suite.json").read_text())
    a, b = str(folder / "a"), str(folder / "b")
    assert result["evaluations"][a] == first["evaluations"][a]
    assert {name: (one["prompts"], one["long"]) for name, one in result["sets"].items()} == {
        "short": (4, 0),
        "own": (4, 3),
    }

    tokenizer, rouge, long = load_tokenizer(b), [], []
    for name, file in (("short", "short.jsonl"), ("own", "mixed.jsonl")):
        examples = encode(load_rows(str(tmp_path / file), "test", whole=True), tokenizer)
        expected = evaluate(
            load_model(b),
            load_model(str(folder / "teacher")),
            tokenizer,
            examples,
            Sampling(6),
            batch_size=4,
            seeds=[10, 20],
        )
        found = result["evaluations"][b][name]
        assert found["predictions"] == expected.predictions
        assert found["by_seed"]["rouge_l"] == pytest.approx(expected.by_seed["rouge_l"])
        assert found["reverse_kl"] == pytest.approx(expected.reverse_kl, rel=1e-5)
        assert f"{expected.rouge_l:.2f}" in printed
        rouge.append(expected.rouge_l)
        references = [example.row.responses for example in examples]
        long += [
            score
            for of_seed in expected.rouge_l_by_prompt
            for score, texts in zip(of_seed, references, strict=True)
            if all(len(text.split()) >= 7 for text in texts)
        ]
    scores = result["scores"][b]
    assert scores["average"]["mean"] == pytest.approx(sum(rouge) / 2)
    assert scores["long"]["mean"] == pytest.approx(sum(long) / len(long))
    assert f"{sum(long) / len(long):.2f}" in printed
    assert "test split, seeds 10, 20" in printed
    assert all(len(line) <= 100 for line in printed.splitlines())


def test_evaluate_a_suite_that_is_done_loads_no_model(folder, tmp_path, capsys, monkeypatch):
    tool = imported("evaluate")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"instruction": "Say so.", "output": "so"}) + "\n")
    config = tool.Config([str(folder / "a")], suite=str(file), max_new_tokens=3, output=tmp_path / "suite.json")
    tool.main(config)
    printed = capsys.readouterr().out
    monkeypatch.setattr("gakd.models.loading.load_model", None)  # calling it would raise
    tool.main(config)
    assert capsys.readouterr().out == printed
    assert "seeds 10, 20, 30, 40, 50" in printed
    config.max_new_tokens = 4
    with pytest.raises(ValueError, match="begun with other settings: max_new_tokens was 3, is 4"):
        tool.main(config)


def test_an_endpoint_answers_a_dataset_once_and_what_it_wrote_trains(tmp_path):
    pytest.importorskip("openai", reason="the extra gakd[api]")
    prompts = [{"instruction": f"Say {index}", "output": "-"} for index in range(5)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    for split in ("valid", "test"):  # so that none of these few are held out
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"instruction": split, "output": "-"}) + "\n")

    def answer(asked):
        cut = prompt_of(asked) == "Say 3"
        return Reply(completion(f"Answer to {prompt_of(asked)}", "length" if cut else "stop"))

    with serving(ChatServer(answer)) as server:
        flags = ("--base-url", server.url, "--model", "m", "--dataset", tmp_path, "--output", "text/train.jsonl")
        printed = run("generate_from_endpoint", *flags, "--examples", 3, cwd=tmp_path)
        assert "text/train.jsonl: 3 rows for 3 prompts; 0 responses were cut" in printed
        printed = run("generate_from_endpoint", *flags, cwd=tmp_path)
        assert "5 rows for 5 prompts; 1 responses were cut" in printed
        assert server.times_asked() == {f"Say {index}": 1 for index in range(5)}
    rows = load_rows(str(tmp_path / "text"), "train", whole=True)
    assert [row.responses[0] for row in rows] == [f"Answer to Say {index}" for index in range(5)]
    assert [row.finished for row in rows] == [True, True, True, False, True]
    words = tiny.tokenizer()
    ends = [words.eos_token_id in example.response_ids for example in encode(rows, words)]
    assert ends == [True, True, True, False, True]


def test_an_endpoints_answers_never_replace_the_prompts(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"instruction": "Say 1", "output": "-"}\n')
    before = (tmp_path / "train.jsonl").read_bytes()
    for dataset in (tmp_path, tmp_path / "train.jsonl"):
        arguments = (
            "--base-url",
            "http://localhost:1/v1",
            "--model",
            "m",
            "--dataset",
            dataset,
            "--output",
            "train.jsonl",
        )
        done = subprocess.run(
            command("generate_from_endpoint", *arguments), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "error: train.jsonl holds the prompts of --dataset" in done.stderr
    assert (tmp_path / "train.jsonl").read_bytes() == before
