"""A teacher of another tokenizer: it reads the same texts in its own tokens, and speaks where both stand at one character."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from gakd.data import Data, DataConfig, DataError, Example, collate
from gakd.data.alignment import align
from gakd.models.config import ModelConfig
from gakd.models.errors import ModelError
from gakd.models.fingerprints import frozen_mark
from gakd.models.heads import head_of, hidden_rows
from gakd.models.loading import load_model, load_tokenizer
from gakd.types import Batch, Head, TeacherOutput


class AlignedTeacher:
    """A frozen model in this process with a tokenizer of its own, run once a batch on the texts of the student's examples.

    All examples are tokenized and aligned here, before the first batch; a batch must be one that `gakd.data.collate` made of
    them, and ValueError says so where it is not. DataError as in `gakd.data.alignment.align`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        student_tokenizer: PreTrainedTokenizerBase,
        config: DataConfig,
    ) -> None:
        if not isinstance(tokenizer.pad_token_id, int):
            raise DataError(
                "the teacher's tokenizer has no padding token: load it with gakd.models.load_tokenizer, or set pad_token"
            )
        self.model = model.eval().requires_grad_(False)
        head_of(model)  # proven before anything is read by it
        self._pad_token_id = tokenizer.pad_token_id
        self._aligned = align(examples, student_tokenizer, tokenizer, config)

    @property
    def head(self) -> Head:
        return head_of(self.model)

    def mark(self) -> str:
        """A hash of its weights and configuration."""
        return frozen_mark(self.model)

    @property
    def aligned_share(self) -> float:
        """The share of the student's response tokens that the teacher speaks about."""
        aligned = self._aligned.values()
        return sum(len(one.pairs) for one in aligned) / sum(one.rows for one in aligned)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        known = [self._aligned[key] for key in batch.keys if key in self._aligned]
        if [one.rows for one in known] != list(batch.lengths):
            raise ValueError(
                f"the aligned teacher knows {len(known)} of the batch's {len(batch.lengths)} sequences: "
                f"build batches with gakd.data.collate, of the examples that it was given"
            )
        rows, teacher_rows, row, teacher_row = [], [], 0, 0
        for one in known:
            rows += [row + own for own, _ in one.pairs]
            teacher_rows += [teacher_row + theirs for _, theirs in one.pairs]
            row, teacher_row = row + one.rows, teacher_row + len(one.example.response_ids)
        device, head = batch.labels.device, self.head
        hidden_MH = head.weight.new_empty(0, head.weight.shape[1])
        if rows:
            own = collate([one.example for one in known if one.pairs], self._pad_token_id).to(device)
            hidden_MH = hidden_rows(self.model, own)[torch.tensor(teacher_rows).to(device, non_blocking=True)]
        return TeacherOutput(
            hidden_MH, head, torch.tensor(rows, dtype=torch.long).to(device, non_blocking=True), shared_vocabulary=False
        )


def load_aligned_teacher(
    config: ModelConfig,
    data: Data,
    student_tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    device: torch.device,
) -> AlignedTeacher:
    """The teacher with its own tokenizer, on its device, for the training split; ModelError where a cache is asked for."""
    if config.teacher_cache is not None:
        raise ModelError(
            f"--teacher-cache {config.teacher_cache} holds hidden states of the student's own tokens, and this recipe's teacher "
            f"reads others: leave it out, or take a teacher of one tokenizer and another recipe"
        )
    if config.teacher is None:
        raise ModelError("this recipe learns from a teacher: give --teacher, for example Qwen3-8B")
    if data.config is None:
        raise ValueError("the teacher encodes the rows as the student did: load the data with gakd.data.load_data")
    trusted = config.trust_remote_code
    whole = torch.device("cpu") if device.type == "meta" else device  # it is cut nowhere
    model = load_model(config.teacher, dtype, None, trusted, whole)
    tokenizer = load_tokenizer(config.teacher, trusted)
    return AlignedTeacher(model, tokenizer, data.train, student_tokenizer, data.config)
