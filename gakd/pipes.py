"""What is printed when nobody reads it any more, as in `python recipes/gakd.py | head -1`."""

from __future__ import annotations

import contextlib
import os
import sys

LEFT = "nobody reads the output any more (its pipe is closed)"


def leave_closed_pipes() -> None:
    """Print nowhere from here on where the reader of a pipe has left: it would raise again, at the exit at last."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
