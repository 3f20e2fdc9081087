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


def positions_of(group: list[int]) -> int:
    """Of the padded batch: a token of each sequence is a label alone."""
    return len(group) * (max(LENGTHS[index] for index in group) - 1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("bound", [1, 250, 1000, 16384])
@pytest.mark.parametrize("bucketed", [True, False])
def test_micro_batches_have_as_many_sequences_as_their_positions_allow(bucketed, bound, world_size):
    window = Windows(LENGTHS, 32, seed=1).at(5) if bucketed else list(range(32))
    parts = [split_window(window, LENGTHS, 1, rank, world_size, micro_batch_tokens=bound) for rank in range(world_size)]
    assert sorted(index for rank in parts for group in rank for index in group) == sorted(window)
    assert len({tuple(len(group) for group in rank) for rank in parts}) == 1
    groups = [group for rank in parts for group in rank]
    assert all(groups)
    assert all(positions_of(group) <= bound or len(group) == 1 for group in groups)
    # The longest sequences are the last rank's: not one more of them fits.
    longest = parts[-1]
    for index, group in enumerate(longest[:-1]):
        assert positions_of([*group, longest[index + 1][0]]) > bound


def test_the_longest_on_any_rank_decides_for_all():
    """Ten positions: rank 0 could have had its first three together, rank 1 could not."""
    lengths = [3, 4, 3, 5, 4, 6, 13, 14]
    cut = [split_window(range(8), lengths, 4, rank, 2, micro_batch_tokens=10) for rank in (0, 1)]
    # In order of length, dealt in turns: 0 2 | 1 4 | 3 5 | 6 7, as widths 2 2 | 3 3 | 4 5 | 12 13.
    assert cut == [[[0, 1], [3], [6]], [[2, 4], [5], [7]]]
    assert split_window(range(8), lengths, 4, micro_batch_tokens=10) == [[0, 2, 1], [4, 3], [5], [6], [7]]


def test_room_cuts_and_does_not_order():
    lengths, room = [3, 4, 5, 6, 7], [6, 3, 3, 11, 6]
    # As widths 5 2 2 10 5: twelve positions are two of the first three, then one, one, one.
    assert split_window(range(5), lengths, 4, micro_batch_tokens=12, room=room) == [[0, 1], [2], [3], [4]]
    assert split_window(range(5), lengths, 4, micro_batch_tokens=15, room=room) == [[0, 1, 2], [3], [4]]
    assert split_window(range(4), lengths, 4, 1, 2, micro_batch_tokens=20, room=room) == [[1, 3]]
    assert split_window(range(4), lengths, 4, 1, 2, micro_batch_tokens=19, room=room) == [[1], [3]]
    assert split_window(range(4), lengths, 4, micro_batch_tokens=10, room=[11, 3, 3, 3]) == [[0], [1, 2, 3]]
    assert split_window(range(5), lengths, 4, room=room) == [[0, 1, 2, 3], [4]]


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
    with pytest.raises(ValueError, match="micro_batch_tokens must be at least 1"):
        split_window(list(range(8)), LENGTHS, 4, micro_batch_tokens=0)
