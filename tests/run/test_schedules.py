"""Learning rates: the default to the last bit of its formula, the others to that of the scheduler that transformers steps."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from transformers import get_scheduler

from gakd.errors import InputError
from gakd.run import RunConfig
from gakd.run.bounds import check_flags
from gakd.run.config import learning_rate_at
from gakd.run.schedules import LRSchedule

TOTAL, PEAK, LOWEST = 23, 3e-3, 1e-5
THEIRS: dict[str, dict[str, Any]] = {
    "cosine": {}, "cosine_with_restarts": {"num_cycles": 3}, "linear": {}, "polynomial": {"lr_end": LOWEST}, "constant": {},
    "constant_with_warmup": {}, "inverse_sqrt": {},
    "warmup_stable_decay": {"num_decay_steps": 6, "min_lr_ratio": LOWEST / PEAK},
}  # fmt: skip


def config(schedule: str, warmup: int = 0, **more: Any) -> RunConfig:
    own = {"learning_rate": PEAK, "min_learning_rate": LOWEST, "warmup_steps": warmup, "steps": TOTAL}
    own |= {"decay_steps": 6} if schedule == "warmup_stable_decay" else {}
    own |= {"lr_cycles": 3} if schedule == "cosine_with_restarts" else {}
    return RunConfig(lr_schedule=schedule, **own | more)  # type: ignore[arg-type]


def rates(settings: RunConfig) -> list[float]:
    return [learning_rate_at(settings, step, TOTAL) for step in range(TOTAL)]


@pytest.mark.parametrize("warmup", [0, 1, 5, TOTAL])
def test_the_default_is_half_a_cosine_whose_last_step_has_the_lowest_rate(warmup):
    expected = []
    for step in range(TOTAL):
        if step < warmup:
            expected.append(PEAK * (step + 1) / warmup)
        else:
            progress = min((step - warmup) / max(TOTAL - warmup - 1, 1), 1.0)
            expected.append(LOWEST + (PEAK - LOWEST) * (1 + math.cos(math.pi * progress)) / 2)
    assert rates(config("cosine_with_min_lr", warmup)) == expected
    assert RunConfig().lr_schedule == "cosine_with_min_lr"


def test_every_name_is_compared():
    assert {*THEIRS, "cosine_with_min_lr"} == {*get_args(LRSchedule)}


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("schedule", THEIRS)
def test_behind_the_warm_up_rates_are_those_of_the_scheduler_that_transformers_steps(schedule, warmup):
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=PEAK)
    theirs = get_scheduler(schedule, optimizer, warmup, TOTAL, THEIRS[schedule])
    expected = []
    for _ in range(TOTAL):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    found = rates(config(schedule, warmup))
    assert found[warmup:] == pytest.approx(expected[warmup:], rel=1e-15)
    assert found[:warmup] == [PEAK * (step + 1) / 4 for step in range(warmup)]  # which theirs begins at 0
    assert (len({*found[warmup:]}) == 1) == ("constant" in schedule)


def test_a_lowest_rate_at_the_peak_is_a_constant_one():
    for schedule in ("cosine_with_min_lr", "polynomial", "warmup_stable_decay"):
        assert rates(config(schedule, min_learning_rate=1.0)) == [PEAK] * TOTAL


def test_a_decay_without_a_length_is_a_tenth_and_one_that_is_too_long_what_is_left():
    tenth = rates(config("warmup_stable_decay", decay_steps=None))
    assert tenth == rates(config("warmup_stable_decay", decay_steps=2))
    assert tenth[:-2] == [PEAK] * (TOTAL - 2)
    assert tenth[-1] < PEAK
    assert rates(config("warmup_stable_decay", 5, decay_steps=100)) == rates(
        config("warmup_stable_decay", 5, decay_steps=TOTAL - 5)
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"decay_steps": 3}, "--decay-steps is of --lr-schedule warmup_stable_decay, got cosine_with_min_lr: give that, or"),
        ({"lr_cycles": 3, "lr_schedule": "cosine"}, "--lr-cycles is of --lr-schedule cosine_with_restarts, got cosine"),
        (
            {"lr_schedule": "warmup_stable_decay", "decay_steps": 7, "warmup_steps": 4, "steps": 10},
            "--warmup-steps 4 and --decay-steps 7 are longer than the run of --steps 10: lower one of them",
        ),
    ],
)  # fmt: skip
def test_flags_of_another_schedule_are_refused_in_one_line(flags, message):
    with pytest.raises(InputError, match=message):
        check_flags(RunConfig(**flags))
