"""A recipe's evaluations: before and after training on held-out text, and the report that ends a run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase

from gakd.data import Data, Example, spread
from gakd.data.ends import end_ids
from gakd.errors import InputError, RunError
from gakd.evaluation.card import write_card
from gakd.evaluation.config import EvaluationConfig
from gakd.evaluation.evaluation import Evaluation, evaluate
from gakd.evaluation.plots import plot_metrics
from gakd.evaluation.report import comparison_table, completions_table
from gakd.evaluation.teacher_metrics import (
    batches_of,
    divergences_to_teacher,
    own_teacher_outputs,
    runs_in_step,
    teacher_cross_entropy,
)
from gakd.evaluation.text_metrics import corpus_rouge_l
from gakd.files import write_json
from gakd.models.export import write_folder
from gakd.models.hub import push
from gakd.models.lora import base_of
from gakd.models.mode import device_of
from gakd.models.sharding import is_sharded
from gakd.run.about import read_about
from gakd.run.measuring import as_measured
from gakd.run.ranks import Ranks, all_ranks
from gakd.samplers.config import Sampling
from gakd.samplers.generation import decode, generate
from gakd.teachers.cached import CachedTeacher
from gakd.teachers.local import LocalTeacher
from gakd.types import TeacherOutput

if TYPE_CHECKING:
    from gakd.evaluation.shown_figure import ShownFigure

SHOWN_COMPLETIONS = 3


class HeldOut:
    """The validation and test examples of a run, and the teacher's own scores on them.

    The teacher's hidden states of the examples are kept after their first use, so that it reads each of them once. A
    cached teacher writes no text: its own scores are the cross entropy alone. Where a run has several processes, each makes
    one, and all evaluate together: batches are those of one process, dealt in turn, and each keeps the hidden states of
    its own alone.
    """

    def __init__(
        self,
        teacher: LocalTeacher | CachedTeacher | None,
        tokenizer: PreTrainedTokenizerBase,
        data: Data,
        config: EvaluationConfig,
    ) -> None:
        self.teacher, self.tokenizer, self.config = teacher, tokenizer, config
        self.pad_token_id = data.pad_token_id
        self.valid, self.test = (spread(split, config.examples) for split in (data.valid, data.test))
        self._sampling = Sampling(config.max_new_tokens, config.sampling_temperature, seed=config.sampling_seed)
        self._teacher_outputs: dict[str, dict[int, TeacherOutput]] = {}

    @cached_property
    def _ranks(self) -> Ranks:
        return all_ranks()  # when all evaluate: a recipe may make this object on one rank after the other

    def validate(self, student: nn.Module) -> dict[str, float]:
        """On the validation split: cross entropy and divergences to the teacher, in nats per token; ROUGE-L in percent."""
        if not self.valid:
            raise InputError("there are no rows to validate on: give more rows, or --valid-dataset FILE")
        outputs, size = self._targets("valid", self.valid, student), self.config.evaluation_batch_size
        scores = divergences_to_teacher(student, outputs, self.valid, self.pad_token_id, size, ranks=self._ranks)
        if chosen := spread(self.valid, self.config.valid_text_examples):
            prompts = [example.prompt_ids for example in chosen]
            written = generate(student, self.tokenizer, prompts, self._sampling, size, ranks=self._ranks)
            references = [example.row.responses for example in chosen]
            scores["rouge_l"] = corpus_rouge_l(decode(self.tokenizer, written), references)
        return scores

    def scores(self, student: nn.Module) -> dict[str, Any]:
        """Everything on the test split, as JSON: `Evaluation` of the student and, where there is one, of the teacher; and
        the examples that were answered, so that the run's folder explains its own predictions.
        """
        if self._ranks.rank == 0:
            print(f"Evaluating on {_test_examples(self.test)}, before training", flush=True)
        scores: dict[str, Any] = {"student": asdict(self._evaluate(student))}
        if self.teacher is not None:
            scores["teacher"] = asdict(self._evaluate_teacher(self.teacher))
        rows = [example.row for example in self.test[: self.config.text_examples]]
        scores["examples"] = [
            {"instruction": row.instruction, "input": row.input, "responses": list(row.responses)} for row in rows
        ]
        return scores

    def after(self, student: nn.Module) -> Evaluation:
        return self._evaluate(student)

    def _evaluate_teacher(self, teacher: LocalTeacher | CachedTeacher) -> Evaluation:
        if isinstance(teacher, LocalTeacher):
            return self._evaluate(teacher.model)
        outputs = self._teacher_outputs["test"]  # the student has been compared with them
        return Evaluation(teacher_cross_entropy(outputs, self.test, self._ranks))

    def _evaluate(self, model: nn.Module) -> Evaluation:
        config = self.config
        return evaluate(
            model, self._targets("test", self.test, model), self.tokenizer, self.test,
            self._sampling,
            text_examples=config.text_examples, batch_size=config.evaluation_batch_size,
            reader=self.teacher.model if isinstance(self.teacher, LocalTeacher) else None, ranks=self._ranks,
        )  # fmt: skip

    def _targets(self, split: str, examples: Sequence[Example], model: nn.Module) -> dict[int, TeacherOutput] | None:
        """The teacher's outputs of the examples on which this rank runs the model, by their place."""
        if self.teacher is None:
            return None
        if split not in self._teacher_outputs:
            size, in_step = self.config.evaluation_batch_size, runs_in_step(model)
            if isinstance(self.teacher, CachedTeacher):
                dealt = self._ranks.own(batches_of(examples, size), in_step)
                own = [index for _, indices in dealt for index in indices]
                found = self.teacher.each([examples[index].key for index in own])
                outputs = dict(zip(own, found, strict=True))
            else:
                outputs = own_teacher_outputs(
                    self.teacher.model, examples, self.pad_token_id, size, self._ranks, in_step
                )
            self._teacher_outputs[split] = outputs
        return self._teacher_outputs[split]


