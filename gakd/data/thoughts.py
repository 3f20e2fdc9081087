"""A response's thought: where a row has it, and the marks by which a template sets it."""

from __future__ import annotations

import re
from typing import NamedTuple

from gakd.data.rows import Message

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


class Tags(NamedTuple):
    """What a model writes before a thought, and between it and its answer."""

    opening: str = "<think>\n"
    closing: str = "\n</think>\n\n"
    known: bool = False  # the template sets thoughts so, if not in every conversation

    @property
    def close(self) -> str:
        """The mark that closes a thought, without what stands around it."""
        found = _TAG.search(self.closing)
        return found[0] if found else self.closing.strip()

    def opened(self, prompt: str) -> bool:
        """Whether a prompt ends in a thought that it opens."""
        return prompt.rstrip().endswith(self.opening.strip())

    def closed(self, prompt: str) -> bool:
        """Whether a prompt ends in an empty thought."""
        return self.without(prompt) != prompt and not self.opened(prompt)

    def without(self, prompt: str) -> str:
        """A prompt without the thought, opened or empty, that it ends in."""
        opening, close = re.escape(self.opening.strip()), re.escape(self.close)
        tail = prompt[-len(self.opening + self.closing) - 40 :]  # where it would be: a prompt may be long
        return prompt[: len(prompt) - len(tail)] + re.sub(rf"{opening}\s*({close}\s*)?\Z", "", tail)

    def written(self, fields: Message, prompt: str, head: str) -> str:
        """Thought and answer as a model writes them behind the prompt; `head` stands before a plain answer."""
        begin = "" if self.opened(prompt) else self.opening
        channel = "" if self.close in head or head in self.closing else head
        return f"{begin}{fields['reasoning_content'].strip()}{self.closing}{channel}{(fields.get('content') or '').lstrip()}"


def last_tag(text: str, before: int | None = None) -> int | None:
    """Where the last mark of a text begins, of those that begin no later than at `before`."""
    found = [match.start() for match in _TAG.finditer(text) if before is None or match.start() <= before]
    return found[-1] if found else None


def through_tag(text: str) -> str:
    """The beginning of a text, up to the end of its first mark."""
    found = _TAG.search(text)
    return text[: found.end()] if found else ""


def two_tags(text: str) -> tuple[str, str] | None:
    """A text that is two marks and nothing else, with the spaces behind each."""
    found = re.fullmatch(rf"\s*((?:{_TAG.pattern})\s*)((?:{_TAG.pattern})\s*)", text)
    return (found[1], found[2]) if found else None


def has_thought(answer: Message) -> bool:
    """Whether a response thinks; an empty thought is none."""
    if answer.get("reasoning_content"):
        return True
    found = _THOUGHT.match(answer.get("content") or "")
    return found is not None and bool(found[1].strip())


def as_fields(answer: Message) -> Message:
    """The response with its thought in `reasoning_content` and apart from its text."""
    found = _THOUGHT.match(answer.get("content") or "")
    if answer.get("reasoning_content") or found is None:
        return answer
    return answer | {"reasoning_content": found[1].strip("\n"), "content": found[2].lstrip("\n")}


def without_thought(answer: Message) -> Message:
    fields = as_fields(answer)
    return {name: value for name, value in fields.items() if name != "reasoning_content"}
