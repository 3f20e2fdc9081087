"""`--columns`: which of a record's keys are read as what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gakd.data.rows import DataError, shown
from gakd.errors import InputError

# Keys of one meaning, of which a record is read by the first: naming one must not leave another in its way.
_PROMPT, _RESPONSE = ("instruction", "prompt"), ("response", "completion", "output")
_CONVERSATIONS = ("messages", "conversations", "conversation")
_SAME = (_PROMPT, _RESPONSE, _CONVERSATIONS, ("input", "context"), ("reasoning_content", "reasoning", "thinking"))
_ALONE = ("system", "history", "tools", "chat_template_kwargs", "enable_thinking", "finished")
_KNOWN = tuple(name for names in _SAME for name in names) + _ALONE


def parse_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,response=solution` as {what it is read as: the key in the data}; InputError where it is malformed."""
    columns: dict[str, str] = {}
    for part in text.split(",") if text is not None else []:
        new, equals, old = (piece.strip() for piece in part.partition("="))
        if not (new and equals and old):
            raise InputError(f"--columns {text}: expected NAME=KEY,..., such as prompt=question,response=solution")
        if new not in _KNOWN:
            raise InputError(f"--columns {text}: nothing is read as {new!r}; expected one of {', '.join(_KNOWN)}")
        if new in columns:
            raise InputError(f"--columns {text}: {new} is named twice; name one key for it")
        columns[new] = old
    return columns


def rename(record: Any, columns: Mapping[str, str], where: str = "") -> Any:
    """The record with its keys named as `columns` says, {what it is read as: its key}; DataError where a key is missing.

    A named key replaces what is read as the same: a prompt and a response that are named stand before messages. Who names
    `chosen` has decided on a preference pair, so that its other half is left out.
    """
    if not columns or not isinstance(record, Mapping):
        return record
    for new, old in columns.items():
        if old not in record:
            raise DataError(
                f"{where}{': ' if where else ''}no key {old!r} to read as {new}, only {shown(sorted(map(str, record)))}; "
                f"correct --columns"
            )
    replaced = set(columns.values())
    for names in _SAME:
        if columns.keys() & set(names):
            replaced |= set(names)
    if columns.keys() & {*_PROMPT, *_RESPONSE}:
        replaced |= set(_CONVERSATIONS)
    if "chosen" in columns.values():
        replaced |= {"rejected", "rejected_response"}
    kept = {key: value for key, value in record.items() if key not in replaced}
    return kept | {new: record[old] for new, old in columns.items()}
