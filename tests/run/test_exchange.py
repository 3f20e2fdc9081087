"""What ranks tell each other: every dtype arrives, sums are those of each tensor alone, and one exchange carries them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from gakd.run.exchange import Hosts, several, sum_, sum_flat_, take_from_main_
from tests.processes import on_two


def own(rank: int) -> list[torch.Tensor]:
    """Values that differ by rank, of all dtypes that a module may have."""
    draw = torch.Generator().manual_seed(rank)
    return [
        torch.randn(3, 4, generator=draw),
        torch.randn(5, 2, generator=draw).T,  # not contiguous
        torch.randn((), generator=draw),
        torch.randn(0, generator=draw),
        torch.randn(7, generator=draw).bfloat16(),
        torch.randn(3, generator=draw).double(),
        torch.tensor([rank, 2**40 + rank]),
        torch.tensor([rank == 0, True, rank == 1]),
        torch.tensor([torch.nan, rank]),
    ]


def gradients(rank: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(10 + rank)
    return [torch.randn(shape, generator=draw) * 1e3 for shape in [(4, 3), (6,), (), (2, 2, 2)]]


def talk(rank: int, folder: Path) -> dict:
    counted = {"all_reduce": 0, "broadcast": 0}

    def counting(name):
        call = getattr(distributed, name)

        def count(*arguments, **named):
            counted[name] += 1
            return call(*arguments, **named)

        setattr(distributed, name, count)

    counting("all_reduce"), counting("broadcast")
    taken, summed = own(rank), gradients(rank)
    take_from_main_(taken)
    broadcasts, before = counted["broadcast"], counted["all_reduce"]
    beside = sum_flat_(summed, torch.tensor(float(rank)))
    hosts = Hosts(timedelta(seconds=60))
    return {
        "taken": taken, "broadcasts": broadcasts, "summed": summed, "beside": beside,
        "exchanges": counted["all_reduce"] - before,
        "sum": sum_(torch.tensor([float(rank), 2.0])),
        "hosts": hosts.sum([2**40 + rank, 0.5]), "any": [hosts.any(rank == 1), hosts.any(False)],
    }  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[dict]:
    return on_two(talk, tmp_path_factory.mktemp("ranks"))


def test_rank_0s_values_arrive_bit_for_bit_in_one_exchange_a_dtype(told):
    expected = own(0)
    for found in told:
        for tensor, wanted in zip(found["taken"], expected, strict=True):
            assert tensor.dtype == wanted.dtype
            assert (
                torch.equal(tensor.nan_to_num(7.0), wanted.nan_to_num(7.0))
                if wanted.is_floating_point()
                else (torch.equal(tensor, wanted))
            )
        assert found["broadcasts"] == len({tensor.dtype for tensor in expected})


def test_gradients_are_summed_each_as_if_alone_and_together_in_one_exchange(told):
    expected = [first + second for first, second in zip(gradients(0), gradients(1), strict=True)]
    for found in told:
        assert all(torch.equal(a, b) for a, b in zip(found["summed"], expected, strict=True))
        assert found["beside"].item() == 1.0
        assert found["exchanges"] == 1


def test_hosts_sum_exactly_and_any_rank_counts(told):
    for found in told:
        assert found["sum"].tolist() == [1.0, 4.0]
        assert found["hosts"] == [2.0**41 + 1, 1.0]
        assert found["any"] == [True, False]


def test_alone_nothing_is_exchanged():
    values = gradients(0)
    assert not several()
    take_from_main_(values)
    assert sum_flat_(values, torch.tensor(3.0)).item() == 3.0
    assert all(torch.equal(a, b) for a, b in zip(values, gradients(0), strict=True))
    assert Hosts(timedelta(seconds=1)).sum([1.5]) == [1.5]
