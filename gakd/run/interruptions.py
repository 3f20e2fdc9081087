"""Signals that ask a run to leave: noticed at once, obeyed at the end of the step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What SLURM and other schedulers send before they take a machine away (`kill` the first, --signal=USR1@300 the second), what
# Ctrl-C sends, and a terminal that is closed.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again


class Interruptions:
    """A context that notices SIGTERM, SIGUSR1, SIGINT and SIGHUP instead of dying of them; `received` names the first, or None.

    A second Ctrl-C is KeyboardInterrupt, at once. Outside the main thread, where Python allows no handlers, it notices
    nothing. What handled the signals before does so again afterwards.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._asked_by_hand = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._notice) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python, which Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._asked_by_hand:
            raise KeyboardInterrupt
        self._asked_by_hand = self._asked_by_hand or number == signal.SIGINT
        self.received = self.received or signal.Signals(number).name
