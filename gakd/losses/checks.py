"""What a token pass refuses: parts that do not belong together, and labels that no head has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gakd.losses.sequence_term import SequenceTerm
from gakd.losses.term import TokenTerm
from gakd.objective import Term
from gakd.types import Head, TeacherOutput


def of_tokens(term: Term) -> TokenTerm:
    """The term itself; TypeError where the engine cannot run it."""
    asked = ("needs_teacher", "needs_shared_vocabulary", "temperature", "scale", "chunk_losses", "accumulate_")
    if missing := [name for name in asked if name not in dir(term)]:
        raise TypeError(
            f"{term.name} is a loss a token, and {type(term).__name__} lacks {', '.join(missing)}: subclass gakd.Divergence and "
            f'write losses(student_log_probs_NV, teacher_log_probs_NV), or say unit = "sequence" and write sequence_losses(rows)'
        )
    if isinstance(term, nn.Module) and any(parameter.requires_grad for parameter in term.parameters()):
        raise TypeError(
            f"{term.name} has parameters of its own, which no loss a token trains, since the engine forms gradients of logits "
            f'alone: say unit = "sequence" and write sequence_losses(rows), or freeze them'
        )
    return cast(TokenTerm, term)


def of_sequences(term: Term) -> SequenceTerm:
    """The term itself; TypeError where nobody would ask it for losses."""
    if not callable(getattr(cast(Any, term), "sequence_losses", None)):
        raise TypeError(
            f"{term.name} is a loss a sequence, and {type(term).__name__} lacks sequence_losses(rows), which gives them, [B]: "
            f"write it, as docs/write-your-own.md does"
        )
    return cast(SequenceTerm, term)


def check_pass(
    hidden_NH: Tensor, head: Head, labels_N: Tensor, terms: Sequence[TokenTerm], teacher: TeacherOutput | None,
    normalizers: bool = False,
) -> int:  # fmt: skip
    """How many tokens terms that compare see, or ValueError."""
    rows = len(hidden_NH)
    if scheduled := [term.name for term in terms if callable(term.temperature)]:
        raise ValueError(
            f"the temperature of {scheduled[0]} is a schedule: give the term as it is at a step, term.at(step)"
        )
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
