"""Windows: functions of the step, whole epochs, even shares, little padding."""

from __future__ import annotations

import pytest
import torch

from gakd.data import Windows, padding_share, split_window

LENGTHS = torch.randint(5, 300, (1003,), generator=torch.Generator().manual_seed(0)).tolist()


def test_an_epoch_holds_each_example_at_most_once_and_nearly_all():
    windows = Windows(LENGTHS, 8, seed=1)
    assert len(windows) == 125
    for epoch in range(3):
        seen = [index for step in range(125) for index in windows.at(epoch * 125 + step)]
        assert len(set(seen)) == 1000
    assert windows.at(0) != windows.at(125)


def test_a_window_is_a_function_of_the_step_alone():
    visited = Windows(LENGTHS, 8, seed=1)
    trail = {step: visited.at(step) for step in (3, 400, 7, 124, 125, 3)}
    assert all(Windows(LENGTHS, 8, seed=1).at(step) == window for step, window in trail.items())
    assert Windows(LENGTHS, 8, seed=2).at(3) != trail[3]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 32])
def test_ranks_and_micro_batches_share_a_window_without_loss(world_size, micro_batch_size):
    window = Windows(LENGTHS, 32, seed=1).at(5)
    parts = [split_window(window, LENGTHS, micro_batch_size, rank, world_size) for rank in range(world_size)]
    assert sorted(index for rank in parts for group in rank for index in group) == sorted(window)
    assert len({len(rank) for rank in parts}) == 1
    assert all(len(group) <= micro_batch_size for rank in parts for group in rank)
    assert split_window(window[::-1], LENGTHS, micro_batch_size, 0, world_size) == parts[0]


def test_bucketing_saves_most_of_the_padding():
    windows = Windows(LENGTHS, 8, seed=1)
    bucketed = padding_share(LENGTHS, [windows.at(step) for step in range(125)])
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = padding_share(LENGTHS, [order[start : start + 8] for start in range(0, 1000, 8)])
    assert shuffled > 0.3
    assert bucketed < 0.05
    assert padding_share([3, 1], [[0, 1]]) == 1 - 4 / 6


def test_what_cannot_be_dealt_is_refused():
    with pytest.raises(ValueError, match="7 examples do not fill one batch of 8"):
        Windows(LENGTHS[:7], 8, seed=1)
    with pytest.raises(ValueError, match="cannot be dealt evenly to 3 processes"):
        split_window(list(range(8)), LENGTHS, 2, 0, 3)
    with pytest.raises(ValueError, match="micro_batch_size must be at least 1"):
        split_window(list(range(8)), LENGTHS, 0)
