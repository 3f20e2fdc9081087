"""How a record is read into a row, from the formats people have, refusing what is malformed or would be lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gakd.data.beside import refuse_lost, template_kwargs, tools
from gakd.data.conversations import Untrained, conversation_row, prompt_row, with_response
from gakd.data.messages import THOUGHTS, decoded, nothing, read_messages
from gakd.data.rows import DataError, Message, Row, shown, text_of

_FORMATS = "{instruction, input?, output}, {prompt, response} or {messages: [{role, content}, ...]}"
_CONVERSATIONS = ("messages", "conversations", "conversation")


def row_from(record: Any, where: str, arrow: bool = False, may_be_prompt: bool = False) -> Row:
    """Read a record of one of the accepted formats; DataError, naming `where`, for anything else.

    Formats: {instruction, input? or context?, output or response}, {prompt, response or completion or output}, and
    {messages or conversations: [...]}; `gakd.data.messages` says what a message is. A prompt may be messages, a response a
    message, or a list of texts: several references. Beside them: `system`, `history` (pairs of question and answer),
    `tools`, `chat_template_kwargs`, `enable_thinking`, `reasoning_content`, and `finished: false`, which
    recipes/tools/generate.py writes for a response that was cut, to keep the end-of-text token off it. An input that is
    null or empty counts as none; one beside a prompt that does not hold it is refused, since it would be lost. Images,
    audio and preference pairs are refused; other keys are ignored. `arrow` says that the record is of a typed table, whose
    nulls inside tools and calls mean absent keys. `may_be_prompt` takes a record without a response as a prompt alone.
    """
    try:
        return _row(record, where, arrow, may_be_prompt)
    except RecursionError:  # JSON may be nested as deep as Python's own stack
        raise DataError(f"{where}: nested too deep to be read; expected one of {_FORMATS}") from None


def unwrap_alpaca(prompt: str) -> tuple[str, str]:
    """Instruction and input of a prompt already set in the Alpaca template; any other prompt as it is."""
    opening, mark, rest = prompt.partition("### Instruction:\n")
    if not mark or not prompt.rstrip().endswith("### Response:"):
        return prompt, ""
    if opening.strip() and not opening.lstrip().startswith("Below"):  # words of its own, which would be lost
        return prompt, ""
    body = rest.rstrip().removesuffix("### Response:").strip()
    instruction, _, context = body.partition("\n\n### Input:\n")
    return instruction.strip(), context.strip()


def _row(record: Any, where: str, arrow: bool, may_be_prompt: bool) -> Row:
    if not isinstance(record, Mapping):
        raise DataError(
            f"{where}: a row is an object, got {type(record).__name__}; expected one JSON object a line, {_FORMATS}"
        )
    finished = record.get("finished", True)
    finished = True if arrow and finished is None else finished
    if not isinstance(finished, bool):
        raise DataError(
            f"{where}: finished says whether the response has its end, true or false, got {shown(finished)}"
        )
    refuse_lost(record, where)
    form = _first(record, (*_CONVERSATIONS, "instruction", "prompt"))
    if form is None:
        raise DataError(f"{where}: no known format in keys {shown(sorted(map(str, record)))}; expected {_FORMATS}")
    if form in _CONVERSATIONS:
        messages = read_messages(record[form], form, where, arrow)
        row = conversation_row(_with_system(messages, record, where), form, where, may_be_prompt)
    else:
        keys = ("output", "response") if form == "instruction" else ("response", "completion", "output")
        prompt = _instruction(record, where) if form == "instruction" else _prompt(record, where, arrow)
        row = _answered(prompt, record, keys, where, arrow, may_be_prompt)
    return row._replace(
        where=where,
        finished=finished,
        tools=tools(record, where, arrow),
        template_kwargs=template_kwargs(record, where, arrow),
    )


def _first(record: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of the keys that holds something, else the first that is there."""
    present = [key for key in keys if key in record]
    return next((key for key in present if not nothing(record[key])), present[0] if present else None)


