"""What is wrong with a run, said before anything is loaded to train: one line each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gakd.data import Data, DataConfig, Row
from gakd.data.config import Template
from gakd.data.examples import encode_prompts
from gakd.data.rows import DataError
from gakd.errors import InputError
from gakd.flags import flags_of, group_of
from gakd.logging.loggers import check_installed
from gakd.machine import is_first_process, memory
from gakd.models.config import ModelConfig
from gakd.models.hub import check_push
from gakd.models.loading import load_tokenizer, window_of
from gakd.objective import Objective
from gakd.planning.config import GB, PlanConfig
from gakd.planning.estimate import largest_micro_batch, plan
from gakd.run.bounds import check_flags
from gakd.run.config import RunConfig
from gakd.run.optimizers import check_optimizer
from gakd.run.turn_ends import end_warnings
from gakd.weights import Balanced, Cosine, Ramp, Stepwise, Weight, weight_at, weight_text

_SMALL = 10**8  # bytes of weights
_LATER = 10**12  # a step behind the end of every schedule
# One of each shape that a template may set in its own way.
SAMPLES = (
    Row("What is a prime number?"),
    Row("Sort these.", "3, 1, 2"),
    Row("And two?", history=({"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"})),
    Row("Who are you?", history=({"role": "system", "content": "Answer in one word."},)),
)


def check_run(config: RunConfig, recipe_config: Any) -> None:
    """Refuse a run that cannot be, warn of one that may not be meant: before processes start and before models are loaded.

    `recipe_config` is the dataclass of all flags. Raises InputError for what `check_flags` refuses, for devices that the machine
    does not have, for a push that the hub would refuse, and for tokenizers that cannot be loaded. Of several processes, the
    first one alone looks at models.
    """
    check_flags(config)
    check_flags(recipe_config)
    check_devices(config.devices, torch.cuda.device_count())
    check_optimizer(config.optimizer, config.strategy)
    for name in config.log_to:
        check_installed(name)
    for name, value in flags_of(recipe_config):
        if config.export == "best" and name in {"evaluate_every", "valid_text_examples"} and not value:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"--export best chooses by the ROUGE-L of validations: set {flag} above 0")
    if config.push_to_hub is not None and is_first_process() and (unreached := check_push(config.push_to_hub)):
        warnings.warn(unreached, stacklevel=2)
    models, data = group_of(recipe_config, ModelConfig), group_of(recipe_config, DataConfig)
    if models is None or not is_first_process():
        return
    check_windows(models, None if data is None else data.max_length)
    found = model_warnings(models, "chat" if data is None else data.template)
    if torch.cuda.is_available() or _worth_planning(models):
        settings = planned(config, recipe_config, models, data or DataConfig())
        found.append(memory_warning(settings, config.micro_batch_tokens is not None))
    for warning in filter(None, found):
        warnings.warn(warning, stacklevel=2)


def check_devices(asked: int, gpus: int) -> None:
    """InputError where there are GPUs, and fewer than are asked for; on CPUs a device is a process."""
    if 0 < gpus < asked:
        raise InputError(
            f"--devices {asked}, and this machine has {gpus}: give --devices {gpus}, or use more nodes (--num-nodes)"
        )


def check_validation(evaluate_every: int, data: Data) -> None:
    """InputError where a run is to validate and has no rows for it."""
    if evaluate_every and not len(data.valid):
        raise InputError(
            f"{'the data' if data.config is None else data.config.dataset} has no rows to validate on: give more, "
            f"--valid-dataset FILE, or --evaluate-every 0"
        )


def objective_warnings(objective: Objective, total: int) -> list[str]:
    """What of an objective plays no part in a run of `total` steps, by the schedules of its weights.

    Where all weights are 0 in every step, and each term whose schedule is 0 in all of them. A weight that is 0 for good is meant.
    """
    weights = {term.name: weight.share if isinstance(weight, Balanced) else weight for weight, term in objective.terms}
    silent = {
        name: weight for name, weight in weights.items() if not any(weight_at(weight, step) for step in range(total))
    }
    if weights and silent.keys() == weights.keys():
        return [f"all weights are 0 in every one of {total} steps: {objective}; nothing is learned, give one above 0"]
    return [
        f"{name} never begins: its weight, {weight_text(weight)}, is 0 in all {total} steps; start it earlier, or train longer"
        for name, weight in silent.items()
        if callable(weight) and not _is_off(weight)
    ]


def _is_off(weight: Weight) -> bool:
    """Whether a schedule is 0 for good. A user's own function is asked about no step that is not trained."""
    return isinstance(weight, (Ramp, Cosine, Stepwise)) and weight_at(weight, _LATER) == 0


def check_windows(config: ModelConfig, max_length: int | None) -> None:
    """InputError where a model reads fewer tokens than a sequence may have: beyond, positions are missing or untrained."""
    for name in dict.fromkeys((config.student, config.teacher if config.teacher_cache is None else None)):
        window = None if name is None else window_of(name, config.trust_remote_code)
        if window is not None and max_length is not None and max_length > window:
            raise InputError(
                f"{name} reads at most {window} tokens, --max-length is {max_length}: lower it to {window}"
            )


