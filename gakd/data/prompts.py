"""Rows to prompts and what is taught behind them: by the tokenizer's chat template, the paper's Alpaca-style text, or none."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from gakd.data.config import Template, Thinking
from gakd.data.rows import DataError, Row, conversation
from gakd.data.templates import ChatTemplate, Turn

# MiniLLM's text, which the paper's release takes over.
ALPACA = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)
ALPACA_PAIRED = ", paired with an input that provides further context"

Setter = Callable[[Row], Turn]


def render(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    template: Template = "chat",
    thinking: Thinking = "auto",
    date: str | None = None,
) -> str:
    """The prompt's text up to where the model goes on; it thinks where the row's response does, or as `thinking` says."""
    if template == "chat":
        return ChatTemplate(tokenizer, thinking, date).prompt(row)
    return plain_prompt(row, template)


def plain_prompt(row: Row, template: Template) -> str:
    """The paper's text of one instruction, or the instruction itself; DataError for what only a chat template holds."""
    for part, there in (
        ("a conversation", row.history or row.between), ("tools", row.tools), ("a thought or calls of tools", row.answer)
    ):  # fmt: skip
        if there:
            raise DataError(
                f"{row.where}: the {template} template holds one instruction, not {part}; use --template chat"
            )
    if template == "none":
        return str(conversation(row)[-1]["content"])
    given = f"### Input:\n{row.input}\n\n" if row.input else ""
    return ALPACA.format(paired=ALPACA_PAIRED if row.input else "", instruction=row.instruction, input=given)


def plain_turn(row: Row, template: Template, end_of_text: str) -> Turn:
    """A prompt without a chat template, its response, and the end of text."""
    text = row.responses[0] if row.responses else ""
    return Turn(plain_prompt(row, template), "", text, end_of_text, verbatim=True)