def _answered(
    row: Row, record: Mapping[str, Any], keys: tuple[str, ...], where: str, arrow: bool, may_be_prompt: bool
) -> Row:
    key = _first(record, keys)
    if may_be_prompt and (key is None or nothing(record[key])):
        return row
    if key is None:
        names = shown(sorted(map(str, record)))
        raise DataError(f"{where}: no response in keys {names}; expected {' or '.join(keys)}")
    value = record[key]
    texts = value if isinstance(value, (list, tuple)) else [value]
    if not texts:
        raise DataError(f"{where}: the response is an empty list; expected at least one text")
    if isinstance(texts[0], Mapping):
        return with_response(row, _only_message(texts, where, arrow))
    row = row._replace(responses=tuple(text_of(text, "the response", where) for text in texts))
    thought = _first(record, THOUGHTS)
    if thought is None or nothing(record[thought]):
        return row
    reasoning = text_of(record[thought], thought, where)
    answer = {"role": "assistant", "content": row.responses[0], "reasoning_content": reasoning}
    return row._replace(answer=answer)


def _only_message(value: Sequence[Any], where: str, arrow: bool) -> Message:
    messages = read_messages(value, "the response", where, arrow)
    if [message["role"] for message in messages] != ["assistant"]:
        raise DataError(
            f"{where}: the response must be text or one message of the assistant, got {shown(value)}; give a whole "
            f"conversation as messages"
        )
    if messages[0].get("weight") == 0:
        raise Untrained(f"{where}: the response has weight 0, so nothing is trained; remove the row")
    return messages[0]


def _instruction(record: Mapping[str, Any], where: str) -> Row:
    text = text_of(record["instruction"], "the instruction", where)
    return Row(text, text_of(_input(record), "the input", where, may_be_empty=True), history=_before(record, where))


def _prompt(record: Mapping[str, Any], where: str, arrow: bool) -> Row:
    prompt, beside = record["prompt"], _input(record)
    if isinstance(prompt, (list, tuple)) and all(isinstance(message, Mapping) for message in prompt):
        messages = read_messages(prompt, "the prompt", where, arrow)
        if messages[-1]["role"] not in ("user", "tool"):
            raise DataError(
                f"{where}: the prompt must end with a message of the user or of a tool, got last role {messages[-1]['role']}"
            )
        row = prompt_row(_with_system(messages, record, where), where)
        prompt, unwrapped = row.instruction, (row.instruction, "")
    else:
        prompt = text_of(prompt, "the instruction", where)
        row, unwrapped = Row(prompt, history=_before(record, where)), unwrap_alpaca(prompt)
    if not isinstance(beside, str) or beside not in prompt:
        raise DataError(
            f"{where}: the prompt does not hold the input beside it, {shown(beside)}: name the prompt 'instruction', so "
            f"that both are read, or remove the input"
        )
    text = text_of(unwrapped[0], "the instruction", where)
    return row._replace(instruction=text, input=unwrapped[1])


def _input(record: Mapping[str, Any]) -> Any:
    """What the instruction is about; empty where there is nothing."""
    return next((record[key] for key in ("input", "context") if record.get(key) not in (None, "")), "")


def _before(record: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """A system prompt and LLaMA-Factory's history, beside an instruction."""
    turns: list[Message] = []
    history = decoded(record.get("history"))
    for pair in [] if nothing(history) else history if isinstance(history, (list, tuple)) else [history]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError(f"{where}: history must be a list of [question, answer], got {shown(pair)}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": text_of(text, f"the {role}'s text in history", where)})
    return tuple(_with_system(turns, record, where))


def _with_system(messages: list[Message], record: Mapping[str, Any], where: str) -> list[Message]:
    if nothing(record.get("system")):
        return messages
    own: Message = {"role": "system", "content": text_of(record["system"], "the system prompt", where)}
    if messages and messages[0]["role"] in ("system", "developer"):
        if messages[0]["content"] != own["content"]:
            raise DataError(f"{where}: the system prompt beside the messages is not the one in them: keep one of them")
        return messages
    return [own, *messages]