def _test_examples(test: Sequence[Example]) -> str:
    return f"{len(test)} test example{'' if len(test) == 1 else 's'}"


@dataclass(repr=False)  # every text of every evaluation
class Conclusion:
    """What a run came to; a notebook shows its curves."""

    scores: dict[str, Evaluation]
    """On the test split: of the student `before` and `after`, and of the `teacher` where there is one."""
    figure: ShownFigure
    """The curves, as in curves.png."""

    def _repr_png_(self) -> bytes:
        return self.figure._repr_png_()


def conclude(
    folder: Path, student: nn.Module, held_out: HeldOut, before: dict[str, Any], main: bool = True
) -> Conclusion | None:
    """Export the student, evaluate it again, and print and save what changed: tables, completions, curves, its model card.

    Every rank calls this; the `main` one writes and prints, and what it returns has the scores and the figure. The others
    get None. The student is measured in the precision of `before`, and exported in the dtype that its run was asked for.
    Last of all it goes to the hub, where the run was asked for that; a warning says why it did not arrive.
    """
    exported, about = folder / "student", read_about(folder)
    dtype = None if about.export_dtype is None else getattr(torch, about.export_dtype)
    if main or is_sharded(base_of(student)):  # a sharded one is gathered from all
        write_folder(student, held_out.tokenizer, exported, end_ids(held_out.tokenizer, student), dtype=dtype)
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=100)
    console.quiet = not main
    console.print(f"Evaluating on {_test_examples(held_out.test)}, after training")
    with as_measured(before, device_of(student)):
        after = held_out.after(student)
    if not main:
        return None
    write_json(folder / "after.json", {"student": asdict(after)}, indent=2)
    evaluations = {"before": Evaluation(**before["student"]), "after": after}
    if "teacher" in before:
        evaluations["teacher"] = Evaluation(**before["teacher"])
    measured = (
        f"{len(held_out.test)} examples of the held-out test split; the text of the first {len(after.predictions)} of them, "
        f"sampled at temperature {held_out.config.sampling_temperature:g}"
    )
    write_card(exported, about, evaluations, measured)
    figure = plot_metrics(folder / "metrics.csv", folder / "curves.png")
    shown = held_out.test[: min(SHOWN_COMPLETIONS, len(after.predictions))]
    completions = {"reference": [example.row.responses[0] for example in shown]}
    labels = {"teacher": "teacher", "before": "student before", "after": "student after"}
    for name, label in labels.items():
        if name in evaluations and evaluations[name].predictions:  # a cached teacher has none
            completions[label] = evaluations[name].predictions[: len(shown)]
    console.print(completions_table([example.row.instruction for example in shown], completions))
    console.print(comparison_table(evaluations, title="Held-out test split, before and after training"))
    console.print(f"student: {exported}\ncard:    {exported / 'README.md'}", soft_wrap=True)
    console.print(f"curves:  {folder / 'curves.png'}\nmetrics: {folder / 'metrics.csv'}", soft_wrap=True)
    if about.push_to_hub is not None:
        try:
            console.print(f"hub:     {push(exported, about.push_to_hub)}", soft_wrap=True)
        except RunError as error:
            warnings.warn(str(error), stacklevel=2)
    return Conclusion(evaluations, figure)
