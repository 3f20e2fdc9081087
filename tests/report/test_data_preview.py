"""What is shown of data, on a terminal and in a report."""

from __future__ import annotations

import json

import pytest

from gakd.cli.report import ReportConfig, main
from gakd.data import Example, Row
from gakd.report.data_preview import example_text
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
