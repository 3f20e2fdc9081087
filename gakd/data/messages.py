"""Messages of a conversation, from the shapes that people write them in to the one that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gakd.data.rows import DataError, Message, shown, text_of

# ShareGPT's names, Gemma's, and OpenAI's older ones, beside those that templates know.
_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "model", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response"), "tool"),
}
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# About a message, not of it: no model reads them.
_METADATA = {"id", "message_id", "index", "timestamp", "created", "model", "lang", "language", "tokens", "token_count"}
_READ = {"role", "from", "content", "value", "tool_calls", "function_call", "name", "tool_call_id", "weight", *THOUGHTS}


def read_messages(value: Any, what: str, where: str, arrow: bool = False) -> list[Message]:
    """A list of messages, or its JSON text; DataError, naming `where` and `what`, for anything else.

    A message is {role, content} or ShareGPT's {from, value}. What is kept besides: an assistant's `reasoning_content`,
    `tool_calls` and `weight` 0, and `name` and `tool_call_id`. A key that holds nothing counts as none; any other that
    would be lost is refused. `arrow` leaves nulls out of calls: a typed column fills every call's keys up to all keys.
    """
    messages = decoded(value)
    if not isinstance(messages, (list, tuple)) or not messages:
        raise DataError(f"{where}: {what} must be a list of at least one message, got {shown(value)}")
    return [_message(message, where, arrow) for message in messages]


def decoded(value: Any) -> Any:
    """What a JSON text of a list or an object holds; anything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value  # no JSON after all, which is then refused by the name of its field


def checked_json(value: Any, what: str, where: str, arrow: bool = False) -> Any:
    """A value whose texts can all be trained on; `arrow` leaves keys out whose value is null."""
    if isinstance(value, str):
        return text_of(value, what, where, may_be_empty=True)
    if isinstance(value, Mapping):
        kept = {key: entry for key, entry in value.items() if not (arrow and entry is None)}
        return {
            text_of(key, f"a key of {what}", where, may_be_empty=True): checked_json(entry, what, where, arrow)
            for key, entry in kept.items()
        }
    if isinstance(value, (list, tuple)):
        return [checked_json(entry, what, where, arrow) for entry in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise DataError(f"{where}: {what} must be JSON, got {shown(value)}")


def nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, tuple, Mapping)) and len(value) == 0)


def _message(message: Any, where: str, arrow: bool) -> Message:
    spoken = (message.get("role") or message.get("from")) if isinstance(message, Mapping) else None
    role = _ROLES.get(spoken) if isinstance(spoken, str) else None
    if role is None:
        raise DataError(
            f"{where}: a message is {{role: system, developer, user, assistant or tool, content: text}}, got {shown(message)}"
        )
    given = {key: entry for key, entry in message.items() if not nothing(entry) and key not in _METADATA}
    only = () if role == "assistant" else (*THOUGHTS, "tool_calls", "function_call")
    for key in given:
        if key not in _READ or key in only:
            raise DataError(
                f"{where}: a message of the {role} has the key {shown(key)}, which would be lost: remove it from the data"
            )
    if "content" in given and "value" in given:
        raise DataError(f"{where}: a message of the {role} has both content and value: remove one of them")
    content = _content(given.get("content", given.get("value")), where)
    read: Message = {"role": role, "content": content}
    calls = _calls(given, where, arrow)
    if spoken == "function_call":  # ShareGPT's: the message is the call
        calls += _calls({"tool_calls": [decoded(content)]}, where, arrow)
        read["content"] = ""
    thoughts = [text_of(given[key], f"a message's {key}", where) for key in THOUGHTS if key in given]
    if len(set(thoughts)) > 1:
        raise DataError(f"{where}: a message has several of {', '.join(THOUGHTS)}, which differ: keep one of them")
    if thoughts:
        read["reasoning_content"] = thoughts[0]
    if calls:
        read["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        if key in given:
            read[key] = text_of(given[key], f"a message's {key}", where)
    # A tool may have nothing to say, and so may an assistant that thinks or calls.
    text_of(read["content"], "a message's content", where, may_be_empty=bool(role == "tool" or thoughts or calls))
    return read | _weight(given, role, where)


def _content(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        for part in value:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise DataError(
                    f"{where}: a part of a message's content is {{type: text, text}}, got {shown(part)}: images and audio are "
                    f"not supported"
                )
        return "".join(part["text"] for part in value)
    return text_of(value, "a message's content", where, may_be_empty=True)


def _weight(given: Message, role: str, where: str) -> Message:
    """`weight` 0 of an assistant's message that is not to be trained; nothing where it says what is so without it."""
    weight = given.get("weight", int(role == "assistant"))
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight not in (0, 1):
        raise DataError(f"{where}: a message's weight must be 0 or 1, got {shown(weight)}")
    if role != "assistant" and weight:
        raise DataError(f"{where}: a message of the {role} has weight 1, but only an assistant's is trained: remove it")
    return {"weight": 0} if role == "assistant" and not weight else {}


def _calls(given: Message, where: str, arrow: bool) -> list[Message]:
    calls = decoded(given.get("tool_calls", []))
    if not isinstance(calls, (list, tuple)):
        raise DataError(f"{where}: tool_calls must be a list of calls, got {shown(calls)}")
    older = [given["function_call"]] if "function_call" in given else []
    return [_call(call, where, arrow) for call in (*calls, *older)]


def _call(value: Any, where: str, arrow: bool) -> Message:
    """{type, function: {name, arguments}, ...}: templates expect arguments as an object, OpenAI writes it as JSON."""
    call = checked_json(decoded(value), "a call of a tool", where, arrow)
    if isinstance(call, dict) and "function" not in call:
        about = {key: call.pop(key) for key in ("id", "type") if key in call}
        call = {"type": "function", **about, "function": call}
    function = decoded(call.get("function")) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise DataError(
            f"{where}: a call of a tool is {{type: function, function: {{name, arguments}}}}, got {shown(value)}"
        )
    arguments = decoded(function.get("arguments"))
    if isinstance(arguments, dict):
        function = function | {"arguments": checked_json(arguments, "a call's arguments", where, arrow)}
    return call | {"function": function}
