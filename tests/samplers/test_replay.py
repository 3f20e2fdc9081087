"""The adaptive off-policy sampler: how often each source comes, what is replayed, the same after a resume and on all ranks."""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from gakd.samplers import AdaptiveThreshold, Mixture, ReplaySampler, Sample, dataset_sampler
from gakd.weights import ramp, weight_at
from tests.processes import two

SAMPLES = [Sample([0, 1], [2, 3]), Sample([4], [5]), Sample([6, 7, 8], [9])]
TOTAL = 40


class Student:
    """Writes the step, the place and its name, and counts its calls."""

    def __init__(self, name: int = 0) -> None:
        self.name, self.calls = name, 0

    def __call__(self, samples, step):
        self.calls += 1
        return [sample._replace(response_ids=[step, place, self.name]) for place, sample in enumerate(samples)]


def texts(count: int) -> list[Sample]:
    return [Sample([index], [index] * (1 + index % 3)) for index in range(count)]


def filled(threshold, count: int, **options) -> ReplaySampler:
    sampler = ReplaySampler(Student(), threshold, TOTAL, **options)
    sampler.buffer.extend(texts(count))
    return sampler


def near(count: int, probability: float, draws: int) -> bool:
    """Within 4.5 standard errors of a binomial; exactly where it is 0 or 1."""
    return abs(count - probability * draws) <= 4.5 * math.sqrt(draws * probability * (1 - probability)) + 1e-9


FRESH = {
    "decreasing": (1.0, 0.75, 0.0),
    "constant": (0.5, 0.5, 0.5),
    "increasing": (0.0, 0.25, 1.0),
}  # at 0, 10, 40 of 40


@pytest.mark.parametrize("schedule", FRESH)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8, 1.0])
def test_each_source_comes_as_often_as_the_formula_says(schedule, threshold):
    draws = 1500
    for step, fresh in zip((0, 10, 40), FRESH[schedule], strict=True):
        for held in (4, 5):  # of a capacity of 5
            seen = Counter()
            for seed in range(draws):
                sampler = filled(threshold, held, capacity=5, schedule=schedule, seed=seed)
                sampler(SAMPLES, step)
                seen[sampler.source] += 1
            student = threshold * fresh if held == 5 else threshold
            expected = {"student": student, "replay": threshold - student, "dataset": 1 - threshold}
            for source, probability in expected.items():
                assert near(seen[source], probability, draws), (step, held, source)


def test_one_draw_r_decides_dataset_up_to_r_replay_up_to_2r_then_the_student():
    """`new` is half the threshold: of the thresholds i / 20, the first above r and the first above 2r change the source."""
    for step in range(TOTAL):
        sources = []
        for index in range(21):
            sampler = filled(index / 20, 5, capacity=5, schedule="constant", seed=3)
            sampler(SAMPLES, step)
            sources.append(sampler.source)
        taken, fresh = sources.count("dataset"), 21 - sources.count("student")
        assert sources == ["dataset"] * taken + ["replay"] * (fresh - taken) + ["student"] * (21 - fresh)
        assert fresh in (min(2 * taken - 1, 21), min(2 * taken, 21))


@pytest.mark.parametrize("threshold", [1.0, 0.1])
def test_a_replay_is_uniform_without_replacement(threshold):
    """Also under a low threshold, where only small draws of r lead to a replay: the two draws are independent."""
    held, count, replays, places = 7, 3, 0, Counter()
    for seed in range(3000 if threshold == 1 else 20000):
        sampler = filled(threshold, held, capacity=held, schedule="increasing", seed=seed)
        answer = sampler(SAMPLES, 0)
        if sampler.source == "replay":
            drawn = [sample.prompt_ids[0] for sample in answer]
            assert len(set(drawn)) == count
            assert all(sample == texts(held)[index] for sample, index in zip(answer, drawn, strict=True))
            places.update(enumerate(drawn))
            replays += 1
    assert replays > 1500
    for index in range(held):
        assert near(sum(places[place, index] for place in range(count)), count / held, replays)
        assert all(near(places[place, index], 1 / held, replays) for place in range(count))


def test_the_buffer_keeps_the_last_that_were_written_and_a_replay_takes_nothing_out():
    sampler, written = ReplaySampler(Student(), 0.9, TOTAL, capacity=7, schedule="constant", seed=1), []
    sources = []
    for step in range(TOTAL):
        answer = sampler(SAMPLES, step)
        sources.append(sampler.source)
        written += answer if sampler.source == "student" else []
        assert list(sampler.buffer) == written[-7:]
    assert sampler.student.calls == sources.count("student") > 3
    assert {"dataset", "student", "replay"} == set(sources)
    assert "replay" not in sources[: [*sources].index("student") + 2]  # 3 and 6 of 7 are not full


