"""What a chat template makes of a conversation: the prompt, and all that it sets behind it, to the end of the turn.

A conversation is rendered with its response, and without it up to where the model goes on; what the first has and the second
has not is what is taught. What a template sets before and behind a response (`Frame`) is learned from one marker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from gakd.data.frames import Frame, learned_frame, parted
from gakd.data.rendering import Renderer, named, short
from gakd.data.rows import DataError, Message, Row, conversation, response_message
from gakd.data.thoughts import (
    Thinking,
    as_content,
    as_fields,
    has_thought,
    opened,
    without_thought,
    without_trailing_thought,
)

Template = Literal["chat", "alpaca", "none"]


class Turn(NamedTuple):
    """A prompt, and what is taught behind it: `before + text + behind`."""

    prompt: str
    before: str
    text: str
    behind: str
    verbatim: bool  # the text is the response's own: a control token that it spells out is text there

    @property
    def whole(self) -> str:
        return f"{self.prompt}{self.before}{self.text}{self.behind}"


class ChatTemplate:
    """A tokenizer's chat template, with the date and the thinking of a run.

    Errors are DataErrors of one line: a tokenizer without a template, a template that does not compile or that refuses a
    conversation, a prompt that is no beginning of its conversation, a response of which the template leaves something out.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, thinking: Thinking = "auto", date: str | None = None
    ) -> None:
        self.thinking, self._render = thinking, Renderer(tokenizer, date)
        self._frames: dict[bool, Frame] = {}

    def prompt(self, row: Row) -> str:
        """The text up to where the model goes on, thinking as the row's response does."""
        return self._render(row, conversation(row), self._thinks(row), generation_prompt=True)

    def turn(self, row: Row) -> Turn:
        """The row's prompt and response as the template sets them; of a prompt alone, an empty response."""
        if not row.responses:
            frame = self.frame()
            return Turn(self.prompt(row), frame.head, "", frame.tail + frame.added, verbatim=True)
        answer = response_message(row)
        if self.thinking == "off":
            answer = without_thought(answer)
        prompt = self.prompt(row)
        return (self._thought_turn if has_thought(answer) else self._turn)(row, prompt, answer)

    def turns(self, row: Row) -> list[Turn]:
        """One for each turn of the assistant that is trained, in their order."""
        messages = [*conversation(row), *([response_message(row)] if row.responses else [])]
        found = []
        for index, message in enumerate(messages):
            users = [place for place in range(index) if messages[place]["role"] == "user"]
            if message["role"] != "assistant" or message.get("weight") == 0 or not users:
                continue
            last = users[-1]
            asked = row._replace(
                instruction=messages[last]["content"], input="", history=tuple(messages[:last]),
                between=tuple(messages[last + 1 : index]), answer=message, responses=(message.get("content") or "",),
                finished=row.finished or index < len(messages) - 1,
            )  # fmt: skip
            found.append(self.turn(asked))
        return found

    def frame(self, thinks: bool = False) -> Frame:
        """What stands around a plain response, learned once."""
        if thinks not in self._frames:
            self._frames[thinks] = learned_frame(self._render, thinks)
        return self._frames[thinks]

    @property
    def special(self) -> re.Pattern[str]:
        """What matches the tokenizer's control tokens."""
        return self._render.special

    @property
    def date(self) -> str:
        """The date that the template may set."""
        return self._render.date.isoformat()

    @property
    def ends(self) -> list[str]:
        """Special tokens behind a response: at each of them the turn is over."""
        frame = self.frame()
        return self.special.findall(frame.tail + frame.added)

    def _thinks(self, row: Row) -> bool:
        if "enable_thinking" in row.template_kwargs:
            return bool(row.template_kwargs["enable_thinking"])
        if self.thinking != "auto":
            return self.thinking == "on"
        return bool(row.responses) and has_thought(response_message(row))

    def _turn(self, row: Row, prompt: str, answer: Message) -> Turn:
        """A response without a thought of its own."""
        thinks, content, calls = self._thinks(row), answer.get("content") or "", answer.get("tool_calls") or ()
        whole = self._render(row, [*conversation(row), answer], thinks)
        frame = self.frame(thinks)
        rest = frame.behind(whole, prompt)
        if rest is None and opened(prompt):
            raise DataError(
                f"{named(row)}: the chat template opens a thought in the prompt, and the response closes none: give the row "
                f"reasoning_content, or its response a thought that ends in </think>"
            )
        if rest is None:  # an empty thought behind the prompt, which the template does not set in a whole conversation
            rest = frame.behind(whole, without_trailing_thought(prompt))
        if rest is None:
            raise DataError(
                f"{named(row)}: the chat template sets the prompt otherwise beside its response: {parted(prompt, whole)}"
            )
        if not calls:
            for text in dict.fromkeys((content, content.strip(), content.lstrip(), content.rstrip())):
                if rest == f"{frame.head}{text}{frame.tail}":
                    return Turn(prompt, frame.head, text, frame.tail + frame.added, verbatim=True)
        return self._rendered(row, prompt, rest, [content.strip(), *map(_call_name, calls)], answer, frame)

    def _thought_turn(self, row: Row, prompt: str, answer: Message) -> Turn:
        """A response with one thought: as the template sets it, or, where it leaves thoughts out, as the model writes it."""
        thinks, fields = self._thinks(row), as_fields(answer)
        frame, thought = self.frame(thinks), fields["reasoning_content"].strip()
        wanted = [thought, (fields.get("content") or "").strip(), *map(_call_name, fields.get("tool_calls") or ())]
        attempts = [fields] if answer.get("reasoning_content") else [fields, answer]
        for attempt in attempts:
            whole = self._render(row, [*conversation(row), attempt], thinks)
            rest = frame.behind(whole, prompt)
            if rest is not None and all(part in rest for part in wanted) and _one_thought(prompt, rest):
                return self._rendered(row, prompt, rest, wanted, fields, frame)
        if fields.get("tool_calls") or not (opened(prompt) or not answer.get("reasoning_content")):
            raise DataError(
                f"{named(row)}: the chat template leaves the response's thought out: put it into the content as "
                f"<think>...</think>, or leave it out with --thinking off"
            )
        if without_trailing_thought(prompt) != prompt and not opened(prompt):
            raise DataError(
                f"{named(row)}: the prompt ends in a thought that is closed, and the response has another: take --thinking auto "
                f"or on, or leave the thought out with --thinking off"
            )
        text = as_content(fields, opened(prompt))
        self._refuse_control(row, text)
        return Turn(prompt, "", text, frame.tail + frame.added, verbatim=False)

    def _rendered(self, row: Row, prompt: str, rest: str, wanted: Sequence[str], answer: Message, frame: Frame) -> Turn:
        """A response that the template has set in its own way; DataError where a part of it is missing."""
        if missing := [part for part in wanted if part and part not in rest]:
            raise DataError(
                f"{named(row)}: the chat template leaves {short(missing[0])} of the response out, it sets {short(rest)}: "
                f"change the row, or the template"
            )
        self._refuse_control(row, *_texts(answer))
        ends = rest.endswith(frame.tail)
        text = rest[: len(rest) - len(frame.tail)] if ends else rest
        return Turn(prompt, "", text, (frame.tail if ends else "") + frame.added, verbatim=False)

    def _refuse_control(self, row: Row, *texts: str) -> None:
        """Beside a thought or a call, a control token of the template could not be told from one that is spelled out."""
        for text in texts:
            if found := self.special.search(text):
                raise DataError(
                    f"{named(row)}: its response spells out the control token {found[0]!r} beside a thought or a call: "
                    f"remove it, or the row"
                )


def _one_thought(prompt: str, rest: str) -> bool:
    """Whether a thought, where it is set in <think>, is opened and closed once, in the prompt or behind it."""
    begun = rest.count("<think>") + opened(prompt)
    return begun <= 1 and rest.count("</think>") == begun


def _call_name(call: Mapping[str, Any]) -> str:
    return str((call.get("function") or call).get("name", ""))


def _texts(answer: Message) -> list[str]:
    """All text that a message brings into the template."""
    calls = answer.get("tool_calls")
    return [answer.get("content") or "", answer.get("reasoning_content") or "", str(calls) if calls else ""]
