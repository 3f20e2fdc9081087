"""A tokenizer's chat template, applied: the text that it makes of messages, or one line that says why it makes none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date as Date
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from gakd.data.rows import DataError, Message, Row

_CLOCK = re.compile(r"""strftime_now\s*\(\s*(['"])(.*?)\1\s*\)""")


class Renderer:
    """Messages to text, on one date. DataError where a tokenizer has no template, or one that refuses or does not compile."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date: str | None = None) -> None:
        if tokenizer.chat_template is None:
            raise DataError(
                "this tokenizer has no chat template: use --template alpaca or none, or an instruction-tuned model"
            )
        self.tokenizer = tokenizer
        self.date = Date.today() if date is None else Date.fromisoformat(date)
        self.special = special_pattern(tokenizer)
        self._dated: dict[str, str] = {}

    def __call__(self, row: Row, messages: Sequence[Message], thinks: bool, generation_prompt: bool = False) -> str:
        """The text of messages, with the row's tools and switches."""
        try:
            try:
                return self._applied(row, messages, thinks, generation_prompt)
            except Exception:
                if not any(message.get("tool_calls") for message in messages):
                    raise
                # Most templates take a call's arguments as an object, some as JSON.
                return self._applied(
                    row, [_with_json_arguments(message) for message in messages], thinks, generation_prompt
                )
        except TemplateSyntaxError as error:
            raise DataError(
                f"the chat template does not compile (line {error.lineno}: {error.message}): mend it, or use --template alpaca"
            ) from error
        except Exception as error:  # a template is somebody's program: it refuses by exceptions, and may have bugs
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{named(row)}: the chat template refuses this conversation ({reason}); change its roles"
            ) from error

    def _template(self, tools: Any) -> str:
        """The template's text, with this date in place of the clock."""
        text = str(self.tokenizer.get_chat_template(tools=tools))
        if text not in self._dated:
            dated = _CLOCK.sub(lambda found: repr(self.date.strftime(found[2])), text)
            if re.search(r"strftime_now\s*\(", dated):
                raise ValueError(
                    "it asks the clock by a format that it makes up, so that it cannot be held to one date"
                )
            self._dated[text] = dated
        return self._dated[text]

    def _applied(self, row: Row, messages: Sequence[Message], thinks: bool, generation_prompt: bool) -> str:
        shown: Any = [
            {name: value for name, value in message.items() if name != "weight"}
            | {"content": message.get("content") or ""}
            for message in messages
        ]
        # Templates know the switch by either name; one that knows none ignores it.
        tools = list(map(dict, row.tools)) or None
        switches: dict[str, Any] = {"enable_thinking": thinks, "thinking": thinks} | dict(row.template_kwargs)
        return str(
            self.tokenizer.apply_chat_template(
                shown,
                chat_template=self._template(tools),
                tools=tools,  # type: ignore[arg-type]
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **switches,
            )
        )


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What matches a control token spelled out in a text."""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    names = {str(token) for token in tokenizer.all_special_tokens}
    names |= {token.content for token in added.values() if token.special}
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")


def named(row: Row) -> str:
    """Where a row stands, for messages."""
    return repr(row.where or row.instruction[:40])


def short(text: str) -> str:
    """The beginning of a text, for messages."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _with_json_arguments(message: Message) -> Message:
    calls = [dict(call) for call in message.get("tool_calls") or ()]
    for call in calls:
        if isinstance(function := call.get("function"), Mapping):
            call["function"] = {**function, "arguments": json.dumps(function.get("arguments", {}), ensure_ascii=False)}
    return message | {"tool_calls": calls} if calls else message
