"""A row in token ids, and what makes it one."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import compress, pairwise
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from gakd.data.config import Template, Thinking, TrainOn
from gakd.data.prompts import plain_prompt, plain_turn
from gakd.data.rows import DataError, Row
from gakd.data.templates import ChatTemplate, Turn
from gakd.data.tokens import TurnIds, TurnTokens
from gakd.models.fingerprints import text_digest


class Example(NamedTuple):
    """A tokenized row."""

    prompt_ids: list[int]
    response_ids: list[int]  # ends as its template ends a turn, unless it was cut
    row: Row
    trained: tuple[bool, ...] | None = None  # which of `response_ids` are, where turns of the user stand between them

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def supervised(self) -> int:
        """Tokens that are trained on."""
        return len(self.response_ids) if self.trained is None else sum(self.trained)

    @property
    def labels(self) -> list[int]:
        """The tokens that are trained on."""
        return self.response_ids if self.trained is None else list(compress(self.response_ids, self.trained))

    @property
    def key(self) -> str:
        """A fingerprint of exactly what a model reads and what of it is trained on: what a teacher cache goes by."""
        ids = [len(self.prompt_ids), *self.prompt_ids, *self.response_ids, *(self.trained or ())]
        return hashlib.blake2b(np.asarray(ids, dtype="<i8").tobytes(), digest_size=16).hexdigest()


class Encoded(NamedTuple):
    """What became of a row."""

    examples: list[Example]  # none where its prompt is too long
    prompt_length: int  # tokens of its (first) prompt
    cut: bool  # whether an example was longer than what was kept of it


@dataclass(frozen=True)
class Encoder:
    """Rows to examples, by one tokenizer and its template.

    A row whose prompt is longer than `max_prompt_length` is left out; what is longer than `max_length` is cut, and then does
    not end, nor does a response whose row is not `finished`. With `train_on` "all" every turn of the assistant is trained: in
    one sequence where the template sets earlier turns as it sets the last one, else each in an example of its own. A row
    without a response is refused unless it `may_be_prompt`: its example then holds the end of the turn alone. DataError for
    that, where a window leaves no room for a response, where a prompt or a response has no tokens, and as `ChatTemplate`.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template = "chat"
    max_length: int = 512
    max_prompt_length: int = 256
    thinking: Thinking = "auto"
    train_on: TrainOn = "last"
    date: str | None = None
    may_be_prompt: bool = False

    def __post_init__(self) -> None:
        if self.max_prompt_length >= self.max_length:
            raise DataError(
                f"max_prompt_length {self.max_prompt_length} leaves no room for a response in max_length {self.max_length}"
            )
        if self.may_be_prompt and self.train_on == "all":
            raise DataError("responses that models write answer one prompt a row: give --train-on last")
        if self.tokenizer.eos_token_id is None:
            raise DataError("this tokenizer has no end-of-text token, so no response would end: set its eos_token")

    def __call__(self, rows: Sequence[Row]) -> list[Encoded]:
        """What becomes of each row."""
        for row in rows:
            if not (row.responses or self.may_be_prompt):
                raise DataError(f"{row.where or row.instruction[:40]!r}: the row has no response; give it one")
        turns = [self._turns(row) for row in rows]
        ids = iter(self.tokens([turn for of_row in turns for turn in of_row], self.max_length) if rows else ())
        return [self._encoded(row, own, [next(ids) for _ in own]) for row, own in zip(rows, turns, strict=True)]

    @cached_property
    def chat(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.thinking, self.date)

    @cached_property
    def tokenizer_mark(self) -> str:
        """A hash of all that makes ids of a text, the end of text included."""
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        made = backend.to_str() if backend is not None else json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return text_digest(f"{type(self.tokenizer).__name__} {self.tokenizer.eos_token_id} {made}")

    @cached_property
    def tokens(self) -> TurnTokens:
        return TurnTokens(self.tokenizer, self.turn(Row("a")), adds_special=self.template != "chat")

    def turn(self, row: Row) -> Turn:
        """A row's last turn of the assistant, and the prompt before it."""
        if self.template == "chat":
            return self.chat.turn(row)
        return plain_turn(row, self.template, str(self.tokenizer.eos_token))

    def _turns(self, row: Row) -> list[Turn]:
        if self.train_on == "last" or self.template != "chat" or not row.responses:
            return [self.turn(row)]
        return self.chat.turns(row)

    def _encoded(self, row: Row, turns: Sequence[Turn], ids: Sequence[TurnIds]) -> Encoded:
        for one in ids:
            if not one.prompt or (row.responses and not one.response):
                part = "response" if one.prompt else "prompt"
                raise DataError(
                    f"{row.where or row.instruction[:40]!r}: its {part} has no token in this tokenizer; change or remove the row"
                )
        ended = [one.response + one.behind for one in ids]
        if not row.finished:  # its last response was cut; those before it have their ends
            ended[-1] = ids[-1].response
        if len(turns) > 1 and self.tokens.apart and _is_one_text(turns):
            examples = [self._conversation(row, turns, ids[0].prompt, ended)]
        else:
            examples = [Example(one.prompt, own, row) for one, own in zip(ids, ended, strict=True)]
        if len(ids[0].prompt) > self.max_prompt_length:
            return Encoded([], len(ids[0].prompt), False)
        cut = any(example.length > self.max_length for example in examples)
        # Later turns have all before them for a prompt: one that fills the window is cut with all of its response.
        kept = [example for example in examples if len(example.prompt_ids) < self.max_length]
        return Encoded([self._window(example) for example in kept], len(ids[0].prompt), cut)

    def _conversation(self, row: Row, turns: Sequence[Turn], prompt: list[int], ended: Sequence[list[int]]) -> Example:
        """One sequence in which the turns of the assistant are trained, and what stands between them is not."""
        between = [turn.prompt[len(before.whole) :] for before, turn in pairwise(turns)]
        ids, trained = list(ended[0]), [True] * len(ended[0])
        for asked, own in zip(self.tokens.marked(between), ended[1:], strict=True):
            ids += asked + own
            trained += [False] * len(asked) + [True] * len(own)
        return Example(prompt, ids, row, tuple(trained))

    def _window(self, example: Example) -> Example:
        room = self.max_length - len(example.prompt_ids)
        trained = None if example.trained is None else example.trained[:room]
        return example._replace(response_ids=example.response_ids[:room], trained=trained)


