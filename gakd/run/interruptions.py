"""Signals that ask a run to leave: noticed at once, obeyed at the end of the step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# What SLURM and other schedulers send before they take a machine away. `kill` sends the first, --signal=USR1@300 the second.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again


class Interruptions:
    """A context that notices SIGTERM and SIGUSR1 instead of dying of them; `received` names the first that came, or is None.

    Outside the main thread, where Python allows no handlers, it notices nothing. What handled the signals before does so
    again afterwards.
    """

    def __init__(self) -> None:
        self.received: str | None = None
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
        self.received = self.received or signal.Signals(number).name
