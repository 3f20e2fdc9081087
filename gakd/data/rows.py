"""One instruction with its responses, and how it is read from the formats people have, refusing what is malformed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

from gakd.errors import InputError


class Message(TypedDict):
    role: str
    content: str


class Row(NamedTuple):
    """A prompt and what may answer it."""

    instruction: str  # the last user message
    input: str = ""  # context that belongs to the instruction
    responses: tuple[str, ...] = ()  # the first is trained on; all are references in evaluation
    history: tuple[Message, ...] = ()  # earlier messages of a conversation, a system prompt included
    where: str = ""  # file:line, for messages
    finished: bool = True  # False where a model's response was cut: it then trains without an end


class DataError(InputError):
    """Data that cannot be used as it is; one line: where, what was got, what was expected, what to do."""


_ROLES = ("system", "user", "assistant", "tool")
_FORMATS = "{instruction, input?, output}, {prompt, response} or {messages: [{role, content}, ...]}"


def row_from(record: Any, where: str) -> Row:
    """Read a record of one of the accepted formats; DataError, naming `where`, for anything else.

    Formats: {instruction, input? or context?, output or response}, {prompt, response or completion or output}, and
    {messages: [{role, content}, ...]} ending with the assistant. A response may be a list: several references. An input
    that is null or empty counts as none; one beside a prompt that does not hold it is refused, since it would be lost.
    `finished: false`, which recipes/tools/generate.py writes for a response that was cut, keeps the end-of-text token off
    it. Other keys are ignored.
    """
    if not isinstance(record, Mapping):
        raise DataError(
            f"{where}: a row is an object, got {type(record).__name__}; expected one JSON object a line, {_FORMATS}"
        )
    if not isinstance(finished := record.get("finished", True), bool):
        raise DataError(
            f"{where}: finished says whether the response has its end, true or false, got {_shown(finished)}"
        )
    if "messages" in record:
        return _conversation(record["messages"], where)._replace(finished=finished)
    if "instruction" in record:
        instruction, given = record["instruction"], _input(record)
        response = _first(record, ("output", "response"), where)
    elif "prompt" in record:
        instruction, given = _prompt(record, where)
        response = _first(record, ("response", "completion", "output"), where)
    else:
        raise DataError(f"{where}: no known format in keys {_shown(sorted(map(str, record)))}; expected {_FORMATS}")
    text = _text(instruction, "the instruction", where)
    context = _text(given, "the input", where, may_be_empty=True)
    return Row(text, context, _responses(response, where), where=where, finished=finished)


def record_of(row: Row) -> dict[str, Any]:
    """The record that `row_from` reads as this row, but for `where`; of a conversation with its first response."""
    turns = [{"role": "user", "content": row.instruction}, {"role": "assistant", "content": row.responses[0]}]
    output = row.responses[0] if len(row.responses) == 1 else list(row.responses)
    whole = {"instruction": row.instruction, "input": row.input, "output": output}
    record: dict[str, Any] = {"messages": [*row.history, *turns]} if row.history else whole
    return record if row.finished else record | {"finished": False}


def _input(record: Mapping[str, Any]) -> Any:
    """What the instruction is about; empty where there is nothing."""
    return next((record[key] for key in ("input", "context") if record.get(key) not in (None, "")), "")


def _prompt(record: Mapping[str, Any], where: str) -> tuple[str, str]:
    prompt, beside = _text(record["prompt"], "the instruction", where), _input(record)
    if not isinstance(beside, str) or beside not in prompt:
        raise DataError(
            f"{where}: the prompt does not hold the input beside it, {_shown(beside)}: name the prompt 'instruction', so "
            f"that both are read, or remove the input"
        )
    return unwrap_alpaca(prompt)


def unwrap_alpaca(prompt: str) -> tuple[str, str]:
    """Instruction and input of a prompt already set in the Alpaca template; any other prompt as it is."""
    opening, mark, rest = prompt.partition("### Instruction:\n")
    if not mark or not prompt.rstrip().endswith("### Response:"):
        return prompt, ""
    if opening.strip() and not opening.lstrip().startswith("Below"):  # words of its own, which would be lost
        return prompt, ""
    body = rest.rstrip().removesuffix("### Response:").strip()
    instruction, _, context = body.partition("\n\n### Input:\n")
    return instruction.strip(), context.strip()


def _conversation(messages: Any, where: str) -> Row:
    if not isinstance(messages, (list, tuple)) or len(messages) < 2:
        raise DataError(f"{where}: messages must be a list of at least two messages, got {_shown(messages)}")
    read: list[Message] = []
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise DataError(
                f"{where}: a message is {{role: system, user, assistant or tool, content: text}}, got {_shown(message)}"
            )
        read.append({"role": message["role"], "content": _text(message.get("content"), "a message's content", where)})
    if read[-1]["role"] != "assistant" or read[-2]["role"] != "user":
        roles = [message["role"] for message in read[-2:]]
        raise DataError(
            f"{where}: a conversation must end with a user's message and the assistant's response, got last roles {roles}"
        )
    return Row(read[-2]["content"], "", (read[-1]["content"],), tuple(read[:-2]), where)


def _first(record: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Any:
    for key in keys:
        if key in record:
            return record[key]
    raise DataError(f"{where}: no response in keys {_shown(sorted(map(str, record)))}; expected {' or '.join(keys)}")


def _responses(value: Any, where: str) -> tuple[str, ...]:
    texts = value if isinstance(value, (list, tuple)) else [value]
    if not texts:
        raise DataError(f"{where}: the response is an empty list; expected at least one text")
    return tuple(_text(text, "the response", where) for text in texts)


def _text(value: Any, what: str, where: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {what} must be text, got {_shown(value)}")
    if not may_be_empty and not value.strip():
        raise DataError(f"{where}: {what} is empty; give it a text or remove the row")
    if "\0" in value:
        raise DataError(f"{where}: {what} holds a NUL byte; remove it")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: {what} holds a lone surrogate, which is no character; remove it")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