def test_a_step_of_more_sequences_than_the_buffer_holds_is_refused():
    sampler = filled(1.0, 2, capacity=2, schedule="increasing")
    with pytest.raises(ValueError, match="a buffer of 2 sequences never replays a step of 3: give a capacity of that"):
        sampler(SAMPLES, 0)
    sampler(SAMPLES[:2], 0)
    assert sampler.source == "replay"


def test_at_threshold_zero_the_datasets_own_objects_come_back_and_the_student_is_never_asked():
    sampler = ReplaySampler(Student(), AdaptiveThreshold(), TOTAL)
    for step in range(TOTAL):
        answer = sampler(SAMPLES, step)
        assert all(own is other for own, other in zip(answer, SAMPLES, strict=True))
    assert (sampler.student.calls, len(sampler.buffer), sampler.source) == (0, 0, "dataset")


def test_the_threshold_rises_where_the_loss_has_risen_since_the_last_rise():
    losses = [2.0, 1.0, 2.05, 2.125, 1.5, 2.2, 2.25, 2.25, 9.0, 9.1, 9.125, 9.25]
    #    first, falls, < 2.125, rise,  -,   -,  rise (2.125 + 0.125), -, rise, -, rise, rise
    expected = [0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    previous = [2.0, 2.0, 2.0, 2.125, 2.125, 2.125, 2.25, 2.25, 9.0, 9.0, 9.125, 9.25]
    threshold = AdaptiveThreshold(initial=0.5, step=0.25, tolerance=0.125)  # binary fractions: sums are exact
    for loss, value, before in zip(losses, expected, previous, strict=True):
        threshold.observe(loss)
        assert (threshold.value, threshold.previous) == (value, before)


def test_the_released_settings_climb_to_one_in_ten_rises():
    threshold = AdaptiveThreshold()
    values = []
    for epoch in range(14):
        threshold.observe(float(epoch))
        values.append(threshold.value)
    assert values == pytest.approx([min(epoch / 10, 1.0) for epoch in range(14)])
    assert values[-1] == 1.0


def test_an_adaptive_threshold_is_a_weight_like_any_other():
    threshold = AdaptiveThreshold(0.25)
    assert weight_at(threshold, 0) == weight_at(threshold, 99) == 0.25
    assert str(threshold) == "adaptive(0.25)"
    sampler = ReplaySampler(Student(), ramp(1.0, start=5), TOTAL)
    assert [sampler.shares(step)[0] for step in (4, 5)] == [0.0, 1.0]


def test_a_mixture_of_the_same_seed_flips_another_coin():
    """Were it one coin, the mixture would ask for this sampler where r < 0.5 alone, and r < 0.5 always have the student write."""
    sampler = ReplaySampler(Student(), 0.5, 4000, capacity=10**6, seed=7)
    mixture = Mixture([(0.5, sampler), (0.5, dataset_sampler)], seed=7)
    asked = 0
    for step in range(4000):
        mixture(SAMPLES, step)
        asked += mixture.counts[0] > 0
    assert near(sampler.student.calls, 0.5, asked)


LOSSES = {0: 1.0, 8: 2.0, 16: 1.5, 24: 3.0}


def walk(sampler: ReplaySampler, steps: range) -> list:
    trace = []
    for step in steps:
        if step in LOSSES and isinstance(sampler.threshold, AdaptiveThreshold):
            sampler.threshold.observe(LOSSES[step])
        trace.append((sampler(SAMPLES, step), sampler.source, list(sampler.buffer), sampler.shares(step)))
    return trace


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("stop", [0, 7, 17, 30])
def test_a_resumed_run_goes_on_to_the_last_bit(adaptive, stop):
    def build() -> ReplaySampler:
        threshold = AdaptiveThreshold(0.6) if adaptive else 0.8
        return ReplaySampler(Student(), threshold, TOTAL, capacity=6, schedule="constant", seed=2)

    whole = walk(build(), range(TOTAL))
    assert {"dataset", "student", "replay"} == {source for _, source, _, _ in whole[30:]}
    first, file = build(), io.BytesIO()
    walk(first, range(stop))
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = build()
    second.load_state_dict(torch.load(file, weights_only=True))
    assert walk(second, range(stop, TOTAL)) == whole[stop:]


def test_ranks_take_the_same_branch_and_replay_their_own_by_draws_of_their_own():
    ranks = [ReplaySampler(Student(rank), 0.8, 200, capacity=6, seed=5, rank=rank) for rank in range(2)]
    replayed = []
    for step in range(200):
        answers = [sampler(SAMPLES, step) for sampler in ranks]
        assert ranks[0].source == ranks[1].source
        if ranks[0].source == "replay":
            names = [{sample.response_ids[2] for sample in answer} for answer in answers]
            assert names == [{0}, {1}]
            replayed.append([[sample.response_ids[:2] for sample in answer] for answer in answers])
    assert len(replayed) > 40
    assert sum(own != other for own, other in replayed) > len(replayed) / 2


WINDOWS = (SAMPLES, SAMPLES[:1])  # ranks that are dealt unlike numbers of sequences


def sources(rank: int) -> list[str]:
    sampler = ReplaySampler(Student(rank), 0.8, TOTAL, capacity=6, seed=6, schedule="constant", rank=rank)
    return [sampler.source for step in range(TOTAL) if sampler(WINDOWS[rank], step)]


def one_rank(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(sources(rank), folder / f"{rank}.pt")
    distributed.barrier()
    os._exit(0)  # gloo's threads abort an orderly exit now and then


@pytest.mark.slow
def test_ranks_with_unlike_windows_wait_for_the_last_full_buffer(tmp_path):
    alone = [sources(rank) for rank in range(2)]
    assert alone[0] != alone[1], "both buffers are full at the same step: nothing to agree on"
    two(one_rank, tmp_path)
    together = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert together == [alone[1], alone[1]]  # the one with small windows fills its buffer last
    assert "replay" in alone[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps >= 1.*got total_steps=0"),
        ({"capacity": 0}, "got total_steps=40, capacity=0"),
        ({"rank": -1}, "rank=-1"),
        ({"schedule": "linear"}, "decreasing, constant or increasing, got 'linear'"),
    ],
)
def test_a_sampler_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReplaySampler(Student(), 0.5, **({"total_steps": TOTAL} | options))


def test_shares_and_steps_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="the threshold, nan, is nan at step 0"):
        ReplaySampler(Student(), math.nan, TOTAL)(SAMPLES, 0)
    for threshold, step in ((1.5, 0), (-0.1, 0), (0.5, -1), (0.5, TOTAL + 1)):
        with pytest.raises(ValueError, match=f"threshold in .* from 0 to 40, got threshold {threshold} at step {step}"):
            ReplaySampler(Student(), threshold, TOTAL)(SAMPLES, step)


