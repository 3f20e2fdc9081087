"""Rows in chunks: both models' raw logits, a chunk at a time, in buffers that the whole pass shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gakd.losses.kernel import block_rows
from gakd.types import Head, LogitShape, TeacherOutput

# Matrix products lose efficiency below 128 rows; above, time is flat and only memory grows, until a GPU wants more work.
MIN_CHUNK_ROWS = 128
HEAD_SLICE = 2048  # tokens of the vocabulary, see `_product_into`
CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 128 * 2**20}


def default_chunk_rows(vocab_size: int, device: torch.device) -> int:
    """The smallest power of two of at least 128 rows whose fp32 logits fill 24 MiB on a CPU, 128 MiB on a GPU."""
    rows = MIN_CHUNK_ROWS
    while rows * vocab_size * 4 < CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]):
        rows *= 2
    return rows


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
    buffer_NV = head.weight.new_empty(min(chunk_rows, total), vocab_size)
    teacher_buffer_NU = None
    if teacher is not None:
        teacher_size = teacher_vocab_size(teacher, vocab_size if compared is None else compared)
        teacher_buffer_NU = teacher.head.weight.new_empty(min(chunk_rows, taught), teacher_size)
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


def _product_into(product_NV: Tensor, hidden_NH: Tensor, head: Head) -> Tensor:
    """The head's product for a chunk, written into its buffer.

    On a CPU a slice of the head at a time and the other way round, `W h^T`, turned while it is in cache: with as few rows
    as a chunk has, threaded libraries are a third faster that way.
    """
    vocab_size = product_NV.shape[1]
    if product_NV.device.type != "cpu" or head.weight.dtype != torch.float32 or vocab_size < 2 * HEAD_SLICE:
        return head.product(hidden_NH, vocab_size, out=product_NV)
    hidden_HN = hidden_NH.to(head.weight.dtype).T.contiguous()
    slice_VN = product_NV.new_empty(HEAD_SLICE, len(hidden_NH))
    for start in range(0, vocab_size, HEAD_SLICE):
        part = slice(start, min(start + HEAD_SLICE, vocab_size))
        product_VN = torch.mm(head.weight[part], hidden_HN, out=slice_VN[: part.stop - start])
        product_NV[:, part] = product_VN.T
    return product_NV if head.bias is None else product_NV.add_(head.bias[:vocab_size])
