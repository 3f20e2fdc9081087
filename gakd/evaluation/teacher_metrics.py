"""How far a student's next-token distributions are from a teacher's on given text, as means over its tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from gakd.data import Example, collate
from gakd.losses.divergences import CrossEntropy, ForwardKL, ReverseKL
from gakd.losses.fused import token_values
from gakd.losses.term import TokenTerm
from gakd.models.heads import head_of, hidden_rows
from gakd.models.lora import base_of
from gakd.models.mode import device_of, evaluating
from gakd.models.sharding import is_sharded
from gakd.run.ranks import ALONE, Ranks
from gakd.types import Batch, TeacherOutput

TERMS: tuple[TokenTerm, ...] = (CrossEntropy(), ForwardKL(), ReverseKL())
Teacher = nn.Module | Sequence[TeacherOutput] | Mapping[int, TeacherOutput]


def divergences_to_teacher(
    student: nn.Module,
    teacher: Teacher | None,
    examples: Sequence[Example],
    pad_token_id: int,
    batch_size: int = 8,
    terms: Sequence[TokenTerm] = TERMS,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """`{term.name: sum over response tokens / number of response tokens}`, in nats, whatever the batch size.

    `teacher` is a model, or what `teacher_outputs` returned for the same examples, so that many evaluations run it
    once. Without one, the terms that compare with a teacher are left out. Batches are those of one process, dealt to
    `ranks`; each gets the same result. Raises ValueError without examples, or where the teacher's outputs are not those of
    the examples.
    """
    if not examples:
        raise ValueError(
            "divergences are means over the tokens of examples, got none: check the split and max_examples"
        )
    sums = divergence_sums(student, teacher, examples, pad_token_id, batch_size, terms, ranks)
    tokens = sum(example.supervised for example in examples)
    return {name: math.fsum(of_examples) / tokens for name, of_examples in sums.items()}


def divergence_sums(
    student: nn.Module,
    teacher: Teacher | None,
    examples: Sequence[Example],
    pad_token_id: int,
    batch_size: int = 8,
    terms: Sequence[TokenTerm] = TERMS,
    ranks: Ranks = ALONE,
) -> dict[str, list[float]]:
    """`{term.name: sum over the response tokens of each example}`, in nats; the rest as in `divergences_to_teacher`."""
    if isinstance(teacher, Sequence) and len(teacher) != len(examples):
        raise ValueError(
            f"expected one teacher output an example, got {len(teacher)} for {len(examples)} examples: "
            f"call teacher_outputs with the same examples"
        )
    terms = [term for term in terms if teacher is not None or not term.needs_teacher]
    found: dict[int, dict[str, float]] = {}
    in_step = any(runs_in_step(model) for model in (student, teacher) if isinstance(model, nn.Module))
    with evaluating(student):
        for _, indices in ranks.own(batches_of(examples, batch_size), in_step):
            chosen = [examples[index] for index in indices]
            batch = collate(chosen, pad_token_id).to(device_of(student))
            if isinstance(teacher, nn.Module):
                target = _joined(teacher_outputs(teacher, chosen, pad_token_id, batch_size), batch)
            else:
                target = None if teacher is None else _joined([teacher[index] for index in indices], batch)
            values = token_values(hidden_rows(student, batch), head_of(student), batch.labels_N, terms, target)
            for name, values_N in values.items():
                of_examples = torch.stack([own.sum() for own in values_N.double().split(batch.lengths)]).tolist()
                for index, total in zip(indices, of_examples, strict=True):
                    found.setdefault(index, {})[name] = total
    found = ranks.together(found)
    return {term.name: [found[index][term.name] for index in range(len(examples))] for term in terms}


def teacher_outputs(
    teacher: nn.Module, examples: Sequence[Example], pad_token_id: int, batch_size: int = 8
) -> list[TeacherOutput]:
    """One output an example, in their order: hidden states `[response tokens, H]` on the teacher's device, one head."""
    outputs = own_teacher_outputs(teacher, examples, pad_token_id, batch_size)
    return [outputs[index] for index in range(len(examples))]


def own_teacher_outputs(
    teacher: nn.Module, examples: Sequence[Example], pad_token_id: int, batch_size: int = 8, ranks: Ranks = ALONE,
    in_step: bool = False,
) -> dict[int, TeacherOutput]:  # fmt: skip
    """`teacher_outputs` of the examples whose batches are dealt to this rank, by their place; `in_step` as in `Ranks.own`."""
    outputs: dict[int, TeacherOutput] = {}
    head = head_of(teacher)
    with evaluating(teacher):
        for _, indices in ranks.own(batches_of(examples, batch_size), in_step or runs_in_step(teacher)):
            batch = collate([examples[index] for index in indices], pad_token_id).to(device_of(teacher))
            rows = hidden_rows(teacher, batch).split(batch.lengths)
            # A view would keep the batch's whole tensor alive for as long as any of its examples.
            outputs |= {index: TeacherOutput(hidden.clone(), head) for index, hidden in zip(indices, rows, strict=True)}
    return outputs


def teacher_cross_entropy(
    outputs: Mapping[int, TeacherOutput], examples: Sequence[Example], ranks: Ranks = ALONE
) -> float:
    """The teacher's own cross entropy in nats per response token, from the outputs of each rank's own examples."""
    own: dict[int, float] = {}
    for index, output in outputs.items():
        labels_N = torch.tensor(examples[index].labels, device=output.hidden_NH.device)
        values = token_values(output.hidden_NH, output.head, labels_N, [CrossEntropy()])
        own[index] = values["cross_entropy"].double().sum().item()
    of_all = ranks.together(own)
    return sum(of_all[index] for index in range(len(examples))) / sum(example.supervised for example in examples)


def _joined(outputs: Sequence[TeacherOutput], batch: Batch) -> TeacherOutput:
    rows, expected = [len(output.hidden_NH) for output in outputs], list(batch.lengths)
    if rows != expected:
        raise ValueError(
            f"the teacher's outputs supervise {rows} tokens, the examples {expected}: "
            f"pass teacher_outputs of the same examples in the same order"
        )
    return TeacherOutput(torch.cat([output.hidden_NH for output in outputs]), outputs[0].head)


def batches_of(examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """Indices of examples of like length, batch by batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(examples)), key=lambda i: examples[i].length)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def runs_in_step(model: nn.Module) -> bool:
    """Whether a forward waits for those of the other ranks: of a model that is cut over them."""
    return is_sharded(base_of(model))