def _is_one_text(turns: Sequence[Turn]) -> bool:
    """Whether each turn, with its end, is how the prompt of the next one begins."""
    return all(turn.prompt.startswith(before.whole) for before, turn in pairwise(turns))


def encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    template: Template = "chat",
    max_length: int = 512,
    max_prompt_length: int = 256,
    thinking: Thinking = "auto",
    train_on: TrainOn = "last",
    date: str | None = None,
) -> list[Example]:
    """The examples of a few rows, as `Encoder` makes them; a warning counts the rows whose prompt is too long."""
    encoder = Encoder(tokenizer, template, max_length, max_prompt_length, thinking, train_on, date)
    encoded = encoder(rows)
    if left_out := [row for row, one in zip(rows, encoded, strict=True) if not one.examples]:
        first = left_out[0].where or left_out[0].instruction[:40]
        report_long_prompts(len(left_out), len(rows), max_prompt_length, first)
    return [example for one in encoded for example in one.examples]


def report_long_prompts(count: int, rows: int, limit: int, first: str) -> None:
    """A warning of rows left out, of which `first` names the first; DataError where none is left."""
    message = f"left out {count} of {rows} rows whose prompt is longer than {limit} tokens"
    if count == rows:
        raise DataError(f"{message}: none is left; raise --max-prompt-length")
    warnings.warn(f"{message}, the first at {first!r}", stacklevel=3)


def encode_prompts(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    thinking: Thinking = "auto",
    date: str | None = None,
) -> list[list[int]]:
    """Token ids of each row's prompt, up to where the model goes on."""
    if template == "chat":
        set_prompt = ChatTemplate(tokenizer, thinking, date).prompt
    else:
        set_prompt = partial(plain_prompt, template=template)
    turns = [Turn(set_prompt(row), "", "", "", verbatim=True) for row in rows]
    tokens = TurnTokens(tokenizer, Turn("a", "", "a", "", verbatim=True), adds_special=template != "chat")
    return [ids.prompt for ids in tokens(turns, 2**30)]
