"""The instruction sets as a task of lm-evaluation-harness: gakd's own prompts and ROUGE-L, beside the harness's other tasks.

`python -m gakd.evaluation.harness` prints the folder that `lm_eval --include_path` wants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from gakd.data import DataConfig, Split, render
from gakd.data.config import Template
from gakd.evaluation.suites import load_suite
from gakd.evaluation.text_metrics import exact_match, rouge_l
from gakd.models.loading import load_tokenizer

TASKS = Path(__file__).parent / "harness_task"


def documents(
    *,
    pretrained: str,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    dataset: str = "dolly",
    split: Split = "test",
    template: Template = "chat",
    max_prompt_length: int = 256,
    skip_bad_rows: bool = False,
    **_: Any,
) -> dict[str, Dataset]:
    """`{"test": rows of prompt and references}`, the prompt as the checkpoint's tokenizer and `template` render it.

    The harness calls it with its `--model_args` and its `--metadata` in one, of which the rest is not for here. The prompts
    are whole: a chat template on top of them would be a second one.
    """
    words = load_tokenizer(tokenizer or pretrained, trust_remote_code)
    config = DataConfig(
        template=template, max_length=max_prompt_length + 1, max_prompt_length=max_prompt_length, skip_bad_rows=skip_bad_rows
    )  # fmt: skip
    rows = [example.row for example in load_suite({dataset: dataset}, config, words, split)[dataset]]
    records = [{"prompt": render(row, words, template), "references": list(row.responses)} for row in rows]
    return {"test": Dataset.from_list(records)}


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-L and exact match of one response, in percent."""
    text = results[0].strip()
    return {"rouge_l": rouge_l(text, doc["references"]), "exact_match": exact_match(text, doc["references"])}


if __name__ == "__main__":
    print(TASKS)
