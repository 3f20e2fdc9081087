"""One text in the tokens of two tokenizers: which positions of both stand at the same character.

A position is where a model predicts: row k of a response comes before its token k, the last row before the end-of-text
token. Two rows that have read the very same text predict what follows it, whatever their tokens are.
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

from gakd.data.load import DataConfig
from gakd.data.prompts import Example, encode_prompts
from gakd.data.rows import DataError

_SLICE = 512  # texts tokenized at once: with offsets, a token takes a hundred bytes


class Aligned(NamedTuple):
    """An example of the student as the teacher reads it."""

    example: Example  # in the teacher's tokens, cut behind the last row of a pair
    pairs: list[tuple[int, int]]  # rows of the response, student's and teacher's, before which stands the same text
    rows: int  # of the student's response, paired or not


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

    An example whose prompt is too long for the teacher has no pairs; a warning counts them. DataError where none is left,
    where a tokenizer has no offsets, or where the examples are not what `encode` makes of their rows with `tokenizer`.
    """
    texts = [example.row.responses[0] for example in examples]
    prompts = encode_prompts([example.row for example in examples], teacher_tokenizer, config.template)
    encoded = zip(_encoded(texts, tokenizer), _encoded(texts, teacher_tokenizer), strict=True)
    aligned: dict[str, Aligned] = {}
    left_out: list[Example] = []
    for example, text, prompt, (own, theirs) in zip(examples, texts, prompts, encoded, strict=True):
        rows = len(example.response_ids)
        end = [tokenizer.eos_token_id] if example.row.finished else []
        if [*own.ids, *end][:rows] != example.response_ids:
            raise DataError(
                f"{example.row.where or text[:40]!r}: the tokens of its response are not those of the student's tokenizer: "
                f"pass the tokenizer that encoded the examples"
            )
        pairs: list[tuple[int, int]] = []
        if len(prompt) > config.max_prompt_length:
            left_out.append(example)
        else:
            room = min(len(theirs.ids) + 1, config.max_length - len(prompt))
            teacher_row = positions(text, theirs.offsets, room)
            at = positions(text, own.offsets, rows)
            pairs = [(row, teacher_row[place]) for place, row in at.items() if place in teacher_row]
        needed = [*theirs.ids, teacher_tokenizer.eos_token_id][: pairs[-1][1] + 1] if pairs else []
        aligned[example.key] = Aligned(Example(prompt, needed, example.row), pairs, rows)
    if left_out:
        row, limit = left_out[0].row, config.max_prompt_length
        message = f"the teacher's prompt is longer than {limit} tokens in {len(left_out)} of {len(examples)} examples"
        if len(left_out) == len(examples):
            raise DataError(f"{message}: none is left; raise --max-prompt-length")
        first = row.where or row.instruction[:40]
        warnings.warn(f"{message}, of which it teaches nothing, the first at {first!r}", stacklevel=2)
    return aligned


class _Encoded(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]


def _encoded(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[_Encoded]:
    """Each response as `prompts.encode` tokenizes it, with what each token covers of the raw text, spaces included."""
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say which characters a token covers, so no other tokenizer can be aligned "
            f"with it: use a model whose folder has a tokenizer.json"
        )
    backend: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)  # type: ignore[attr-defined]
    backend.post_processor = None  # it adds nothing to a response, but may trim spaces off the offsets
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    for start in range(0, len(texts), _SLICE):
        for encoding in backend.encode_batch(list(texts[start : start + _SLICE]), add_special_tokens=False):
            yield _Encoded(encoding.ids, encoding.offsets)
