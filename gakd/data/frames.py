"""What a chat template sets around a response, a thought and a call, learned once from marked messages."""

from __future__ import annotations

import re
from typing import NamedTuple

from gakd.data.rendering import AS_GIVEN, Renderer, Style, short, styles_of
from gakd.data.rows import DataError, Message, Row
from gakd.data.thoughts import Tags, last_tag, through_tag, two_tags

_ASKED: Message = {"role": "user", "content": "gakd-question-mark"}
_TEXT, _THOUGHT, _NEXT = "gakd-response-mark", "gakd-thought-mark", "gakd-next-turn-mark"


class Frame(NamedTuple):
    """What stands around a response that is text alone."""

    head: str  # behind the generation prompt: the header of a channel, a space
    tail: str  # behind the response
    added: str = ""  # ends a turn that the template leaves open: what it puts before the next one, or the end of text
    beyond: str = ""  # what the template sets behind the turn, wished for or not: the next generation prompt
    skipped: str = ""  # what the template closes, in a whole conversation, of the empty thought that its prompt ends in

    def behind(self, whole: str, prompt: str, tags: Tags) -> str | None:
        """What a conversation has behind its prompt, to the end of the turn; None where the prompt is not its beginning.

        A generation prompt may end in a thought, opened or empty, that the template does not set in a whole conversation.
        """
        whole = whole.removesuffix(self.beyond)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        bare = tags.without(prompt)
        return whole[len(bare) :].removeprefix(self.skipped) if whole.startswith(bare) else None


def asked_like(row: Row) -> Row:
    """A question under the tools and switches of a row."""
    return Row(_ASKED["content"], where=row.where, tools=row.tools, template_kwargs=row.template_kwargs)


def learned_frame(render: Renderer, asked: Row, thinks: bool, tags: Tags) -> Frame:
    """The frame of a template. DataError where a prompt is no beginning of its conversation, or a response is left out."""
    answer = {"role": "assistant", "content": _TEXT}
    prompt = render(asked, [_ASKED], thinks, generation_prompt=True)
    whole = render(asked, [_ASKED, answer], thinks)
    rest = Frame("", "").behind(whole, prompt, tags)
    if rest is None:
        raise DataError(
            f"the chat template sets a prompt otherwise beside its response, so what is to be taught is not known: "
            f"{parted(prompt, whole)}. Use --template alpaca or none, or mend the template"
        )
    closing = re.match(rf"\s*{re.escape(tags.close)}\s*", rest) if tags.closed(prompt) else None
    skipped = closing[0] if closing else ""
    head, mark, tail = rest.removeprefix(skipped).partition(_TEXT)
    if not mark:
        raise DataError(f"the chat template leaves a response out, it sets {short(rest)}: mend the template")
    longer = _tried(render, asked, [_ASKED, answer, {"role": "user", "content": _NEXT}], thinks)
    beyond, following = "", longer.partition(_TEXT)[2].partition(_NEXT)[0]  # up to the user's next text
    if following and whole == render(asked, [_ASKED, answer], thinks, generation_prompt=True):
        # It heeds no wish for a generation prompt, and may set one behind every conversation.
        tail, beyond = _parted_from(render.special, tail, following)
    tail, header = _without_header(render, asked, tail)
    beyond = header + beyond
    if render.special.search(tail):
        return Frame(head, tail, "", beyond, skipped)
    found = render.special.match(following.lstrip())
    return Frame(head, tail, found[0] if found else str(render.tokenizer.eos_token), beyond, skipped)


def learned_tags(render: Renderer) -> Tags:
    """How a template opens and closes a thought; <think> and </think> where it sets none."""
    asked, plain = Row(_ASKED["content"]), {"role": "assistant", "content": _TEXT}
    whole = _tried(render, asked, [_ASKED, plain], True)
    for answer in (
        plain | {"reasoning_content": _THOUGHT},
        {"role": "assistant", "content": "", "reasoning_content": _THOUGHT, "tool_calls": [_call("gakd-call-mark")]},
    ):
        for style in styles_of([answer]):
            before, mark, after = _tried(render, asked, [_ASKED, answer], True, style=style).partition(_THOUGHT)
            closing = after.partition(_TEXT)[0] if _TEXT in after else through_tag(after)
            opening = _behind_tag(before, _shared(before, whole)) if mark else ""
            # In its text a thought is set as any other text, whatever the template knows of thoughts.
            if opening and last_tag(closing) is not None:
                return Tags(opening, closing, known=True)
    if found := _empty_thought(render, asked):
        return found
    # Of one that takes thoughts out of a text: else a text is text, and its own marks are what it says.
    in_text = plain | {"content": f"<think>\n{_THOUGHT}\n</think>\n\n{_TEXT}"}
    before, mark, after = _tried(render, asked, [_ASKED, in_text], True).partition(_THOUGHT)
    return Tags(_behind_tag(before, len(before)), after.partition(_TEXT)[0]) if mark and _TEXT in after else Tags()


