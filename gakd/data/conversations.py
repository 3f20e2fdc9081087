"""Which message of a conversation is the response, and what leads up to it."""

from __future__ import annotations

from gakd.data.rows import DataError, Message, Row, shown


class Untrained(DataError):
    """A conversation of which no turn is trained, by its own weights."""


def conversation_row(messages: list[Message], form: str, where: str, may_be_prompt: bool) -> Row:
    """The last assistant's message that is trained is the response; what follows it is cut off."""
    roles = [message["role"] for message in messages]
    if may_be_prompt and roles[-1] in ("user", "tool"):
        return prompt_row(messages, where)
    if len(messages) < 2:
        raise DataError(f"{where}: {form} must be a list of at least two messages, got {shown(messages)}")
    if roles[-1] != "assistant":
        raise DataError(
            f"{where}: a conversation must end with a user's message and the assistant's response, got last roles {roles[-2:]}"
        )
    trained = [n for n, message in enumerate(messages) if roles[n] == "assistant" and message.get("weight") != 0]
    if not trained:
        raise Untrained(f"{where}: all of the assistant's messages have weight 0, so none is trained; remove the row")
    return with_response(prompt_row(messages[: trained[-1]], where), messages[trained[-1]])


def prompt_row(messages: list[Message], where: str) -> Row:
    """The row of messages that lead up to a response."""
    last = max((number for number, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise DataError(f"{where}: no user's message is before the response; begin the conversation with one")
    between = tuple(messages[last + 1 :])
    for message in between:
        if message["role"] not in ("assistant", "tool"):
            raise DataError(
                f"{where}: a message of the {message['role']} is behind the last user's: put it before, or at the beginning"
            )
    asked = messages[last]
    if asked.keys() - {"role", "content"}:
        raise DataError(f"{where}: the last user's message has the key {max(asked.keys() - {'role', 'content'})!r}, which "
                        f"would be lost: remove it")  # fmt: skip
    return Row(asked["content"], history=tuple(messages[:last]), between=between)


def with_response(row: Row, message: Message) -> Row:
    """The row answered by a message, which stays one where it is more than its text."""
    more = message.keys() - {"role", "content"}
    return row._replace(responses=(message["content"],), answer=message if more else None)
