"""Text that a model writes for training: responses to a dataset's prompts, batch by batch, after any interruption the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from gakd.data import Data, DataConfig, DataError, Example, spread
from gakd.data.examples import encode_prompts
from gakd.data.formats import row_from
from gakd.data.rows import record_of
from gakd.errors import InputError
from gakd.logging.progress import ProgressView
from gakd.models.streaming import with_weights
from gakd.run.config import RunConfig
from gakd.samplers.config import Sampling, TeacherTextConfig
from gakd.samplers.generation import Generation, decode, generate
from gakd.samplers.resumable import ResumableRows
from gakd.seeds import seed_of
from gakd.teachers.cached import CachedTeacher
from gakd.teachers.local import LocalTeacher


def teacher_examples(
    teacher: LocalTeacher | CachedTeacher,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    config: TeacherTextConfig,
    run: RunConfig,
) -> list[Example]:
    """Training examples whose responses the teacher wrote, one a prompt, into `OUTPUT_DIR/teacher-text/train.jsonl`.

    No more prompts are answered than `run.steps` can use, evenly spaced over the training set. Call it inside
    `Run.main_first()`: the first process writes what is missing, the others find it whole. Examples hold the very tokens
    that were drawn, which their text need not encode to. Those cut by `teacher_max_new_tokens` stay, without an
    end-of-text token, like any response that is cut: leaving them out would leave out what is long. Empty ones are left
    out. Raises InputError for a cached teacher, which cannot write, for settings out of range, and where nothing is left.
    """
    if isinstance(teacher, CachedTeacher):
        raise InputError(
            "a teacher cache holds hidden states and writes no text: write it with `gakd generate`, cache the "
            "teacher on that text, then run recipes/gakd.py (or baselines/sft.py) with --dataset teacher-text "
            "--valid-dataset, --test-dataset and --teacher-cache"
        )
    if config.teacher_max_new_tokens < 1 or config.teacher_temperature < 0 or config.generation_batch_size < 1:
        raise InputError(
            f"a teacher writes at least 1 token to at least 1 prompt a batch, at a temperature of at least 0, got {config}"
        )
    count = len(data.train) if run.steps is None else min(run.steps * run.batch_size, len(data.train))
    prompts, dataset = spread(data.train, count), data.config or DataConfig()
    parameter = next(teacher.model.parameters())
    settings = asdict(config) | asdict(dataset) | {
        "teacher": getattr(teacher.model, "name_or_path", ""), "dtype": str(parameter.dtype),
        "device": "cpu" if parameter.is_meta else parameter.device.type, "seed": run.seed, "prompts": count,
    }  # fmt: skip
    written = ResumableRows(run.output_dir / "teacher-text" / "train.jsonl", settings)
    if written.batches * config.generation_batch_size < count:
        print(f"The teacher answers {count} prompts into {written.path}", flush=True)
    sampling = Sampling(config.teacher_max_new_tokens, config.teacher_temperature, seed=run.seed)
    write_responses(
        written, lambda: with_weights(teacher.model), tokenizer, prompts, sampling, config.generation_batch_size,
        token_ids=True,
    )  # fmt: skip
    with written.path.open(encoding="utf-8") as file:
        read = [json.loads(line) for line in file]
    if not read:
        raise InputError(
            f"all {count} responses of the teacher are empty: does it follow the template {dataset.template}?"
        )
    rows = [row_from(record, f"{written.path}:{number}") for number, record in enumerate(read, 1)]
    prompt_ids = encode_prompts(rows, tokenizer, dataset.template, dataset.thinking, dataset.date)
    examples, vocabulary = [], len(tokenizer)
    for row, record, prompt in zip(rows, read, prompt_ids, strict=True):
        # A padded head may draw tokens that stand for nothing, and that a student's smaller one may not have.
        drawn = [token for token in record["token_ids"] if token < vocabulary]
        response_ids = Generation(drawn, record["end"]).response_ids
        examples.append(Example(prompt, response_ids[: dataset.max_length - len(prompt)], row))
    return examples


def write_responses(
    written: ResumableRows,
    load: Callable[[], nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    sampling: Sampling,
    batch_size: int,
    drop_unfinished: bool = False,
    token_ids: bool = False,
) -> None:
    """Responses to the prompts of `examples`, appended to `written` from where it stands; `load` is called if any are missing.

    Counts `rows` and `unfinished` responses in `written.totals`. The caller's random numbers stay as they are.
    """
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    if written.batches == len(batches):
        return
    model = load()
    view = ProgressView(len(batches), written.batches, shown=True)
    for index in range(written.batches, len(batches)):
        # A seed for each batch: what it draws does not depend on where a run was interrupted.
        own = replace(sampling, seed=seed_of(sampling.seed, index))
        generations = generate(model, tokenizer, [example.prompt_ids for example in batches[index]], own, batch_size)
        texts = decode(tokenizer, generations)
        batch = records(batches[index], texts, generations, drop_unfinished, token_ids)
        unfinished = sum(not generation.finished for generation in generations)
        written.append(batch, {"rows": len(batch), "unfinished": unfinished})
        tokens = sum(len(generation.ids) for generation in generations)
        view.update(index + 1, tokens, {"mean length": tokens / len(generations)})
    view.close()


def records(
    examples: Sequence[Example],
    texts: Sequence[str],
    generations: Sequence[Generation],
    drop_unfinished: bool = False,
    token_ids: bool = False,
) -> list[dict[str, Any]]:
    """Records as `gakd.data` reads them; those that it would refuse, such as empty responses, are left out.

    `finished` is False where a response was cut; `token_ids`, on request, are those of the response without its `end`.
    """
    found = []
    for example, text, generation in zip(examples, texts, generations, strict=True):
        record = record_of(example.row._replace(responses=(text,)))
        try:
            row_from(record, "")
        except DataError:
            continue
        if generation.finished or not drop_unfinished:
            own_ids = {"token_ids": generation.ids, "end": generation.end} if token_ids else {}
            found.append(record | {"finished": generation.finished} | own_ids)
    return found
