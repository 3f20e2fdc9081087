"""What the operating system says to a write, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gakd.errors import RunError


@contextmanager
def room_for(path: Path, safe: str) -> Iterator[None]:
    """RunError of one line where the operating system refuses a write: a full disk, a folder that is gone.

    safetensors and tokenizers have its words in errors of their own. `safe` says what is intact, and what to do.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        by_system = isinstance(error, OSError) and error.errno is not None
        if not (by_system or isinstance(error, SafetensorError) or "(os error " in reason):
            raise
        raise RunError(f"cannot write {path}: {reason}; {safe}") from error
