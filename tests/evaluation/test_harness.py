"""The task for lm-evaluation-harness: the documents it is given, and the harness's own figures beside gakd's."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import yaml

from gakd.data import encode, load_rows
from gakd.evaluation import evaluate, rouge_l
from gakd.evaluation.harness import TASKS, documents, score
from gakd.models import load_model, load_tokenizer
from gakd.samplers import Sampling
from tests import tiny

TURNS = [("system", "Be short."), ("user", "Well?"), ("assistant", "Well."), ("user", "And?"), ("assistant", "So.")]
ROWS = [
    {"instruction": "Say a.", "input": "twice", "output": ["a a", "aa"]},
    {"instruction": "long " * 80, "output": "no"},
    {"messages": [{"role": role, "content": content} for role, content in TURNS]},
    {"instruction": "Say\n\nb.", "output": "b"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint and rows.jsonl, of which one prompt is too long."""
    folder = tmp_path_factory.mktemp("harness")
    tiny.save(folder / "student", tiny.model(seed=3, tied=False, scale=4.0), tiny.tokenizer())
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def test_documents_are_the_prompts_that_gakd_answers(folder):
    student, rows = str(folder / "student"), str(folder / "rows.jsonl")
    with pytest.warns(UserWarning, match="left out 1 of 4 rows whose prompt is longer than 256 tokens"):
        found = documents(pretrained=student, dataset=rows, dtype="float32", version=1.0)["test"]
    assert found["references"] == [["a a", "aa"], ["So."], ["b"]]
    thought = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert found["prompt"][0] == f"<|im_start|>user\nSay a.\n\ntwice<|im_end|>\n{thought}"
    assert found["prompt"][1].count("<|im_start|>") == 5
    with pytest.warns(UserWarning, match="left out"):
        examples = encode(load_rows(rows, "test", whole=True), tiny.tokenizer())
    assert [tiny.tokenizer()(prompt)["input_ids"] for prompt in found["prompt"]] == [one.prompt_ids for one in examples]


def test_documents_of_the_published_template(folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    found = documents(
        pretrained="none",
        tokenizer=str(folder / "student"),
        dataset=str(rows),
        max_prompt_length=900,
        template="alpaca",
    )["test"]
    assert len(found) == 2
    assert found["prompt"][0].endswith("### Instruction:\nSay a.\n\n### Input:\ntwice\n\n### Response:\n")


def test_a_response_is_scored_as_gakd_scores_it():
    doc = {"references": ["the cat sat", "a dog"]}
    assert score(doc, [" the cats ran\n"]) == {"rouge_l": pytest.approx(200 / 3), "exact_match": 0.0}
    assert score(doc, ["A dog!"]) == {"rouge_l": 100.0, "exact_match": 100.0}


def test_the_folder_holds_the_task(capsys):
    runpy.run_path(str(TASKS.parent / "harness.py"), run_name="__main__")
    assert Path(capsys.readouterr().out.strip()) == TASKS

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    task = yaml.load((TASKS / "gakd.yaml").read_text(), Loader)
    assert task["custom_dataset"] == f"{documents.__module__}.{documents.__name__}"
    assert task["process_results"] == f"{score.__module__}.{score.__name__}"
    assert [metric["metric"] for metric in task["metric_list"]] == list(score({"references": ["x"]}, ["x"]))


def test_the_harness_finds_what_gakd_finds(folder):
    harness = pytest.importorskip("lm_eval", reason="the extra gakd[harness]")
    from lm_eval.tasks import TaskManager

    student, rows = str(folder / "student"), str(folder / "rows.jsonl")
    model = {"pretrained": student, "dtype": "float32", "device": "cpu"}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=model | {"dataset": rows})
    with pytest.warns(UserWarning, match="left out 1 of 4"):
        found = harness.simple_evaluate(
            "hf", model_args=model, tasks=["gakd"], task_manager=manager, batch_size=1, gen_kwargs="max_gen_toks=24"
        )
    assert found is not None
    with pytest.warns(UserWarning, match="left out 1 of 4"):
        examples = encode(load_rows(rows, "test", whole=True), load_tokenizer(student))
    expected = evaluate(
        load_model(student), None, load_tokenizer(student), examples, Sampling(24, temperature=0), batch_size=1
    )
    texts = [sample["resps"][0][0].strip() for sample in found["samples"]["gakd"]]
    assert texts == expected.predictions
    assert any(texts)
    assert found["results"]["gakd"]["rouge_l,none"] == pytest.approx(expected.rouge_l)
    assert found["results"]["gakd"]["exact_match,none"] == expected.exact_match
    assert expected.rouge_l == pytest.approx(
        sum(rouge_l(text, one.row.responses) for text, one in zip(texts, examples, strict=True)) / 3
    )
