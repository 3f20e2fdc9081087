"""Many checkpoints on the same sets, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from gakd.data import Example
from gakd.evaluation.evaluation import Evaluation, evaluate
from gakd.evaluation.teacher_metrics import teacher_outputs
from gakd.samplers.config import Sampling
from gakd.samplers.generation import padding_id


def evaluate_checkpoints(
    left: Mapping[str, Sequence[str]],
    sets: Mapping[str, Sequence[Example]],
    teacher: str | None,
    load: Callable[[str], nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    seeds: Sequence[int],
    batch_size: int,
    on_progress: Callable[[str, int], None],
) -> Iterator[tuple[str, str, Evaluation]]:
    """Checkpoint, set and evaluation, for each checkpoint the sets that are `left`; at most one model is loaded at a time.

    The teacher reads every set once: its hidden states and its head stay, its layers make room. `on_progress` gets what is
    evaluated and the number of prompts that were answered.
    """
    wanted = {name for names in left.values() for name in names}
    targets = {}
    if teacher is not None and wanted:
        model, padding = load(teacher), padding_id(tokenizer)
        targets = {name: teacher_outputs(model, sets[name], padding, batch_size) for name in sorted(wanted)}
        del model
    for checkpoint, names in left.items():
        if not names:
            continue
        student = load(checkpoint)
        for name in names:
            label = f"{checkpoint} {name}".rstrip()
            on_progress(label, 0)
            yield checkpoint, name, evaluate(
                student, targets.get(name), tokenizer, sets[name], sampling, batch_size=batch_size, seeds=seeds,
                on_progress=lambda prompts, label=label: on_progress(label, prompts),
            )  # fmt: skip
        del student  # before the next one is loaded
