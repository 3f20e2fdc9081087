"""What a chat template makes of a conversation: the prompt, and all that it sets behind it, to the end of the turn.

A conversation is rendered with its response, and without it up to where the model goes on; what the first has and the second
has not is what is taught. What a template sets around a response is learned from marks (`frames`), and compared in every row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from gakd.data.config import Thinking
from gakd.data.frames import Frame, asked_like, learned_call_end, learned_frame, learned_tags, lost_part, parted
from gakd.data.rendering import Renderer, Style, named, short, styles_of
from gakd.data.rows import DataError, Message, Row, conversation, response_message
from gakd.data.thoughts import Tags, as_fields, has_thought, without_thought


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
    conversation, a prompt that is no beginning of its conversation, a prompt or a response of which a part is left out.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, thinking: Thinking = "auto", date: str | None = None
    ) -> None:
        self.thinking, self._render = thinking, Renderer(tokenizer, date)
        self._tags: Tags | None = None
        self._frames: dict[tuple[bool, bool, str], Frame] = {}
        self._lost: dict[tuple[Any, ...], str | None] = {}
        self._call_ends: dict[tuple[bool, str], str] = {}

    def prompt(self, row: Row) -> str:
        """The text up to where the model goes on, thinking as the row's response does."""
        return self._first_that_holds(row, conversation(row), lambda style: self._prompt(row, style))

    def turn(self, row: Row) -> Turn:
        """The row's prompt and response as the template sets them; of a prompt alone, an empty response."""
        if not row.responses:
            frame = self.frame(row, self._thinks(row))
            return Turn(self.prompt(row), frame.head, "", frame.tail + frame.added, verbatim=True)
        answer = response_message(row)
        if self.thinking == "off":
            answer = without_thought(answer)
        set_turn = self._thought_turn if has_thought(answer) else self._plain_turn
        return self._first_that_holds(row, [*conversation(row), answer], lambda style: set_turn(row, answer, style))

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

    def frame(self, row: Row | None = None, thinks: bool = False) -> Frame:
        """What stands around a plain response, learned once under the tools and switches of a row."""
        asked = asked_like(row or Row(""))
        key = (thinks, *_switches(asked))
        if key not in self._frames:
            self._frames[key] = learned_frame(self._render, asked, thinks, self.tags)
        return self._frames[key]

    @property
    def tags(self) -> Tags:
        """How the template opens and closes a thought."""
        if self._tags is None:
            self._tags = learned_tags(self._render)
        return self._tags

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
        """Control tokens behind a response or a call: at each of them the turn is over."""
        frame = self.frame()
        found = [*self.special.findall(frame.tail + frame.added), self._call_end(Row(""))]
        # Such as what closes a channel, and not the turn.
        within = f"{frame.head}{self.tags.opening}{self.tags.closing}"
        return [token for token in dict.fromkeys(found) if token and token not in within]

    def _first_that_holds(self, row: Row, messages: list[Message], make: Any) -> Any:
        """What is made of a row in the first style of calls that leaves nothing out; else the first style's error."""
        refused: list[DataError] = []
        for style in styles_of(messages):
            try:
                return make(style)
            except DataError as error:
                refused.append(error)
        raise refused[0]

    def _prompt(self, row: Row, style: Style) -> str:
        messages = conversation(row)
        prompt = self._render(row, messages, self._thinks(row), generation_prompt=True, style=style)
        for message in messages:
            content = as_fields(message).get("content") if message["role"] == "assistant" else message.get("content")
            calls = [_call_name(call) for call in message.get("tool_calls") or ()]
            for part in filter(None, [(content or "").strip(), *calls]):
                if part not in prompt and json.dumps(part)[1:-1] not in prompt and _escaped(part) not in prompt:
                    raise DataError(
                        f"{named(row)}: the chat template leaves {short(part)} of the {message['role']} out of the prompt: "
                        f"change the row, or the template"
                    )
        for tool in row.tools:
            if (name := _call_name(tool)) and name not in prompt:
                raise DataError(
                    f"{named(row)}: the chat template does not show the tool {name!r} in the prompt: leave tools out, or take a "
                    f"template that has them"
                )
        return prompt

    def _thinks(self, row: Row) -> bool:
        if "enable_thinking" in row.template_kwargs:
            return bool(row.template_kwargs["enable_thinking"])
        if self.thinking != "auto":
            return self.thinking == "on"
        return bool(row.responses) and has_thought(response_message(row))

    def _plain_turn(self, row: Row, answer: Message, style: Style) -> Turn:
        """A response without a thought of its own."""
        prompt, thinks, tags = self._prompt(row, style), self._thinks(row), self.tags
        whole = self._render(row, [*conversation(row), answer], thinks, style=style)
        frame, content = self.frame(row, thinks), answer.get("content") or ""
        rest = frame.behind(whole, prompt, tags)
        if rest is None:
            raise DataError(
                f"{named(row)}: the chat template sets the prompt otherwise beside its response: {parted(prompt, whole)}"
            )
        before = ""
        if tags.opened(prompt) and tags.close not in (rest.partition(content.strip())[0] if content.strip() else rest):
            if self.thinking != "off":
                raise DataError(
                    f"{named(row)}: the chat template opens a thought in the prompt, and the response closes none: give the row "
                    f"reasoning_content, or its response a thought that ends in </think>; --thinking off teaches to think nothing"
                )
            before = tags.closing
        if not answer.get("tool_calls"):
            for text in dict.fromkeys((content, content.strip(), content.lstrip(), content.rstrip())):
                if rest == f"{frame.head}{text}{frame.tail}":
                    return Turn(prompt, before + frame.head, text, frame.tail + frame.added, verbatim=True)
        return self._rendered(row, prompt, before, rest, answer, style)

    def _thought_turn(self, row: Row, answer: Message, style: Style) -> Turn:
        """A response with one thought: as the template sets it, or, where it leaves thoughts out, as the model writes it."""
        prompt, thinks, tags = self._prompt(row, style), self._thinks(row), self.tags
        fields = as_fields(answer)
        if tags.closed(prompt):
            raise DataError(
                f"{named(row)}: the prompt ends in a thought that is closed, and the response has another: take --thinking auto "
                f"or on, or leave the thought out with --thinking off"
            )
        lost = self._lost_part(row, fields, thinks, style)
        whole = self._render(row, [*conversation(row), fields], thinks, style=style)
        if lost is None and whole.startswith(prompt):
            rest = self.frame(row, thinks).behind(whole, prompt, tags) or ""
            if not (tags.opened(prompt) and rest.lstrip().startswith(tags.opening.strip())):
                return self._rendered(row, prompt, "", rest, fields, style)
        builds = tags.known or tags.opened(prompt)
        if fields.get("tool_calls") or (answer.get("reasoning_content") and not builds):
            raise DataError(
                f"{named(row)}: the chat template leaves {lost or 'the thought'} of the response out: put a thought into the "
                f"content as <think>...</think>, or leave it out with --thinking off"
            )
        if not builds:  # a template without thoughts sets one as any other text
            return self._plain_turn(row, answer, style)
        frame = self.frame(row, thinks)
        text = tags.written(fields, prompt, self.frame(row, thinks=False).head)
        self._refuse_control(row, fields)
        return Turn(prompt, "", text, frame.tail + frame.added, verbatim=False)

    def _rendered(self, row: Row, prompt: str, before: str, rest: str, answer: Message, style: Style) -> Turn:
        """A response that the template has set in its own way; DataError where a part of it is missing, or ends the turn."""
        frame, parts = self.frame(row, self._thinks(row)), [answer.get("reasoning_content"), answer.get("content")]
        missing = next((short(part.strip()) for part in parts if part and part.strip() not in rest), None)
        if missing := missing or self._lost_part(row, answer, self._thinks(row), style):
            raise DataError(
                f"{named(row)}: the chat template leaves {missing} of the response out, it sets {short(rest)}: change the row, "
                f"or the template"
            )
        self._refuse_control(row, answer)
        own = self._render.ending.search(rest)
        tail = frame.tail if self.special.search(frame.tail) and rest.endswith(frame.tail) else own[0] if own else ""
        text = rest[: len(rest) - len(tail)]
        if early := next((end for end in self.ends if end in text), None):
            raise DataError(
                f"{named(row)}: the chat template sets {early!r}, which ends a turn, within the response: change the row, or the "
                f"template"
            )
        added = "" if tail else (self._call_end(row) if answer.get("tool_calls") else "") or frame.added
        return Turn(prompt, before, text, tail + added, verbatim=False)

    def _lost_part(self, row: Row, fields: Message, thinks: bool, style: Style) -> str | None:
        asked, calls = asked_like(row), len(fields.get("tool_calls") or ())
        parts = bool(fields.get("content")), bool(fields.get("reasoning_content")), calls
        shape = (*parts, thinks, style, *_switches(asked))
        if shape not in self._lost:
            self._lost[shape] = lost_part(self._render, asked, fields, thinks, style)
        return self._lost[shape]

    def _call_end(self, row: Row) -> str:
        asked = asked_like(row)
        key = _switches(asked)
        if key not in self._call_ends:
            self._call_ends[key] = learned_call_end(self._render, asked)
        return self._call_ends[key]

    def _refuse_control(self, row: Row, answer: Message) -> None:
        """Beside a thought or a call, a control token of the template could not be told from one that is spelled out."""
        calls = answer.get("tool_calls")
        for text in (answer.get("content") or "", answer.get("reasoning_content") or "", str(calls) if calls else ""):
            if found := self.special.search(text):
                raise DataError(
                    f"{named(row)}: its response spells out the control token {found[0]!r} beside a thought or a call: "
                    f"remove it, or the row"
                )


def _switches(row: Row) -> tuple[bool, str]:
    """What of a row decides how its template sets a turn."""
    return bool(row.tools), json.dumps(row.template_kwargs, sort_keys=True, default=str)


def _call_name(call: Mapping[str, Any]) -> str:
    function = call.get("function")
    return str((function if isinstance(function, Mapping) else call).get("name", ""))


def _escaped(text: str) -> str:
    """A text as templates escape it in JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