def _empty_thought(render: Renderer, asked: Row) -> Tags | None:
    """The marks of the empty thought that a template sets before a plain answer, in the prompt or behind it."""
    plain = {"role": "assistant", "content": _TEXT}
    for thinks in (True, False):
        prompt = _tried(render, asked, [_ASKED], thinks, generation_prompt=True)
        whole = _tried(render, asked, [_ASKED, plain], thinks).partition(_TEXT)[0]
        in_prompt = _behind_tag(prompt, _shared(prompt, whole)) if not whole.startswith(prompt) else ""
        in_whole = whole[len(prompt) :] if whole.startswith(prompt) else ""
        for text, begun in ((in_prompt, ""), (in_whole, ""), (in_whole, prompt)):
            if begun and Tags().opened(begun) and Tags().close in text:
                return Tags(closing=text, known=True)
            if (parts := two_tags(text)) is None:
                continue
            # An empty thought in a prompt may leave out the line breaks that a thought has.
            usual = text == in_prompt and [part.strip() for part in parts] == ["<think>", "</think>"]
            return Tags(known=True) if usual else Tags(*parts, known=True)
    return None


def _shared(text: str, other: str) -> int:
    """How far two texts are the same."""
    return next(
        (i for i, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), min(len(text), len(other))
    )


def _behind_tag(text: str, shared: int) -> str:
    """What a text has of its own, from the mark on that begins it; its last mark where it has nothing of its own."""
    start = last_tag(text, shared) if shared < len(text) else last_tag(text)
    return "" if start is None else text[start:]


def learned_call_end(render: Renderer, asked: Row) -> str:
    """The control token that ends a turn of calls: its own, or what the template puts before a tool's answer; "" for none."""
    call = {"role": "assistant", "content": "", "tool_calls": [_call("gakd-call-mark")]}
    for style in styles_of([call]):
        whole = _tried(render, asked, [_ASKED, call], False, style=style)
        if "gakd-call-mark" not in whole:
            continue
        if own := render.ending.search(whole):
            return own[0].strip()
        longer = _tried(render, asked, [_ASKED, call, {"role": "tool", "content": _NEXT}], False, style=style)
        found = render.special.match(longer[len(whole) :].lstrip()) if longer.startswith(whole) else None
        return found[0] if found else ""
    return ""


def lost_part(render: Renderer, asked: Row, fields: Message, thinks: bool, style: Style) -> str | None:
    """Which part of a response a template leaves out, or sets more than once: by marks in the place of each; None for none."""
    calls = range(len(fields.get("tool_calls") or ()))
    marks = {f"call {index + 1}": f"gakd-call-{index}-mark" for index in calls}
    marks |= {f"the arguments of call {index + 1}": f"gakd-argument-{index}-mark" for index in calls}
    answer: Message = {"role": "assistant", "content": ""}
    if fields.get("content"):
        answer["content"] = marks["the text"] = _TEXT
    if fields.get("reasoning_content"):
        answer["reasoning_content"] = marks["the thought"] = _THOUGHT
    if calls:
        answer["tool_calls"] = [_call(f"gakd-call-{index}-mark", f"gakd-argument-{index}-mark") for index in calls]
    whole = _tried(render, asked, [_ASKED, answer], thinks, style=style)
    # Where it cannot set the marks at all, the row itself has shown what it does.
    return next((part for part, mark in marks.items() if whole.count(mark) != 1), None) if whole else None


def parted(prompt: str, whole: str) -> str:
    """Where a conversation ceases to be as its prompt, for messages."""
    place = next(
        (i for i, pair in enumerate(zip(prompt, whole, strict=False)) if pair[0] != pair[1]),
        min(len(prompt), len(whole)),
    )
    return f"at character {place} it has {short(whole[place:])} for {short(prompt[place:])}"


def _call(name: str, argument: str = "gakd-argument-mark") -> Message:
    return {"type": "function", "id": "gakd12345", "function": {"name": name, "arguments": {"value": argument}}}


def _tried(
    render: Renderer,
    asked: Row,
    messages: list[Message],
    thinks: bool,
    generation_prompt: bool = False,
    style: Style = AS_GIVEN,
) -> str:
    """A rendering, or "" where the template refuses it."""
    try:
        return render(asked, messages, thinks, generation_prompt, style)
    except DataError:
        return ""


def _without_header(render: Renderer, asked: Row, tail: str) -> tuple[str, str]:
    """What ends a turn, and the tokens behind it that begin the next one: such as stand before a conversation's first text."""
    system: Message = {"role": "system", "content": _NEXT}
    first = _tried(render, asked, [system, _ASKED], False) or _tried(render, asked, [_ASKED], False)
    begin = set(render.special.findall(re.split(f"{_NEXT}|{_ASKED['content']}", first)[0]))
    end = len(tail)
    while (own := render.ending.search(tail[:end])) and own[0].strip() in begin:
        end = own.start()
    return (tail[:end], tail[end:]) if render.special.search(tail[:end]) else (tail, "")


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