def test_a_student_with_importance_weights_is_refused():
    weighted = [sample._replace(weights=[1.0]) for sample in SAMPLES]
    sampler = ReplaySampler(lambda samples, step: weighted, 1.0, TOTAL)
    with pytest.raises(ValueError, match="keeps no importance weights"):
        sampler(SAMPLES, 0)
    assert not sampler.buffer


def test_thresholds_and_losses_that_make_no_sense_are_refused():
    for options in ({"initial": 1.1}, {"initial": -0.1}, {"initial": math.nan}):
        with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
            AdaptiveThreshold(**options)
    for options in ({"step": -0.1}, {"step": 1.1}, {"tolerance": -0.1}, {"tolerance": math.nan}):
        with pytest.raises(ValueError, match=r"step in \[0, 1\] at a tolerance of at least 0"):
            AdaptiveThreshold(**options)
    threshold = AdaptiveThreshold()
    for loss in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"finite validation losses, got {loss}"):
            threshold.observe(loss)
    assert threshold.state_dict() == {"value": 0.0, "previous": None}
    with pytest.raises(ValueError, match="last loss is finite"):
        threshold.load_state_dict({"value": 0.5, "previous": math.nan})


def test_a_state_of_another_sampler_is_refused():
    state = filled(0.5, 4, capacity=5).state_dict()
    for other in (filled(0.5, 0, capacity=6), filled(AdaptiveThreshold(), 0, capacity=5)):
        with pytest.raises(ValueError, match="capacity 5 and threshold None, this replay of capacity"):
            other.load_state_dict(state)
    for broken in (state["ids"][1:], state["ids"].repeat(2)):
        with pytest.raises(ValueError, match="sum to its ids, got 8 that sum to 11"):
            filled(0.5, 0, capacity=5).load_state_dict(state | {"ids": broken})
