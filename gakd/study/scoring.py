"""What a trained student is measured by: sums and counts of each test prompt, so that error bars can resample prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from gakd.data import DataConfig, Example, Split, load_split
from gakd.evaluation import divergence_sums, rouge_l, teacher_outputs
from gakd.files import write_json
from gakd.losses.divergences import CrossEntropy, ForwardKL, ReverseKL
from gakd.losses.fused import token_values
from gakd.models.loading import load_model, load_tokenizer
from gakd.samplers.config import Sampling
from gakd.samplers.generation import Generation, decode, generate, padding_id
from gakd.study.text_measures import BUCKETS, bucket_of, distinct_n, repetition
from gakd.study.two_sample import two_sample_correct
from gakd.study.world import World
from gakd.types import TeacherOutput

BATCH = 256  # prompts per generated batch: the models are tiny, and a step costs about the same for many as for few
READ_BATCH = 32
BOUNDS = (0.15, 0.4)  # of the longest response: up to where a reference is short, and medium
OWN_TEXT_SEEDS = 2  # sampling seeds whose text the teacher reads, which costs more than to write it
TEACHER_SEED = 1000  # added to the seeds of the text that the students' is compared with

PromptValues = dict[str, dict[str, list[float]]]  # measure -> sums and counts, a number a prompt each


class Scoring(NamedTuple):
    """How students are measured: alike for all of them."""

    world: World
    data: DataConfig
    split: Split
    seeds: tuple[int, ...]  # of sampling
    longest_response: int  # tokens after which a response is cut
    rouge_alone: bool = False  # what learning rates are chosen by

    def responses(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], first_seed: int = 0
    ) -> list[list[Generation]]:
        """For each sampling seed a response to each prompt; `first_seed` is added to them."""
        prompts = [example.prompt_ids for example in examples]
        samplings = [Sampling(self.longest_response, seed=first_seed + seed) for seed in self.seeds]
        return [generate(model, tokenizer, prompts, sampling, BATCH) for sampling in samplings]

    @property
    def teacher_text(self) -> Path:
        return self.world.folder / f"teacher-{self.split}-{'-'.join(map(str, self.seeds))}.json"


def write_teacher_text(scoring: Scoring) -> None:
    """The teacher's responses, token ids of each seed, which students' are told apart from; nothing where they are."""
    if not scoring.teacher_text.exists():
        teacher, tokenizer = load_model(scoring.world.teacher), load_tokenizer(scoring.world.teacher)
        examples = load_split(scoring.data, tokenizer, scoring.split)
        written = scoring.responses(teacher, tokenizer, examples, TEACHER_SEED)
        write_json(scoring.teacher_text, [[generation.ids for generation in of_seed] for of_seed in written])


def score(name: str, scoring: Scoring) -> PromptValues:
    """Every measure of one student, a folder or another name of a model; means over the sampling seeds."""
    student, tokenizer = load_model(name), load_tokenizer(name)
    examples = load_split(scoring.data, tokenizer, scoring.split)
    written = scoring.responses(student, tokenizer, examples)
    rouge = [
        [
            rouge_l(text, example.row.responses)
            for text, example in zip(decode(tokenizer, of_seed), examples, strict=True)
        ]
        for of_seed in written
    ]
    values: PromptValues = {}
    _add(values, "rouge_l", [fmean(of_prompt) for of_prompt in zip(*rouge, strict=True)], [1.0] * len(examples))
    if scoring.rouge_alone:
        return values
    teacher = load_model(scoring.world.teacher)
    values |= _of_held_out_text(student, teacher, examples, padding_id(tokenizer))
    values |= _of_written_text(written, examples, json.loads(scoring.teacher_text.read_text()))
    for of_seed in written[:OWN_TEXT_SEEDS]:
        for name, of_prompts in _of_own_text(student, teacher, tokenizer, examples, of_seed).items():
            _add(values, name, of_prompts["sums"], of_prompts["counts"])
    bounds = tuple(int(share * scoring.longest_response) for share in BOUNDS)
    return values | _by_bucket(values, examples, bounds, ("rouge_l", "own_reverse_kl"))


def _add(values: PromptValues, name: str, sums: Sequence[float], counts: Sequence[float]) -> None:
    """Put a measure in, or add to it."""
    known = values.setdefault(name, {"sums": [0.0] * len(sums), "counts": [0.0] * len(sums)})
    for part, own in (("sums", sums), ("counts", counts)):
        known[part] = [one + other for one, other in zip(known[part], own, strict=True)]


def _of_held_out_text(
    student: nn.Module, teacher: nn.Module, examples: Sequence[Example], padding: int
) -> PromptValues:
    """Cross entropy and divergences to the teacher on the references, per token."""
    tokens = [float(len(example.response_ids)) for example in examples]
    found = divergence_sums(student, teacher, examples, padding, READ_BATCH)
    return {name: {"sums": sums, "counts": tokens} for name, sums in found.items()}


def _of_own_text(
    student: nn.Module,
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    written: Sequence[Generation],
) -> PromptValues:
    """What the teacher says of the student's responses.

    `sequence_kl` sums KL(student‖teacher) over a response: its mean is the divergence of whole texts, sampled.
    """
    padding = padding_id(tokenizer)
    own = [
        example._replace(response_ids=generation.response_ids)
        for example, generation in zip(examples, written, strict=True)
    ]
    outputs = teacher_outputs(teacher, own, padding, READ_BATCH)
    found = divergence_sums(student, outputs, own, padding, READ_BATCH, [ForwardKL(), ReverseKL()])
    tokens = [float(len(example.response_ids)) for example in own]
    likelihood = [_log_likelihood(output, example) for output, example in zip(outputs, own, strict=True)]
    ones = [1.0] * len(own)
    return {
        "own_forward_kl": {"sums": found["forward_kl"], "counts": tokens},
        "own_reverse_kl": {"sums": found["reverse_kl"], "counts": tokens},
        "sequence_kl": {"sums": found["reverse_kl"], "counts": ones},
        "teacher_log_likelihood": {"sums": likelihood, "counts": tokens},
    }


def _log_likelihood(output: TeacherOutput, example: Example) -> float:
    labels_N = torch.tensor(example.response_ids, device=output.hidden_NH.device)
    return -float(
        token_values(output.hidden_NH, output.head, labels_N, [CrossEntropy()])["cross_entropy"].double().sum()
    )


def _of_written_text(
    written: Sequence[Sequence[Generation]], examples: Sequence[Example], teacher_text: Sequence[Sequence[list[int]]]
) -> PromptValues:
    """Measures of token ids alone; `distinct_2` belongs to a corpus, so each prompt has the corpus's."""
    values: PromptValues = {}
    ones, prompts = [1.0] * len(examples), range(len(examples))
    lengths = [float(len(example.response_ids)) for example in examples]
    for of_seed in written:
        ids = [generation.ids for generation in of_seed]
        _add(values, "repetition", [repetition(own) for own in ids], ones)
        _add(values, "distinct_2", [distinct_n(ids, 2)] * len(ids), ones)
        # As the reference's, with its end where it has one.
        _add(values, "length_ratio", [float(len(one.ids) + one.finished) for one in of_seed], lengths)
        _add(values, "finished", [float(generation.finished) for generation in of_seed], ones)
    first = [generation.ids for of_seed in written for generation in of_seed]
    second = [ids for of_seed in teacher_text for ids in of_seed]
    correct = two_sample_correct(first, second, [prompt for _ in written for prompt in prompts])
    values["two_sample"] = {"sums": correct.reshape(len(written), -1).mean(0).tolist(), "counts": ones}
    return values


def _by_bucket(
    values: PromptValues, examples: Sequence[Example], bounds: tuple[int, ...], names: Sequence[str]
) -> PromptValues:
    """Measures over the prompts whose reference is short, medium, long; a bucket without prompts has none."""
    own = [bucket_of(len(example.response_ids), bounds) for example in examples]
    return {
        f"{name}/{bucket}": {
            part: [number * (one == bucket) for number, one in zip(values[name][part], own, strict=True)]
            for part in ("sums", "counts")
        }
        for name in names
        for bucket in BUCKETS
        if bucket in own
    }
