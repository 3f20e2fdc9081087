"""What a dataset becomes before anything is trained: counts, lengths, and examples with what is taught in colour.

gakd data --dataset rows.jsonl --student Qwen3-0.6B
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from gakd.data.config import DataConfig
from gakd.data.splits import Split
from gakd.flags import COUNT, OPTIONAL_COUNT, Bound, check

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class DataPreviewConfig:
    """Whose template sets the text, and what of it is shown."""

    student: str
    """Whose tokenizer and chat template set the text: a folder, a hub id or a name such as Qwen3-0.6B."""
    split: Split = "train"
    """The split that is shown."""
    examples: int = 3
    """Examples that are shown, evenly spaced over the split."""
    prompts_alone: bool = False
    """Rows need no responses, as in recipes that write them."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model's files. It can do anything on this machine: read it first."""
    data: DataConfig = field(default_factory=DataConfig)


BOUNDS = {
    "examples": OPTIONAL_COUNT, "max_length": Bound(at_least=2), "max_prompt_length": COUNT, "max_rows": COUNT
}  # fmt: skip


def main(config: DataPreviewConfig) -> None:
    check(config, BOUNDS)
    from gakd.models.loading import load_tokenizer

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    tokenizer = load_tokenizer(config.student, config.trust_remote_code)
    for shown in preview(config, tokenizer, marks=console.color_system is None or console.no_color):
        console.print(shown)


def preview(config: DataPreviewConfig, tokenizer: PreTrainedTokenizerBase, marks: bool) -> Iterator[Any]:
    """What is shown, piece by piece; `marks` as in `example_text`."""
    from gakd.data.counts import counts
    from gakd.data.dates import fixed_date
    from gakd.data.ends import end_ids
    from gakd.data.load import encoder_of, load_summary, spread
    from gakd.data.marks import date_mark
    from gakd.report.data_preview import counts_table, example_text, histogram

    data = config.data
    data.date = fixed_date(data.date)
    encoder = encoder_of(data, tokenizer, config.prompts_alone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table says what was left out
        summary = load_summary(data, encoder, config.split, config.prompts_alone and config.split != "train")
    found = counts(summary, data.max_length)
    ends = " ".join(map(str, tokenizer.convert_ids_to_tokens(end_ids(tokenizer))))
    about = [("template", data.template), ("ends of a turn", ends)]
    if data.template == "chat":
        about.append(("thinking", data.thinking))
    if date_mark(encoder):
        about.append(("date that the template sets", data.date))
    yield counts_table(found, about, f"{data.dataset}, {config.split} split")
    yield histogram(found)
    for example in spread(summary.examples, config.examples):
        yield Text(example.row.where or example.row.instruction[:40], style="bold underline")
        yield example_text(example, tokenizer, marks)
        yield ""
