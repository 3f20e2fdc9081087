"""Rows in chunks: both models' raw logits, a chunk at a time, in buffers that the whole pass shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gakd.losses.kernel import block_rows
from gakd.products import project, result_dtype
from gakd.types import Head, LogitShape, TeacherOutput

# Matrix products lose efficiency below 128 rows; above, time is flat and only memory grows. On a GPU each chunk also reads
# the head thrice and the sum of its gradient once and back: rows are what pays for that.
MIN_CHUNK_ROWS = {"cpu": 128, "cuda": 1024}
CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 128 * 2**20}


def default_chunk_rows(total: int, vocab_size: int, device: torch.device) -> int:
    """Rows of a chunk where nobody says: on a CPU a power of two of at least 128, whose fp32 logits fill 24 MiB.

    On a GPU of at least 1,024, whose logits fill 128 MiB; or so near that all chunks are alike, so that the few rows that
    are left over do not make one of their own.
    """
    rows = MIN_CHUNK_ROWS.get(device.type, MIN_CHUNK_ROWS["cuda"])
    while rows * vocab_size * 4 < CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]):
        rows *= 2
    if device.type == "cpu":
        return rows
    return -(-total // max(round(total / rows), 1))


class Chunk(NamedTuple):
    """Some rows of a pass: where they stand, and both models' products, views of buffers that the next chunk reuses."""

    rows: slice
    student_NV: Tensor
    teacher_NV: Tensor | None
    shapes: tuple[LogitShape, LogitShape]

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Few rows at a time: their slice of the pass, and of the chunk."""
        rows, vocab_size = self.student_NV.shape
        if self.teacher_NV is not None:
            vocab_size = max(vocab_size, self.teacher_NV.shape[1])
        size = block_rows(rows, vocab_size, self.student_NV.device)
        for start in range(0, rows, size):
            block = slice(start, min(start + size, rows))
            yield slice(self.rows.start + block.start, self.rows.start + block.stop), block

    def products(self, block: slice) -> tuple[Tensor, Tensor | None]:
        return self.student_NV[block], None if self.teacher_NV is None else self.teacher_NV[block]


def chunks(
    hidden_NH: Tensor, head: Head, teacher: TeacherOutput | None, vocab_size: int, chunk_rows: int,
    compared: int | None = None,
) -> Iterator[Chunk]:  # fmt: skip
    """A pass over the rows, without gradient; each chunk's buffers may be written to, and are the next one's.

    Of the student `vocab_size` tokens, of a teacher that shares them `compared`, or as many. A teacher of fewer rows speaks
    about the first ones; the chunks behind them have none.
    """
    total = len(hidden_NH)
    taught = 0 if teacher is None else len(teacher.hidden_NH)
    buffer_NV = _buffer(head, min(chunk_rows, total), vocab_size)
    teacher_buffer_NU = None
    if teacher is not None:
        teacher_size = teacher_vocab_size(teacher, vocab_size if compared is None else compared)
        teacher_buffer_NU = _buffer(teacher.head, min(chunk_rows, taught), teacher_size)
    shapes = head.shape, head.shape if teacher is None else teacher.head.shape
    for start in [*range(0, taught, chunk_rows), *range(taught, total, chunk_rows)]:
        rows = slice(start, min(start + chunk_rows, taught if start < taught else total))
        student_NV = _product_into(buffer_NV[: rows.stop - start], hidden_NH[rows], head)
        teacher_NU = None
        if teacher is not None and teacher_buffer_NU is not None and start < taught:
            teacher_NU = _product_into(teacher_buffer_NU[: rows.stop - start], teacher.hidden_NH[rows], teacher.head)
        yield Chunk(rows, student_NV, teacher_NU, shapes)


def teacher_vocab_size(teacher: TeacherOutput, vocab_size: int) -> int:
    """What a pass sees of the teacher's head: the student's vocabulary, cut to what both have, or all of its own."""
    return vocab_size if teacher.shared_vocabulary else teacher.head.vocab_size


def _buffer(head: Head, rows: int, vocab_size: int) -> Tensor:
    return head.weight.new_empty(rows, vocab_size, dtype=result_dtype(head.weight.dtype))


def _product_into(product_NV: Tensor, hidden_NH: Tensor, head: Head) -> Tensor:
    """The head's product for a chunk, in fp32, written into its buffer."""
    vocab_size = product_NV.shape[1]
    project(hidden_NH, head.weight[:vocab_size], out=product_NV)
    return product_NV if head.bias is None else product_NV.add_(head.bias[:vocab_size])
