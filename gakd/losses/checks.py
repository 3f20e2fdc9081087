"""What a token pass refuses: parts that do not belong together, and labels that no head has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gakd.losses.term import TokenTerm
from gakd.types import Head, TeacherOutput


def check_pass(
    hidden_NH: Tensor, head: Head, labels_N: Tensor, terms: Sequence[TokenTerm], teacher: TeacherOutput | None,
    normalizers: bool = False,
) -> int:  # fmt: skip
    """How many tokens terms that compare see, or ValueError."""
    rows = len(hidden_NH)
    if labels_N.shape != (rows,):
        raise ValueError(
            f"one label a row: got hidden states of {rows} rows and labels of shape {tuple(labels_N.shape)}"
        )
    if head.weight.dtype == torch.float16:
        raise ValueError(
            "the student's head is in fp16, where gradients overflow under a loss scale: use bfloat16 or fp32"
        )
    needing = [term.name for term in terms if term.needs_teacher]
    if teacher is None:
        if needing:
            raise ValueError(f"{', '.join(needing)} compare with a teacher: pass a TeacherOutput, got None")
        return head.vocab_size
    if normalizers and (teacher.rows is not None or not teacher.shared_vocabulary):
        raise ValueError(
            "log-sum-exps of both models belong to the same tokens, in every row: got a teacher of another vocabulary or of "
            "some rows only; leave the adversary out, or use a teacher of the student's tokenizer"
        )
    taught = rows if teacher.rows is None else len(teacher.rows)
    if len(teacher.hidden_NH) != taught:
        raise ValueError(
            f"student and teacher must supervise the same rows: got {taught} and {len(teacher.hidden_NH)}; use one batch for both"
        )
    if teacher.shared_vocabulary:
        return min(head.vocab_size, teacher.head.vocab_size)
    unable = [term.name for term in terms if term.needs_teacher and term.needs_shared_vocabulary]
    if unable:
        raise ValueError(
            f"{', '.join(unable)} compare token with token, but this teacher has another vocabulary: use UniversalLogit, "
            f"or a teacher of the student's tokenizer"
        )
    return head.vocab_size


def refuse_labels(labels_N: Tensor, head: Head, error: Exception) -> None:
    """ValueError that names a label beyond the head, if that is what an index failed for; a GPU has stopped by then."""
    if labels_N.device.type == "cpu" and len(labels_N) and int(labels_N.max()) >= head.vocab_size:
        row = int(labels_N.argmax())
        raise ValueError(
            f"supervised row {row} has the label {int(labels_N[row])}, and the student's head has {head.vocab_size} tokens: its "
            f"tokenizer is another, or larger than its embeddings"
        ) from error
