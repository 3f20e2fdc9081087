"""A chat template, run within bounds: it is somebody's program, and may loop or grow its text without end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase

from gakd.models.errors import ModelError

SECONDS = 10.0  # of the processor; a rendering takes milliseconds
_MEMORY = 1 << 30  # bytes more than there were
_PROBES: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "a"}],
    [{"role": role, "content": "a"} for role in ("system", "user", "assistant", "user", "assistant")],
)


class TemplateLimit(Exception):
    """A template went beyond what a conversation can need; one line."""


def check_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """ModelError where a tokenizer's chat template works without end on conversations of a few characters."""
    templates = tokenizer.chat_template
    every = templates.values() if isinstance(templates, dict) else [templates]
    for text in filter(None, every):
        if not isinstance(text, str):
            raise ModelError(f"the chat template of {name!r} is no text: mend it, or take it out of the files")
        for messages in _PROBES:
            try:
                with in_bounded_time(), _in_bounded_memory():
                    tokenizer.apply_chat_template(
                        messages, chat_template=text, add_generation_prompt=True, tokenize=False
                    )
            except (TemplateLimit, MemoryError, OverflowError) as error:
                reason = str(error) if isinstance(error, TemplateLimit) else "asks for more memory than a text needs"
                raise ModelError(
                    f"the chat template of {name!r} {reason}: mend it, or take it out of the files"
                ) from error
            except Exception:  # it may refuse a conversation, which its rows will tell
                continue


@contextmanager
def in_bounded_time() -> Iterator[None]:
    """TemplateLimit once what is inside has worked for `SECONDS`; outside the main thread there are no timers, and no bound."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TemplateLimit(f"works for more than {SECONDS:.0f} s on one conversation")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before or signal.SIG_DFL)


@contextmanager
def _in_bounded_memory() -> Iterator[None]:
    """MemoryError beyond so much more than the process has now; a machine without Linux's /proc sets no bound."""
    import resource

    with ExitStack() as after:
        try:
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            most = [limit for limit in (soft, hard, held + _MEMORY) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_AS, (min(most), hard))
            after.callback(resource.setrlimit, resource.RLIMIT_AS, (soft, hard))
        except (OSError, ValueError):
            pass
        yield
