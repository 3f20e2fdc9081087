"""What stands beside a conversation in a record: tools, switches of the template, and keys without which it is read wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gakd.data.messages import checked_json, decoded, nothing
from gakd.data.rows import DataError, shown

_MEDIA = ("images", "image", "videos", "video", "audio", "audios")
_PAIRS = ("chosen", "rejected", "rejected_response")
_TEMPLATE_OWN = ("messages", "tools", "tokenize", "chat_template", "add_generation_prompt")  # what gakd itself gives


def refuse_lost(record: Mapping[str, Any], where: str) -> None:
    """DataError for keys that change what the row means, and that are not read."""
    for key in _MEDIA:
        if not nothing(record.get(key)):
            raise DataError(f"{where}: the row has {key}, but text alone is trained on: remove the key or the row")
    for key in _PAIRS:
        if not nothing(record.get(key)):
            raise DataError(
                f"{where}: the row has the key {key}, so it is a preference pair: --columns response=chosen trains on the chosen "
                f"text (messages=chosen where that is a conversation), or remove the key"
            )
    if not nothing(weight := record.get("weight")) and weight != 1:
        raise DataError(f"{where}: the row has weight {shown(weight)}, but all rows count the same: remove the key")


def tools(record: Mapping[str, Any], where: str, arrow: bool) -> tuple[Mapping[str, Any], ...]:
    """What may be called; JSON text, of the list or of each tool, is read."""
    given = decoded(record.get("tools"))
    if nothing(given):
        return ()
    read = [decoded(tool) for tool in given] if isinstance(given, (list, tuple)) else []
    if not read or not all(isinstance(tool, Mapping) for tool in read):
        raise DataError(f"{where}: tools must be a list of objects, got {shown(given)}")
    return tuple(checked_json(tool, "tools", where, arrow) for tool in read)


def template_kwargs(record: Mapping[str, Any], where: str, arrow: bool) -> dict[str, Any]:
    """The row's own switches, `enable_thinking` among them."""
    given = decoded(record.get("chat_template_kwargs"))
    if not nothing(given) and not isinstance(given, Mapping):
        raise DataError(f"{where}: chat_template_kwargs must be an object, got {shown(given)}")
    kwargs = {} if nothing(given) else checked_json(given, "chat_template_kwargs", where, arrow)
    for key in _TEMPLATE_OWN:
        if key in kwargs:
            raise DataError(f"{where}: chat_template_kwargs holds {key!r}, which gakd itself gives: remove it")
    thinking = record.get("enable_thinking")
    if nothing(thinking):
        return kwargs
    if not isinstance(thinking, bool) or kwargs.get("enable_thinking", thinking) is not thinking:
        raise DataError(
            f"{where}: enable_thinking must be true or false, and the same in chat_template_kwargs, got {shown(thinking)}"
        )
    return kwargs | {"enable_thinking": thinking}
