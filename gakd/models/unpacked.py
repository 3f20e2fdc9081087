"""What keeps transformers from waiting for the device in every forward: what the host knows of a batch's rows already.

Each row is one sequence, padded on the right. A forward without an attention mask looks for several sequences in one row, by
their positions; one with a mask looks whether it masks anything. Both bring a number to the host each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor
from transformers import masking_utils

_here = threading.local()


@contextmanager
def one_sequence_a_row(padded: bool = False) -> Iterator[None]:
    """In this thread, transformers takes it from us that each row of a batch is one sequence, from position 0 on.

    `padded`: and that an attention mask, where one is given, masks something.
    """
    _install()
    before, _here.padded = getattr(_here, "padded", None), padded
    try:
        yield
    finally:
        _here.padded = before


@cache
def _install() -> None:
    """Ask this module first, once and for all; other threads and other callers get transformers' own answers."""

    def find_packed_sequence_indices(look: Callable[..., Any], position_ids: Tensor) -> Tensor | None:
        return look(position_ids) if getattr(_here, "padded", None) is None else None

    def ignore_causal_mask_sdpa(
        look: Callable[..., Any], padding_mask: Tensor | None, *others: Any, **named: Any
    ) -> bool:
        known = getattr(_here, "padded", None) and padding_mask is not None
        return False if known else look(padding_mask, *others, **named)

    _ask_first("find_packed_sequence_indices", find_packed_sequence_indices)
    _ask_first("_ignore_causal_mask_sdpa", ignore_causal_mask_sdpa)


def _ask_first(name: str, answer: Callable[..., Any]) -> None:
    library: Any = masking_utils
    look: Any = getattr(library, name, None)
    if look is not None:  # a release that does not look has none
        setattr(library, name, lambda *given, **named: answer(look, *given, **named))
