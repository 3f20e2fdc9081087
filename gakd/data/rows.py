"""One instruction with its responses: what every format is read into, and what is written back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from gakd.errors import InputError

# `role` and `content`, and what templates read besides: reasoning_content, tool_calls, name, tool_call_id. `weight` 0 keeps an
# assistant's turn from being trained; no template sees it.
Message = dict[str, Any]


class Row(NamedTuple):
    """A prompt and what may answer it."""

    instruction: str  # the last user message; a prompt's side of a split goes by it
    input: str = ""  # context that belongs to the instruction
    responses: tuple[str, ...] = ()  # the first is trained on; all are references in evaluation; none in a prompt alone
    history: tuple[Message, ...] = ()  # earlier messages of a conversation, a system prompt included
    where: str = ""  # file:line, for messages
    finished: bool = True  # False where a model's response was cut: it then trains without an end
    between: tuple[Message, ...] = ()  # behind the instruction, before the response: calls of tools and what these said
    answer: Message | None = (
        None  # the response as a message, where it is more than its text: a thought, calls of tools
    )
    tools: tuple[Mapping[str, Any], ...] = ()  # what the template shows of the tools that may be called
    template_kwargs: Mapping[str, Any] = {}  # the row's own switches of the template, such as enable_thinking


class DataError(InputError):
    """Data that cannot be used as it is; one line: where, what was got, what was expected, what to do."""


def conversation(row: Row) -> list[Message]:
    """The messages up to the response; an input follows its instruction after an empty line."""
    content = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    return [*row.history, {"role": "user", "content": content}, *row.between]


def response_message(row: Row) -> Message:
    """The response that is trained on, as the template is given it."""
    return row.answer or {"role": "assistant", "content": row.responses[0]}


def record_of(row: Row) -> dict[str, Any]:
    """The record that `row_from` reads as this row, but for `where`; of a conversation with its first response."""
    output = row.responses[0] if len(row.responses) == 1 else list(row.responses)
    record: dict[str, Any] = {"instruction": row.instruction, "input": row.input}
    if row.history or row.between or row.answer:
        record = {"messages": [*conversation(row), *([response_message(row)] if row.responses else [])]}
    elif row.responses:
        record["output"] = output
    else:
        record = {"prompt": conversation(row)}
    if row.tools:
        record["tools"] = list(row.tools)
    if row.template_kwargs:
        record["chat_template_kwargs"] = dict(row.template_kwargs)
    return record if row.finished else record | {"finished": False}


def text_of(value: Any, what: str, where: str, may_be_empty: bool = False) -> str:
    """A text that can be trained on; DataError, naming `where` and `what`, for anything else."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {what} must be text, got {shown(value)}")
    if not may_be_empty and not value.strip():
        raise DataError(f"{where}: {what} is empty; give it a text or remove the row")
    if "\0" in value:
        raise DataError(f"{where}: {what} holds a NUL byte; remove it")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: {what} holds a lone surrogate, which is no character; remove it")
    return value


def reason_of(problem: str, where: str) -> str:
    """What is wrong with a row, without what is its own, so that rows of one fault count together."""
    return problem.removeprefix(f"{where}: ").split(",")[0].split("(")[0].strip()


def bad_rows_line(name: str, reasons: Counter[str], first: str) -> str:
    """What was left out of a source, and where the first such row stands."""
    listed = "; ".join(f"{count}x {reason}" for reason, count in reasons.most_common(4))
    return f"{name}: left out {reasons.total()} bad rows ({listed}), the first at {first}"


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
