"""A tokenizer's chat template, applied: the text that it makes of messages, or one line that says why it makes none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date as Date
from typing import Any, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from gakd.data.rows import DataError, Message, Row
from gakd.models.chat_templates import in_bounded_time

_CLOCK = re.compile(r"""strftime_now\s*\(\s*(['"])(.*?)\1\s*\)""")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # the names by which templates know a thought


class Style(NamedTuple):
    """How calls of tools are given to a template: templates differ in what they take."""

    null_content: bool = False  # a call without text has the content null, not ""
    json_arguments: bool = False  # arguments are JSON text, not an object


AS_GIVEN = Style()


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
        self.ending = re.compile(rf"(?:{self.special.pattern})\s*\Z")  # a control token that ends a text
        self._dated: dict[str, str] = {}
        self._knows_developers: bool | None = None

    def __call__(
        self,
        row: Row,
        messages: Sequence[Message],
        thinks: bool,
        generation_prompt: bool = False,
        style: Style = AS_GIVEN,
    ) -> str:
        """The text of messages, with the row's tools and switches."""
        shown = [self._shown(message, style) for message in messages]
        tools = list(map(dict, row.tools)) or None
        # Templates know the switch by either name; one that knows none ignores it.
        switches: dict[str, Any] = {"enable_thinking": thinks, "thinking": thinks} | dict(row.template_kwargs)
        try:
            with in_bounded_time():
                rendered, _ = render_jinja_template(
                    conversations=[shown],
                    tools=tools,  # type: ignore[arg-type]
                    chat_template=self._template(tools),
                    add_generation_prompt=generation_prompt,
                    **(self.tokenizer.special_tokens_map | switches),  # type: ignore[arg-type]
                )
        except TemplateSyntaxError as error:
            raise DataError(
                f"the chat template does not compile (line {error.lineno}: {error.message}): mend it, or use --template alpaca"
            ) from error
        except Exception as error:  # a template is somebody's program: it refuses by exceptions, and may have bugs
            reason = " ".join(str(error).split()) or type(error).__name__
            remedy = "change its roles" if type(error) is TemplateError else "change the row, or the template"
            raise DataError(
                f"{named(row)}: the chat template refuses this conversation ({reason}); {remedy}"
            ) from error
        return rendered[0]

    def _shown(self, message: Message, style: Style) -> Message:
        own = {name: value for name, value in message.items() if name != "weight"}
        own["content"] = message.get("content") or (
            "" if not style.null_content or not message.get("tool_calls") else None
        )
        if message["role"] == "developer" and not self._developers():
            own["role"] = "system"
        if thought := message.get("reasoning_content"):
            own |= dict.fromkeys(_THOUGHTS, thought)
        return with_json_arguments(own) if style.json_arguments else own

    def _developers(self) -> bool:
        """Whether the template sets what developers say; else they are the system."""
        if self._knows_developers is None:
            self._knows_developers = True  # while it is asked
            asked = Row("a")
            messages = [{"role": "developer", "content": "gakd-developer-mark"}, {"role": "user", "content": "a"}]
            try:
                self._knows_developers = "gakd-developer-mark" in self(asked, messages, False, generation_prompt=True)
            except DataError:
                self._knows_developers = False
        return self._knows_developers

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


def styles_of(messages: Sequence[Message]) -> list[Style]:
    """The styles in which a conversation is tried, one where it calls no tools."""
    calling = [message for message in messages if message.get("tool_calls")]
    if not calling:
        return [AS_GIVEN]
    nulls = (False, True) if any(not message.get("content") for message in calling) else (False,)
    return [Style(null, arguments) for null in nulls for arguments in (False, True)]


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


def with_json_arguments(message: Message) -> Message:
    """A message whose calls have their arguments as JSON text, as OpenAI writes them."""
    calls = [dict(call) for call in message.get("tool_calls") or ()]
    for call in calls:
        if isinstance(function := call.get("function"), Mapping) and not isinstance(function.get("arguments"), str):
            call["function"] = {**function, "arguments": json.dumps(function.get("arguments", {}), ensure_ascii=False)}
    return message | {"tool_calls": calls} if calls else message
