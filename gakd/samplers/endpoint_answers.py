"""What a server sent back: how much of it is read, the response in it, and what is wrong where there is none."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from gakd.samplers.endpoint_config import EndpointConfig
from gakd.samplers.response_cache import Response

LONGEST_BODY = 16 << 20  # bytes; a response of 100,000 tokens has less than one of them
_MOST_TOKENS = 2**53  # JSON's numbers are exact up to here
# One step of these unpacks a network's block into 64 MiB at most; others, or one inside another, into any size.
_ENCODINGS = {"", "identity", "gzip", "deflate"}
ASKED_ENCODING = "gzip, deflate"
# What the HTTP library raises over an answer, and the client takes for a lost connection. By name, since there are two such
# libraries, and the client's version chooses.
_NO_LOST_CONNECTION = {"DecodingError", "InvalidURL", "TooManyRedirects", "UnsupportedProtocol", "UnreadableError"}


class UnreadableError(ValueError):
    """An answer that is no chat completion."""


class Fault(NamedTuple):
    """Why a try failed: a short line without the key."""

    problem: str
    passes: bool  # it may pass by itself
    wait: float = 0.0  # seconds that the server asks for, 0 where it asks for none
    unreadable: bool = False  # something came back, and no chat completion


async def bound_answer(response: Any) -> None:
    """A hook of the client: a body without an end, or packed to become one, is an UnreadableError and fills no memory."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise UnreadableError(f"it is packed as {encoding!r}, which was not asked for")
    whole = response.aiter_bytes

    async def aiter_bytes(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        size = 0
        async with aclosing(whole(chunk_size)) as parts:
            async for part in parts:
                size += len(part)
                if size > LONGEST_BODY:
                    raise UnreadableError(f"it has more than {LONGEST_BODY >> 20} MiB")
                yield part

    response.aiter_bytes = aiter_bytes


def read(body: bytes) -> Response:
    """The response in a chat completion; a count of tokens that makes no sense is 0. UnreadableError for anything else."""
    try:
        # As an int, a count of thousands of digits would be refused, and a good text with it.
        answer = json.loads(body, parse_int=float)
        choices = answer["choices"]
        if not isinstance(choices, list):
            raise TypeError
        text, reason = choices[0]["message"].get("content"), choices[0].get("finish_reason")
        if not (isinstance(text, str | None) and isinstance(reason, str | None)):
            raise TypeError
    except RecursionError:
        raise UnreadableError("it is nested too deep") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UnreadableError(body.decode("utf-8", "replace").strip() or "an empty body") from None
    usage = answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Response(
        text or "", reason or "unknown", _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    )


def _count(tokens: Any) -> int:
    makes_sense = isinstance(tokens, float) and 0 <= tokens <= _MOST_TOKENS and tokens.is_integer()
    return int(tokens) if makes_sense else 0


def judge(error: Exception, config: EndpointConfig) -> Fault:
    """What went wrong with one try, whatever the client raised."""
    import openai

    if isinstance(error, openai.APIStatusError):
        status, said = error.status_code, config.redacted(_said(error))
        used_up = "insufficient_quota" in (error.code, error.type)
        if used_up or not (status in {408, 409, 425, 429} or status >= 500):
            return Fault(f"{status}, {said}; {_advice(status, config)}", passes=False)
        return Fault(f"{status}, {said}", True, _retry_after(error.response.headers.get("retry-after")))
    if isinstance(error, (openai.APITimeoutError, asyncio.TimeoutError)):
        return Fault(f"no answer within {config.timeout:.0f} s (--timeout)", passes=True)
    lost = isinstance(error, openai.APIConnectionError)
    cause = (error.__cause__ or error) if lost else error
    reason = config.redacted(str(cause) or type(cause).__name__)
    if lost and type(cause).__name__ not in _NO_LOST_CONNECTION:
        return Fault(f"no connection ({reason})", passes=True)
    if not isinstance(cause, ValueError):  # one that nobody foresaw is told by its name
        reason = f"{type(cause).__name__}: {reason}"
    advice = f"is {config.base_url} right? It mostly ends in /v1"
    return Fault(f"no chat completion came back ({reason}); {advice}", passes=True, unreadable=True)


def _said(error: Any) -> str:
    """What the server says of a request that it refuses."""
    body = error.body
    try:
        return f"{(body.get('message') or body.get('detail') or body) if isinstance(body, dict) else body or error.message}"
    except RecursionError:
        return "an answer that is nested too deep"


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
