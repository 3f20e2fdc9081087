"""One evaluation of a student: distance to its teacher on the references' tokens, and the text it writes itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from torch import nn
from transformers import PreTrainedTokenizerBase

from gakd.data import Example
from gakd.evaluation.teacher_metrics import Teacher, divergences_to_teacher
from gakd.evaluation.text_metrics import corpus_exact_match, rouge_l
from gakd.losses.divergences import ReverseKL
from gakd.run.ranks import ALONE, Ranks
from gakd.samplers.config import Sampling
from gakd.samplers.generation import Generation, decode, generate, padding_id


@dataclass
class Evaluation:
    """Means over a corpus; `dataclasses.asdict` of it is JSON.

    The first three are over the tokens of the dataset's responses, in nats. The others are over the student's own
    responses, and over seeds where there are several; all are None where none were generated.
    """

    cross_entropy: float
    forward_kl: float | None = None  # None without a teacher
    reverse_kl: float | None = None
    rouge_l: float | None = None  # percent
    exact_match: float | None = None  # percent
    response_length: float | None = None  # tokens, without the end-of-text token
    finished: float | None = None  # share of responses that reached their end-of-text token, 0 to 1
    own_reverse_kl: float | None = None  # KL(student‖teacher) per token of the student's own responses, in nats
    predictions: list[str] = field(default_factory=list)  # of the first seed
    seeds: list[int] = field(default_factory=list)
    by_seed: dict[str, list[float]] = field(default_factory=dict)  # metric of generated text -> its value for each seed
    std: dict[str, float] = field(default_factory=dict)  # sample standard deviation over seeds; empty for one seed
    rouge_l_by_prompt: list[list[float]] = field(default_factory=list)  # for each seed, of each prompt; percent


def evaluate(
    student: nn.Module,
    teacher: Teacher | None,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    sampling: Sampling,
    *,
    text_examples: int | None = None,
    batch_size: int = 8,
    seeds: Sequence[int] | None = None,
    reader: nn.Module | None = None,
    on_progress: Callable[[int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Divergences over all `examples`; text metrics over the first `text_examples` of them (None: all, 0: none).

    `teacher` as in `divergences_to_teacher`. `seeds` replaces `sampling.seed` and generates once for each;
    temperature 0 knows no chance, so it takes one. `reader` is a teacher that reads what the student writes. `on_progress`
    as in `generate`. Batches are dealt to `ranks`, each of which gets the same evaluation.
    """
    chosen = examples if text_examples is None else examples[:text_examples]
    seeds = list(seeds or [sampling.seed])
    if sampling.temperature == 0 and len(seeds) > 1:
        raise ValueError(f"temperature 0 gives the same text for every seed, got seeds {seeds}: give one, or sample")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"each seed counts once in the mean, got {seeds}: drop the repeated ones")
    divergences = divergences_to_teacher(student, teacher, examples, padding_id(tokenizer), batch_size, ranks=ranks)
    result = Evaluation(divergences["cross_entropy"], divergences.get("forward_kl"), divergences.get("reverse_kl"))
    if not chosen:
        return result

    prompts = [example.prompt_ids for example in chosen]
    references = [example.row.responses for example in chosen]
    for seed in seeds:
        own_sampling = replace(sampling, seed=seed)
        generations = generate(student, tokenizer, prompts, own_sampling, batch_size, on_progress, ranks=ranks)
        texts = decode(tokenizer, generations)
        result.predictions = result.predictions or texts
        scores = [rouge_l(text, of_prompt) for text, of_prompt in zip(texts, references, strict=True)]
        result.rouge_l_by_prompt.append(scores)
        metrics = {"rouge_l": fmean(scores), **_text_metrics(texts, references, generations)}
        if reader is not None:
            padding = padding_id(tokenizer)
            own = [
                example._replace(response_ids=generation.response_ids)
                for example, generation in zip(chosen, generations, strict=True)
            ]
            found = divergences_to_teacher(student, reader, own, padding, batch_size, [ReverseKL()], ranks)
            metrics["own_reverse_kl"] = found["reverse_kl"]
        for name, value in metrics.items():
            result.by_seed.setdefault(name, []).append(value)
    result.seeds = seeds
    for name, values in result.by_seed.items():
        setattr(result, name, fmean(values))
    if len(seeds) > 1:
        result.std = {name: stdev(values) for name, values in result.by_seed.items()}
    return result


def _text_metrics(
    texts: Sequence[str], references: Sequence[Sequence[str]], generations: Sequence[Generation]
) -> dict[str, float]:
    return {
        "exact_match": corpus_exact_match(texts, references),
        "response_length": fmean(len(generation.ids) for generation in generations),
        "finished": math.fsum(generation.finished for generation in generations) / len(generations),
    }
