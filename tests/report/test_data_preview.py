"""What is shown of data, on a terminal and in a report."""

from __future__ import annotations

import json
import statistics

import pytest

from gakd.cli.report import ReportConfig, main
from gakd.data import DataConfig, Example, Row, load_data
from gakd.report.data_preview import example_text
from gakd.report.data_table import data_rows
from gakd.report.groups import grouped
from gakd.report.read import read_run
from tests import tiny
from tests.report_runs import write_run

COUNTS = {
    "rows": 1010, "kept": 1000, "cut": 50, "max_length": 512, "left_out": {"its prompt is too long": [10, "<b>:7"]},
    "examples": 1000, "supervised": 123456, "length": {"median": 80, "longest": 512},
    "prompt_length": {"median": 30, "longest": 99}, "histogram": [[512, 1000]], "prompt_histogram": [[512, 1000]],
}  # fmt: skip


def test_tokens_that_are_not_trained_stand_outside_the_brackets():
    words = tiny.tokenizer()

    def ids(text: str) -> list[int]:
        return words(text, add_special_tokens=False)["input_ids"]

    parts = [(ids("é<|im_end|>"), True), (ids("🍵?"), False), (ids("ü"), True)]
    response = [token for own, _ in parts for token in own]
    trained = tuple(taught for own, taught in parts for _ in own)
    example = Example(ids("<|im_start|>\n"), response, Row("q"), trained)
    text = example_text(example, words, marks=True)
    assert text.plain == "<|im_start|>⏎\n⟦é<|im_end|>⟧🍵?⟦ü⟧"
    assert "⟦" not in example_text(example, words, marks=False).plain


@pytest.mark.parametrize("kept", [{"train": COUNTS}, None, {}, {"train": 3}, [], {"train": COUNTS | {"left_out": 1}}])
def test_a_report_shows_the_counts_that_a_run_has_kept(tmp_path, kept):
    run = write_run(tmp_path / "run", "sft", 1)
    if kept is not None:
        (run / "data_summary.json").write_text(json.dumps(kept))
    main(ReportConfig((run,), tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = kept == {"train": COUNTS}
    for text in ("1,000 of 1,010", "10: its prompt is too long", "50 (5.0 %)", "123,456", "What they were taught"):
        assert (text in page) == shown


def test_lengths_are_quantiles_and_older_runs_show_what_they_have(tmp_path):
    spread = {"mean": 9, "p10": 12, "median": 30, "p90": 1234, "longest": 5000}
    new = COUNTS | {"prompt_length": spread, "response_length": spread | {"p10": 3}}
    for name, kept in (("new", new), ("old", COUNTS)):
        (write_run(tmp_path / name, "sft", 1) / "data_summary.json").write_text(json.dumps({"train": kept}))
    rows = data_rows(grouped([read_run(tmp_path / name) for name in ("new", "old")]))
    assert [(row.prompts, row.responses, row.whole) for row in rows] == [
        ("12 · 30 · 1,234 · 5,000", "3 · 30 · 1,234 · 5,000", "– · 80 · – · 512"),
        ("– · 30 · – · 99", "– · – · – · –", "– · 80 · – · 512"),
    ]


def test_the_quantiles_are_those_of_the_examples(tmp_path):
    """Responses of 1 to 40 characters, the end of the turn and the line break behind it; prompts of one length."""
    for split, lengths in (("train", range(1, 41)), ("valid", [1]), ("test", [1])):
        rows = [json.dumps({"instruction": "q" * 5, "output": "a" * length}) for length in lengths]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    config = DataConfig(dataset=str(tmp_path), max_length=200, max_prompt_length=100)
    counts = load_data(config, tiny.tokenizer()).counts["train"]
    lengths = [length + 2 for length in range(1, 41)]
    assert counts["response_length"] == {
        "mean": round(statistics.fmean(lengths)), "p10": 6, "median": 22, "p90": 38, "longest": 42,
    }  # fmt: skip
    prompt = counts["prompt_length"]
    assert len({prompt[name] for name in ("mean", "p10", "median", "p90", "longest")}) == 1
    assert counts["length"]["longest"] == prompt["longest"] + 42
