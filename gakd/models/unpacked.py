"""What keeps transformers from waiting for the device in every forward: no batch of gakd holds packed sequences.

A forward without an attention mask looks for several sequences in one row, by their positions, and so brings a number to the
host each time. Here each row is one sequence, padded on the right.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor
from transformers import masking_utils

_LOOKS_FOR_PACKED = "find_packed_sequence_indices"
_here = threading.local()


@contextmanager
def one_sequence_a_row() -> Iterator[None]:
    """In this thread, transformers takes it from us that each row of a batch is one sequence, from position 0 on."""
    _install()
    before, _here.known = getattr(_here, "known", False), True
    try:
        yield
    finally:
        _here.known = before


@cache
def _install() -> None:
    """Ask this module first, once and for all; other threads and other callers get transformers' own answer."""
    library: Any = masking_utils
    look: Any = getattr(library, _LOOKS_FOR_PACKED, None)
    if look is None:  # a release that does not look
        return

    def find_packed_sequence_indices(position_ids: Tensor) -> Tensor | None:
        return None if getattr(_here, "known", False) else look(position_ids)

    setattr(library, _LOOKS_FOR_PACKED, find_packed_sequence_indices)
