"""The next step's window, made in a thread while the present one is trained on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Prefetch(Generic[Made]):
    """A context in which `make(step)` runs in one thread, one step ahead of the one asked for; never from `end` on.

    `make` is a function of the step, draws no random numbers from generators that the run uses, and reads nothing that
    the run writes. What it raises for a step is raised where that step is asked for. The thread ends with the context.
    """

    def __init__(self, make: Callable[[int], Made], end: int) -> None:
        self.make, self.end = make, end
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="gakd-prefetch")
        self._next: tuple[int, Future[Made]] | None = None

    def __enter__(self) -> Prefetch[Made]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def at(self, step: int) -> Made:
        """`make(step)`; the one after it is begun before this returns."""
        begun, self._next = self._next, None
        ahead = begun[1] if begun is not None and begun[0] == step else self._pool.submit(self.make, step)
        made = ahead.result()
        if step + 1 < self.end:
            self._next = step + 1, self._pool.submit(self.make, step + 1)
        return made
