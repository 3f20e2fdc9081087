"""What a chat template sets around a response, learned from one marker."""

from __future__ import annotations

import re
from typing import NamedTuple

from gakd.data.rendering import Renderer, short
from gakd.data.rows import DataError, Message, Row
from gakd.data.thoughts import without_trailing_thought

_MARK, _NEXT = "gakd-response-mark", "gakd-next-turn-mark"
_ASKED: Message = {"role": "user", "content": "gakd-question-mark"}


class Frame(NamedTuple):
    """What stands around a response that is text alone."""

    head: str  # behind the generation prompt: the header of a channel, a space
    tail: str  # behind the response
    added: str = ""  # ends a turn that the template leaves open: what it puts before the next one, or the end of text
    beyond: str = ""  # what the template sets behind the turn, wished for or not: the next generation prompt

    def behind(self, whole: str, prompt: str) -> str | None:
        """What a conversation has behind its prompt, to the end of the turn; None where the prompt is not its beginning."""
        return whole[len(prompt) :].removesuffix(self.beyond) if whole.startswith(prompt) else None


def learned_frame(render: Renderer, thinks: bool) -> Frame:
    """The frame of a template. DataError where a prompt is no beginning of its conversation, or a response is left out."""
    asked, answer = Row(_ASKED["content"]), {"role": "assistant", "content": _MARK}
    prompt = render(asked, [_ASKED], thinks, generation_prompt=True)
    whole = render(asked, [_ASKED, answer], thinks)
    rest = Frame("", "").behind(whole, prompt)
    rest = Frame("", "").behind(whole, without_trailing_thought(prompt)) if rest is None else rest
    if rest is None:
        raise DataError(
            f"the chat template sets a prompt otherwise beside its response, so what is to be taught is not known: "
            f"{parted(prompt, whole)}. Use --template alpaca or none, or mend the template"
        )
    head, mark, tail = rest.partition(_MARK)
    if not mark:
        raise DataError(f"the chat template leaves a response out, it sets {short(rest)}: mend the template")
    try:
        longer = render(asked, [_ASKED, answer, {"role": "user", "content": _NEXT}], thinks)
    except DataError:
        longer = ""
    beyond, following = "", longer.partition(_MARK)[2].partition(_NEXT)[0]  # up to the user's next text
    if whole == render(asked, [_ASKED, answer], thinks, generation_prompt=True) and following:
        # It heeds no wish for a generation prompt, and may set one behind every conversation.
        tail, beyond = _parted_from(render.special, tail, following)
    if render.special.search(tail):
        return Frame(head, tail, beyond=beyond)
    found = render.special.match(following.lstrip())
    return Frame(head, tail, found[0] if found else str(render.tokenizer.eos_token), beyond)


def parted(prompt: str, whole: str) -> str:
    """Where a conversation ceases to be as its prompt, for messages."""
    place = next(
        (i for i, pair in enumerate(zip(prompt, whole, strict=False)) if pair[0] != pair[1]),
        min(len(prompt), len(whole)),
    )
    return f"at character {place} it has {short(whole[place:])} for {short(prompt[place:])}"


def _parted_from(special: re.Pattern[str], tail: str, following: str) -> tuple[str, str]:
    """What stands behind a response whoever speaks next, and the role that the template sets there."""
    split = re.compile(f"({special.pattern})")
    parts, others = ([part for part in split.split(text) if part] for text in (tail, following))
    shared = 0
    while shared < min(len(parts), len(others)) and parts[shared] == others[shared]:
        shared += 1
    if shared < min(len(parts), len(others)) and not special.match(parts[shared]):
        shared -= 1  # the token that begins a role, which is spelled behind it
    return "".join(parts[:shared]), "".join(parts[shared:])
