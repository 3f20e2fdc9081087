"""Work that is dealt to the processes of a run, and what each of them found, put together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

from torch import distributed
from torch.distributed.distributed_c10d import ProcessGroup

from gakd.run.exchange import WHILE_IT_LIVES, everyones, host_group, several

Item = TypeVar("Item")
Place = TypeVar("Place", bound=Hashable)
Found = TypeVar("Found")


class Ranks:
    """The processes that share a list of work: this one's number, how many they are, and a group to exchange findings in."""

    def __init__(self, rank: int = 0, size: int = 1, group: ProcessGroup | None = None) -> None:
        self.rank, self.size, self._group = rank, size, group

    def own(self, items: Sequence[Item], in_step: bool = False) -> Iterator[tuple[int, Item]]:
        """This rank's items, each with its place in the list; they are dealt in turn.

        Where a model is cut over ranks, they compute `in_step`: each gets as many, the last item again where the list ends
        first. What is found of it twice is the same.
        """
        for first in range(0, len(items), self.size):
            place = first + self.rank
            if place < len(items):
                yield place, items[place]
            elif in_step:
                yield len(items) - 1, items[-1]

    def together(self, own: dict[Place, Found]) -> dict[Place, Found]:
        """What all ranks found, on each of them, which must all ask; waits for the slowest as long as it lives."""
        if self.size == 1:
            return own
        return {place: found for of_rank in everyones(own, self._group) for place, found in of_rank.items()}


ALONE = Ranks()


def all_ranks() -> Ranks:
    """The processes of this run. Where they are several, each must call it: it opens a group on the CPU, without a time limit."""
    if not several():
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size(), host_group(WHILE_IT_LIVES))
