"""One text in the tokens of two tokenizers: which positions of both stand at the same character.

A position is where a model predicts: row k of a text comes before its token k, the last row before what ends the turn. Two
rows that have read the very same text predict what follows it, whatever their tokens are.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from gakd.data.config import DataConfig
from gakd.data.examples import Encoder, Example
from gakd.data.load import encoder_of
from gakd.data.rows import DataError
from gakd.data.templates import Turn
from gakd.data.tokens import TurnIds

_SLICE = 512  # texts tokenized at once: with offsets, a token takes a hundred bytes


class Aligned(NamedTuple):
    """An example of the student as the teacher reads it."""

    example: Example  # in the teacher's tokens, cut behind the last row of a pair
    pairs: list[tuple[int, int]]  # rows of what is taught, student's and teacher's, before which stands the same text
    rows: int  # of the student's, paired or not


def positions(text: str, offsets: Sequence[tuple[int, int]], rows: int) -> dict[int, int]:
    """`{character: row}` of the rows that stand at a character: all before it has been read, nothing behind it.

    `offsets` are the untrimmed `(start, end)` of the tokens of the whole text. Of its `len(offsets) + 1` rows the first `rows`
    count. A row inside a character that is several tokens stands nowhere, nor do two rows at one place; spaces that a
    tokenizer leaves out belong to the next token. The first row is at 0 and the row of the end at the end of the text.
    """
    tokens = len(offsets)
    read = list(accumulate((end for _, end in offsets), max, initial=0))
    to_come = list(accumulate((start for start, _ in reversed(offsets)), min, initial=len(text)))[::-1]
    at: dict[int, int] = {0: 0}
    # Spaces may be left out between two tokens; anything else is part of one of them.
    inner = [row for row in range(1, min(rows, tokens)) if 0 < read[row] <= to_come[row] and read[row] < len(text)]
    clean = [row for row in inner if not text[read[row] : to_come[row]].strip()]
    claimed = Counter(read[row] for row in clean)
    at |= {read[row]: row for row in clean if claimed[read[row]] == 1}
    return at | {len(text): tokens} if rows > tokens else at


def align(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
) -> dict[str, Aligned]:
    """`{Example.key: Aligned}`: each example in the teacher's tokens and template, under the same limits of length.

    An example whose prompt is too long for the teacher, or whose response its template sets as another text, has no pairs; a
    warning counts them. DataError where none is left, where a tokenizer has no offsets, where all turns are trained, or where
    the examples are not what `config` makes of their rows with `tokenizer`.
    """
    if config.train_on == "all":
        raise DataError("two tokenizers are aligned on one response: give --train-on last")
    aligned: dict[str, Aligned] = {}
    too_long: list[Example] = []
    otherwise: list[Example] = []
    encoders = (encoder_of(config, one) for one in (tokenizer, teacher_tokenizer))
    read = zip(*(_responses(examples, encoder) for encoder in encoders), strict=True)
    for example, (own, theirs) in zip(examples, read, strict=True):
        rows = len(example.response_ids)
        if own.taught[:rows] != example.response_ids:
            raise DataError(
                f"{example.row.where or example.row.instruction[:40]!r}: the tokens of its response are not those of the "
                f"student's tokenizer: pass the tokenizer that encoded the examples"
            )
        pairs: list[tuple[int, int]] = []
        if len(theirs.prompt) > config.max_prompt_length:
            too_long.append(example)
        elif own.text.strip() != theirs.text.strip():
            otherwise.append(example)
        else:
            trims = own.text != theirs.text  # a template may trim a response
            teacher_row = theirs.rows_at(config.max_length - len(theirs.prompt), trims)
            pairs = [(row, teacher_row[at]) for at, row in own.rows_at(rows, trims).items() if at in teacher_row]
            pairs += _closing_pairs(own, theirs, rows, config.max_length - len(theirs.prompt))
        needed = theirs.taught[: pairs[-1][1] + 1] if pairs else []
        aligned[example.key] = Aligned(Example(theirs.prompt, needed, example.row), pairs, rows)
    _report(
        too_long,
        examples,
        f"the teacher's prompt is longer than {config.max_prompt_length} tokens",
        "raise --max-prompt-length",
    )
    _report(
        otherwise, examples, "the teacher's template sets the response as another text", "leave thoughts and calls out"
    )
    return aligned


def _closing_pairs(own: _Response, theirs: _Response, rows: int, teacher_rows: int) -> list[tuple[int, int]]:
    """Rows within what ends the turn, behind its first token, where both end it by the same tokens."""
    if own.behind != theirs.behind:
        return []
    starts = (len(own.taught) - len(own.behind), len(theirs.taught) - len(theirs.behind))
    found = [(starts[0] + place, starts[1] + place) for place in range(1, len(own.behind))]
    return [(row, teacher_row) for row, teacher_row in found if row < rows and teacher_row < teacher_rows]


def _report(left_out: Sequence[Example], examples: Sequence[Example], why: str, remedy: str) -> None:
    if not left_out:
        return
    message = f"{why} in {len(left_out)} of {len(examples)} examples"
    if len(left_out) == len(examples):
        raise DataError(f"{message}: none is left; {remedy}")
    first = left_out[0].row.where or left_out[0].row.instruction[:40]
    warnings.warn(f"{message}, of which it teaches nothing, the first at {first!r}", stacklevel=3)


class _Response(NamedTuple):
    """A response as one tokenizer and its template set it."""

    prompt: list[int]
    taught: list[int]  # with what stands before and behind the text
    before: int  # tokens before the text
    text: str
    offsets: list[tuple[int, int]]  # of the text's tokens, untrimmed
    behind: list[str]  # the tokens that end the turn

    def rows_at(self, rows: int, trims: bool) -> dict[int, int]:
        """`{character: row}` of the first `rows` rows; `trims`: outer spaces of the text count as none."""
        begin = len(self.text) - len(self.text.lstrip()) if trims else 0
        inner = len(self.text.strip()) if trims else len(self.text)
        at = positions(self.text, self.offsets, rows - self.before)
        end = {inner: at[len(self.text)]} if len(self.text) in at else {}
        return {place - begin: self.before + row for place, row in at.items() if place - begin < inner} | {
            place: self.before + row for place, row in end.items()
        }


def _responses(examples: Sequence[Example], encoder: Encoder) -> Iterator[_Response]:
    """Each response as `Encoder` sets and tokenizes it, with what each token covers of its text, spaces included."""
    tokenizer = encoder.tokenizer
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say which characters a token covers, so no other tokenizer can be aligned "
            f"with it: use a model whose folder has a tokenizer.json"
        )
    backend: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)  # type: ignore[attr-defined]
    backend.post_processor = None  # it adds nothing to a response, but may trim spaces off the offsets
    backend.no_truncation()
    backend.no_padding()
    for start in range(0, len(examples), _SLICE):
        turns = [encoder.turn(example.row) for example in examples[start : start + _SLICE]]
        for turn, ids in zip(turns, encoder.tokens(turns, 2**20), strict=True):
            yield _with_offsets(turn, ids, backend, encoder.tokens.apart)


def _with_offsets(turn: Turn, ids: TurnIds, backend: Tokenizer, apart: bool) -> _Response:
    taught, count = [*ids.response, *ids.behind], len(ids.response)
    behind = [str(backend.id_to_token(token)) for token in ids.behind]
    if not apart:  # a tokenizer that looks back is given what stands before, unless that has changed the prompt's ids
        skipped = f"{turn.prompt}{turn.before}"
        backend.encode_special_tokens = False
        encoding = backend.encode(f"{skipped}{turn.text}", add_special_tokens=False)
        if encoding.ids[-count:] == ids.response:
            own = encoding.offsets[-count:]
            before = sum(end <= len(skipped) for _, end in own)
            offsets = [(max(start - len(skipped), 0), end - len(skipped)) for start, end in own[before:]]
            return _Response(ids.prompt, taught, before, turn.text, offsets, behind)
    backend.encode_special_tokens = turn.verbatim
    encoding = backend.encode(turn.text, add_special_tokens=False)
    return _Response(ids.prompt, taught, count - len(encoding.ids), turn.text, encoding.offsets, behind)
