"""From sampled text to advantages: what every model says of a step's tokens, the reward of it, and back onto the batches.

    with run.inference():
        taught = [teacher(batch) for batch in window]
        log_probs = policy_log_probs(distiller, window)
        rollout = rollout_of(window, log_probs, teacher_log_probs=teacher_log_probs(window, taught))
    window = with_advantages(window, rollout, TeacherLogRatio() >> RewardToGo(1))

A rollout holds all sequences of the rank's step, so rewards do not depend on how it is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gakd.losses.divergences import CrossEntropy
from gakd.losses.fused import token_values
from gakd.models.heads import head_of, hidden_rows
from gakd.models.mode import evaluating
from gakd.rewards.sources import Reward, Rollout
from gakd.types import Batch, TeacherOutput


def policy_log_probs(
    distiller: nn.Module,
    window: Sequence[Batch],
    taught: Sequence[TeacherOutput] | None = None,
    temperature: float = 1.0,
) -> list[Tensor]:
    """The student's log-probabilities of each batch's labels, `[N]`, in evaluation mode, as it was when it wrote them.

    Over its whole head, as `PolicyGradient` has it. Give the teacher's outputs for what is compared with the teacher's
    probabilities: they are then over the vocabulary that both share.
    """
    outputs = [None] * len(window) if taught is None else list(taught)
    with evaluating(distiller):
        return [
            distiller.label_log_probs(batch, output, temperature)  # type: ignore[operator]
            for batch, output in zip(window, outputs, strict=True)
        ]


def teacher_log_probs(
    window: Sequence[Batch], taught: Sequence[TeacherOutput], temperature: float = 1.0
) -> list[Tensor]:
    """The teacher's log-probabilities of each batch's labels, `[N]`."""
    cross_entropy = CrossEntropy(temperature, temperature_squared=False)
    return [
        -token_values(output.hidden_NH, output.head, batch.labels_N, [cross_entropy])[cross_entropy.name]
        for batch, output in zip(window, taught, strict=True)
    ]


def model_log_probs(model: nn.Module, window: Sequence[Batch], temperature: float = 1.0) -> list[Tensor]:
    """Any causal model's log-probabilities of each batch's labels, `[N]`, in evaluation mode: a reference's."""
    with evaluating(model):
        outputs = [TeacherOutput(hidden_rows(model, batch), head_of(model)) for batch in window]
        return teacher_log_probs(window, outputs, temperature)


def rollout_of(
    window: Sequence[Batch],
    log_probs: Sequence[Tensor],
    teacher_log_probs: Sequence[Tensor] | None = None,
    reference_log_probs: Sequence[Tensor] | None = None,
    scores_B: Tensor | None = None,
    group_B: Tensor | None = None,
) -> Rollout:
    """All sequences of a step in one rollout, their response tokens moved to the left; `log_probs` are the policy's.

    Lists hold `[N]` of each batch; `scores_B` and `group_B` go through all sequences in the window's order.
    """
    lengths = [length for batch in window for length in batch.lengths]
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)  # of what the host knows, without a wait
    mask_BT = mask_BT.to(window[0].labels.device, non_blocking=True)

    def rows(values: Sequence[Tensor] | None) -> Tensor | None:
        return None if values is None else pad_sequence(list(torch.cat(list(values)).split(lengths)), batch_first=True)

    student_BT = rows(log_probs)
    assert student_BT is not None
    return Rollout(mask_BT, student_BT, rows(teacher_log_probs), rows(reference_log_probs), scores_B, group_B)


def with_advantages(window: Sequence[Batch], rollout: Rollout, reward: Reward) -> list[Batch]:
    """The window with the row values that `PolicyGradient` and `KLToReference` read; `reward` is a chain with its shapers."""
    values = {"advantages": reward(rollout), "old_log_probs": rollout.student_log_probs_BT}
    if rollout.reference_log_probs_BT is not None:
        values["reference_log_probs"] = rollout.reference_log_probs_BT
    return with_rows(window, rollout, values)


def with_rows(window: Sequence[Batch], rollout: Rollout, values_BT: dict[str, Tensor]) -> list[Batch]:
    """The window with what a rollout's tokens were given, `[B, T]` each, as row values of its batches."""
    counts = [len(batch.rows_N) for batch in window]
    lengths, width = [length for batch in window for length in batch.lengths], rollout.mask_BT.shape[1]
    slots_N = torch.cat([row * width + torch.arange(length) for row, length in enumerate(lengths)])
    slots_N = slots_N.to(rollout.mask_BT.device, non_blocking=True)  # where `mask_BT` is true, without asking it
    parts = {name: values.flatten()[slots_N].split(counts) for name, values in values_BT.items()}
    return [
        batch.with_row_values({name: part[index] for name, part in parts.items()}) for index, batch in enumerate(window)
    ]
