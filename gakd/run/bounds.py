"""What the numbers among a recipe's flags may be: refused before anything is loaded, in one line that names the flag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gakd.errors import InputError
from gakd.flags import COUNT, NOT_NEGATIVE, OPTIONAL_COUNT, POSITIVE, RATE, SEED, SHARE, Bound, check, flags_of

# Flags have one meaning in all recipes, except alpha and beta, whose terms check them themselves.
BOUNDS = {
    "steps": COUNT, "epochs": COUNT, "batch_size": COUNT, "micro_batch_size": COUNT, "micro_batch_tokens": COUNT,
    "warmup_steps": OPTIONAL_COUNT, "decay_steps": COUNT, "lr_cycles": COUNT,
    "evaluate_every": OPTIONAL_COUNT, "save_every": OPTIONAL_COUNT, "keep_checkpoints": COUNT, "devices": COUNT,
    "num_nodes": COUNT, "seed": SEED, "sampling_seed": SEED,
    "learning_rate": RATE, "min_learning_rate": NOT_NEGATIVE, "discriminator_learning_rate": RATE,
    "weight_decay": NOT_NEGATIVE, "clip": Bound(above=0, infinite=True),
    "lora_rank": Bound(at_least=0, at_most=2**16), "lora_alpha": COUNT, "lora_dropout": Bound(at_least=0, below=1),
    "max_length": Bound(at_least=2), "max_prompt_length": COUNT, "max_rows": COUNT,
    "examples": COUNT, "text_examples": OPTIONAL_COUNT, "valid_text_examples": OPTIONAL_COUNT,
    "max_new_tokens": COUNT, "evaluation_batch_size": COUNT,
    "generation_batch_size": COUNT, "teacher_max_new_tokens": COUNT, "student_max_new_tokens": COUNT,
    "sampling_temperature": NOT_NEGATIVE, "teacher_temperature": NOT_NEGATIVE, "student_temperature": NOT_NEGATIVE,
    "kl_temperature": Bound(at_least=1e-2, at_most=1e2),
    "student_top_p": Bound(above=0, at_most=1), "teacher_top_p": Bound(above=0, at_most=1), "top_k": COUNT,
    "adversarial_start": OPTIONAL_COUNT, "adversarial_ramp": COUNT, "adversarial_share": NOT_NEGATIVE,
    "readout_width": Bound(at_least=1, at_most=2**20), "discriminator_width": COUNT,
    "router_balance_weight": NOT_NEGATIVE, "r1": NOT_NEGATIVE, "r2": NOT_NEGATIVE, "critic_scale": POSITIVE,
    "samples_per_prompt": COUNT, "updates": COUNT, "replay_capacity": COUNT, "clip_ratio": POSITIVE,
    "reward_scale": POSITIVE, "discount": SHARE, "teacher_share": SHARE, "student_text": SHARE, "mu": SHARE,
    "initial_threshold": SHARE, "threshold_step": SHARE, "threshold_tolerance": NOT_NEGATIVE,
    "alpha": Bound(), "beta": Bound(),
}  # fmt: skip


def check_flags(config: Any) -> None:
    """InputError for what `gakd.flags.check` refuses by these bounds, and for lengths that leave no room for a response."""
    check(config, BOUNDS)
    values = dict(flags_of(config))
    warmup, steps = values.get("warmup_steps") or 0, values.get("steps")
    if steps is not None and warmup > steps:
        raise InputError(
            f"--warmup-steps {warmup} is longer than the run of --steps {steps}: lower it to {steps} or less"
        )
    _check_schedule(values)
    share = values.get("batch_size", 0) // (values.get("devices", 1) * values.get("num_nodes", 1) or 1)
    if "replay_capacity" in values and values["replay_capacity"] < share:
        raise InputError(
            f"--replay-capacity {values['replay_capacity']} is less than the {share} sequences that a process takes in a step, "
            f"and so is never replayed: give {share} or more"
        )
    lengths = {name: value for name, value in flags_of(config) if name in {"max_length", "max_prompt_length"}}
    if len(lengths) == 2 and lengths["max_prompt_length"] >= lengths["max_length"]:
        raise InputError(
            f"--max-prompt-length {lengths['max_prompt_length']} leaves no room for a response in --max-length "
            f"{lengths['max_length']}: raise the second, or lower the first"
        )


def _check_schedule(values: Mapping[str, Any]) -> None:
    """InputError for flags of another schedule than the chosen one, and for a decay that is longer than what is left for it."""
    for name, of in (("decay_steps", "warmup_stable_decay"), ("lr_cycles", "cosine_with_restarts")):
        if values.get(name) is not None and values.get("lr_schedule") != of:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{flag} is of --lr-schedule {of}, got {values.get('lr_schedule')}: give that, or leave {flag} out"
            )
    steps, warmup, decay = (values.get(name) or 0 for name in ("steps", "warmup_steps", "decay_steps"))
    if steps and warmup + decay > steps:
        raise InputError(
            f"--warmup-steps {warmup} and --decay-steps {decay} are longer than the run of --steps {steps}: lower one of them"
        )
