"""What a server sent back: how much of it is read, the response in it, and what is wrong where there is none."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any

from gakd.errors import InputError
from gakd.samplers.endpoint_config import EndpointConfig
from gakd.samplers.response_cache import Response

# Bytes that are read of an answer, and of a page that says why there is none.
LONGEST_BODY, LONGEST_PAGE = 64 << 20, 1 << 20
_MOST_TOKENS = 2**53  # JSON's numbers are exact up to here


def client_library() -> ModuleType:
    try:
        import openai
    except ImportError:
        raise InputError("a teacher behind an API needs the openai client: pip install 'gakd[api]'") from None
    return openai


async def bound_body(response: Any) -> None:
    """A hook for the client, so that no body fills the memory: a longer answer is a ValueError, a longer page is cut."""
    whole, longest = response.aiter_bytes, LONGEST_PAGE if response.is_error else LONGEST_BODY

    async def aiter_bytes(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        left = longest
        async with aclosing(whole(chunk_size)) as parts:
            async for part in parts:
                yield part[:left]
                left -= len(part)
                if left < 0 and not response.is_error:
                    raise ValueError(f"more than {LONGEST_BODY >> 20} MiB")
                if left < 0:
                    return

    response.aiter_bytes = aiter_bytes


def read_answer(answer: Any, config: EndpointConfig) -> Response:
    """The response in a chat completion, without the key; ValueError for what is none. Counts that make no sense are 0."""
    try:
        choices, usage = answer.choices, answer.usage
        if not isinstance(choices, list):
            raise TypeError
        text, reason = choices[0].message.content, choices[0].finish_reason
        if not (isinstance(text, str | None) and isinstance(reason, str | None)):
            raise TypeError
    except (AttributeError, LookupError, TypeError):
        raise ValueError(f"{answer}") from None
    counts = [_count(getattr(usage, name, 0)) for name in ("prompt_tokens", "completion_tokens")]
    return Response(config.without_key(text or ""), config.without_key(reason or "unknown"), *counts)


def _count(value: Any) -> int:
    is_count = type(value) in (int, float) and 0 <= value <= _MOST_TOKENS and value == int(value)
    return int(value) if is_count else 0


def judge(error: Exception, config: EndpointConfig) -> tuple[str, bool, float]:
    """What went wrong, whether it may pass by itself, and the seconds that the server asks to wait, else 0."""
    import openai

    if isinstance(error, openai.APIStatusError):
        status, said = error.status_code, config.redacted(_said(error))
        used_up = "insufficient_quota" in (error.code, error.type)
        if used_up or not (status in {408, 409, 425, 429} or status >= 500):
            return f"{status}, {said}; {_advice(status, config)}", False, 0.0
        return f"{status}, {said}", True, _retry_after(error.response.headers.get("retry-after"))
    if isinstance(error, (openai.APITimeoutError, asyncio.TimeoutError)):
        return f"no answer within {config.timeout:.0f} s (--timeout)", True, 0.0
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        return f"no connection ({str(cause) or type(cause).__name__})", True, 0.0
    reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    advice = f"is {config.base_url} right? It mostly ends in /v1"
    return f"no chat completion came back ({config.redacted(reason)[:160]}); {advice}", True, 0.0


def _said(error: Any) -> str:
    """What the server says of a request that it refuses."""
    body = error.body
    try:
        return f"{(body.get('message') or body.get('detail') or body) if isinstance(body, dict) else body or error.message}"
    except RecursionError:
        return "a page that is nested too deep"


def _advice(status: int, config: EndpointConfig) -> str:
    if status in {401, 403}:
        state = "holds a key it does not take" if config.key() else "is not set"
        return f"the environment variable {config.key_variable} {state}"
    if status == 404:
        return f"check the base URL, which mostly ends in /v1, and the model {config.model!r}"
    if status in {402, 429}:
        return "nothing is left to pay with: this does not pass by waiting"
    return "change the settings, or leave this row out"


def _retry_after(header: str | None) -> float:
    """Seconds from a Retry-After header, which holds seconds or a date; 0 for what makes no sense."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header or "").timestamp() - time.time()
        except (ValueError, TypeError, LookupError, OverflowError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