def model_warnings(config: ModelConfig, template: Template) -> list[str | None]:
    """What about the pair's tokenizers and settings would train a student on something else than is meant.

    Their vocabularies are compared where they must agree (`load_shared_tokenizer`).
    """
    student, teacher = load_tokenizer(config.student, config.trust_remote_code), None
    if config.teacher is not None and config.teacher_cache is None and config.teacher != config.student:
        teacher = load_tokenizer(config.teacher, config.trust_remote_code)
    found: list[str | None] = [*end_warnings(config, template, student, teacher)]
    if teacher is not None and student.get_vocab() == teacher.get_vocab():
        found.append(prompt_warning(student, teacher, (config.student, str(config.teacher)), template))
    return found


def prompt_warning(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, names: tuple[str, str], template: Template
) -> str | None:
    """Where the teacher's template would set a prompt otherwise: it reads the student's, which it was not trained on."""
    effect = f"the teacher reads prompts as {names[0]} sets them, which may not be what it was trained on"
    if template == "chat" and student.chat_template and not teacher.chat_template:
        return f"teacher {names[1]} has no chat template: {effect}"
    for row in SAMPLES:
        try:
            (ours,), (theirs,) = (encode_prompts([row], tokenizer, template) for tokenizer in (student, teacher))
        except DataError:  # a template may refuse, say, a system prompt; a row that does so is refused with its line
            continue
        if ours != theirs:
            place = next(
                (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
                min(len(ours), len(theirs)),
            )
            texts = f"{_excerpt(student, ours, place)} and {_excerpt(teacher, theirs, place)}"
            return (
                f"student {names[0]} and teacher {names[1]} set prompts differently, at token {place} of {row.instruction!r} "
                f"they have {texts}: {effect}"
            )
    return None


def _excerpt(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], place: int) -> str:
    return repr(str(tokenizer.decode(list(ids[place : place + 8])))) if place < len(ids) else "nothing"


def planned(config: RunConfig, recipe_config: Any, models: ModelConfig, data: DataConfig) -> PlanConfig:
    """The planner's flags of a run on this machine's devices; what a recipe has besides is not part of its estimate."""
    on_gpu, readout_width = torch.cuda.is_available(), getattr(recipe_config, "readout_width", None)
    flags = dict(flags_of(recipe_config))
    share, tokens = config.batch_size // (config.devices * config.num_nodes), config.micro_batch_tokens
    # Of the longest ones; of shorter ones there are more, and as many positions.
    sequences = config.micro_batch_size if tokens is None else max(tokens // data.max_length, 1)
    return PlanConfig(
        models.student, models.teacher, models.teacher_cache is not None, models.student_layers, models.lora_rank,
        models.lora_dropout, models.lora_targets, models.activation_checkpointing, config.optimizer,
        micro_batch_size=min(sequences, max(share, 1)), accumulate=share > sequences, length=data.max_length,
        discriminator=readout_width is not None, readout_width=readout_width or 1,
        discriminator_width=getattr(recipe_config, "discriminator_width", 256),
        devices=config.devices, num_nodes=config.num_nodes, strategy=config.strategy, precision=config.precision,
        device="cuda" if on_gpu else "cpu",
        # On a CPU the processes of a node share its memory.
        device_memory=(torch.cuda.get_device_properties(0).total_memory if on_gpu else memory() / config.devices) / GB,
        # A recipe without these flags evaluates nothing.
        examples=flags.get("examples", 0), text_examples=flags.get("text_examples", 0),
        max_new_tokens=flags.get("max_new_tokens", 1), evaluation_batch_size=flags.get("evaluation_batch_size", 1),
        on_own_text=flags.get("student_max_new_tokens") is not None,
    )  # fmt: skip


def memory_warning(config: PlanConfig, by_tokens: bool = False) -> str | None:
    """Where a run needs more memory than a device has, by the planner's estimate; None where it has none for these models.

    `by_tokens`: its micro-batches are bounded by `--micro-batch-tokens`, which is then what to lower.
    """
    try:
        estimate = plan(config)
        if estimate.fits:
            return None
        most = largest_micro_batch(config)
    except Exception:  # whatever keeps an unusual model from being planned is no reason against training it
        return None
    flag, each = ("--micro-batch-tokens", config.length) if by_tokens else ("--micro-batch-size", 1)
    remedy = f"{flag} {most * each} fits" if most else f"not even {flag} {each} fits"
    return (
        f"a step needs {estimate.peak / GB:.1f} GB by estimate and each device has {config.device_memory:.1f} GB: {remedy}; "
        f"--activation-checkpointing and --strategy fsdp2 need less, and `gakd plan` shows what goes where"
    )


def _worth_planning(config: ModelConfig) -> bool:
    """Whether a model is larger than what any machine has room for: planning takes a second."""
    folders = [Path(name).expanduser() for name in (config.student, config.teacher) if name is not None]
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in folders]
    return not all(0 < size < _SMALL for size in sizes)
