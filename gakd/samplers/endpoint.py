"""A black-box teacher: text from any server that speaks OpenAI's chat API, no response asked for twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rich.markup import escape

from gakd.data.rendering import with_json_arguments
from gakd.data.rows import Message, Row, conversation
from gakd.errors import InputError
from gakd.extras import check_needs
from gakd.logging.progress import ProgressView
from gakd.samplers.endpoint_answers import ASKED_ENCODING, bound_answer, judge, read
from gakd.samplers.endpoint_config import CLIENT, EndpointConfig
from gakd.samplers.response_cache import Response, ResponseCache

if TYPE_CHECKING:
    from openai import AsyncOpenAI

FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds before a request is tried again
UNREADABLE_TRIES = 3  # answers that are no chat completion, before the address is held to be wrong


@dataclass
class Usage:
    """What was asked of a server: its bill, as far as the server counts it."""

    requests: int = 0
    tried_again: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} response tokens"
        return f"{self.requests:,} requests ({self.tried_again:,} of them repeated), {tokens}"


class _Request(NamedTuple):
    key: str
    messages: list[Message]
    body: dict[str, Any]
    where: str


class EndpointTeacher:
    """Text of a model that only a server has; each response stands in the file `cache` the moment it arrives.

    Responses are known by a hash of model, messages, sampling settings and sample: a run asks for what the cache lacks,
    and other settings never mix. `usage` counts what was asked since the start. The key is read from the environment when
    a request is made and kept nowhere. Raises InputError without the client (`pip install 'gakd[api]'`).
    """

    def __init__(self, config: EndpointConfig, cache: str | Path) -> None:
        _client_library()
        self.config, self.usage = config, Usage()
        self._cache = ResponseCache(cache)
        self._last_notice, self._has_told = -float("inf"), False

    def responses(self, rows: Sequence[Row]) -> list[list[Response]]:
        """`config.samples` responses to each prompt, in the order of the rows; equal prompts share theirs.

        What fails for a reason that passes (connection, timeout, 408, 409, 425, 429, 5xx) is tried again, with growing random
        waits or the server's Retry-After, for `config.patience` seconds; an answer that is no chat completion is tried again
        twice. Raises InputError when these are over, and at once for what the server refuses (400, 401, 403, 404, ...),
        naming the row; what has arrived by then is in the cache. A text that repeats the key has [key] in its place.
        """
        asked = [[self._request(row, sample) for sample in range(self.config.samples)] for row in rows]
        with self._cache as cache:
            by_key = {request.key: request for requests in asked for request in requests}
            missing = [request for key, request in by_key.items() if key not in cache.found]
            if missing:
                view = ProgressView(len(by_key), len(by_key) - len(missing), shown=True)
                try:
                    _run(self._ask_all(missing, cache, view))
                finally:
                    view.say(
                        f"{escape(self.config.model)}: {self.usage}; {len(cache.found):,} responses in {cache.path}"
                    )
                    view.close()
            # Also for what an earlier version left in the cache.
            return [[self._without_key(cache.found[request.key]) for request in requests] for requests in asked]

    def _request(self, row: Row, sample: int) -> _Request:
        config, body = self.config, self.config.body()
        asked = [with_json_arguments(message) for message in conversation(row)]
        asked = [{name: value for name, value in message.items() if name != "weight"} for message in asked]
        own: dict[str, Any] = {"tools": list(row.tools)} if row.tools else {}
        own |= {"chat_template_kwargs": dict(row.template_kwargs)} if row.template_kwargs else {}
        body = own | body
        where = config.without_key(row.where or repr(row.instruction[:40]))
        try:
            json.dumps([asked, body], ensure_ascii=False, allow_nan=False).encode()
            drawn = json.dumps({"messages": asked, "sample": sample, **own, **config.drawn()}, sort_keys=True)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{where} cannot be sent as JSON ({error}): correct the row, or leave it out") from None
        key = hashlib.sha256(drawn.encode("ascii")).hexdigest()
        if config.seed is not None:  # one seed for all would give all samples of a prompt the same text
            body["seed"] = int(key[:8], 16) >> 1
        return _Request(key, asked, body, where)

    async def _ask_all(self, requests: Sequence[_Request], cache: ResponseCache, view: ProgressView) -> None:
        config = self.config
        waiting, before, started = iter(requests), len(cache.found), time.monotonic()

        async def work() -> None:
            for request in waiting:  # all workers take from the same iterator
                written = await self._ask(client, request, view)
                response = self._without_key(written)
                if response != written and not self._has_told:
                    self._has_told = True
                    view.say(
                        f"{config.base_url} repeats the key of {config.key_variable} in its text: \\[key] takes its place"
                    )
                cache.append(request.key, response)
                self.usage.prompt_tokens += response.prompt_tokens
                self.usage.completion_tokens += response.completion_tokens
                done = len(cache.found) - before
                pace = {"responses/s": done / (time.monotonic() - started)}
                view.update(view.total - len(requests) + done, response.completion_tokens, pace)

        openai = _client_library()
        client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=config.key() or "none", timeout=config.timeout, max_retries=0,
            default_headers={"accept-encoding": ASKED_ENCODING},
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [bound_answer]}),
        )  # fmt: skip
        async with client:
            workers = [asyncio.ensure_future(work()) for _ in range(config.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _ask(self, client: AsyncOpenAI, request: _Request, view: ProgressView) -> Response:
        config = self.config
        first_failure, tries, unreadable = 0.0, 0, 0
        while True:
            self.usage.requests += 1
            try:
                sent = client.chat.completions.with_raw_response.create(
                    model=config.model, messages=cast(Any, request.messages), extra_body=request.body
                )
                return read((await asyncio.wait_for(sent, config.timeout)).content)
            except Exception as error:  # over an odd answer a client raises more than its own errors
                problem, passes, wait, is_unreadable = judge(error, config)
            unreadable += is_unreadable
            now = time.monotonic()
            first_failure, tries = first_failure or now, tries + 1
            left = first_failure + config.patience - now
            delay = wait or min(_delay(tries), left)
            if not passes or unreadable == UNREADABLE_TRIES:
                raise InputError(f"{config.base_url}, asked for {request.where}: {problem}")
            if left <= 0 or delay > left:
                raise InputError(
                    f"{config.base_url} gave no response to {request.where} in {tries} tries over {now - first_failure:.0f} s: "
                    f"{problem}; run the same command once it answers (--patience waits longer): what has arrived is kept"
                )
            if now - self._last_notice > 30:
                self._last_notice = now
                view.say(f"{config.base_url}: {escape(problem)}; it is tried again for up to {config.patience:.0f} s")
            self.usage.tried_again += 1
            await asyncio.sleep(delay)

    def _without_key(self, response: Response) -> Response:
        text, reason = map(self.config.without_key, (response.text, response.finish_reason))
        return response._replace(text=text, finish_reason=reason)


def response_records(
    rows: Sequence[Row], responses: Sequence[Sequence[Response]], drop_unfinished: bool = False
) -> list[dict[str, Any]]:
    """Records as `gakd.data` reads them, one a response, in the form that recipes/tools/generate.py writes.

    Empty responses are left out, and with `drop_unfinished` those that did not come to the model's own end.
    """
    from gakd.data import Example
    from gakd.samplers.generation import Generation
    from gakd.samplers.teacher_text import records

    pairs = [(row, response) for row, own in zip(rows, responses, strict=True) for response in own]
    return records(
        [Example([], [], row) for row, _ in pairs],
        [response.text for _, response in pairs],
        [Generation([], 0 if response.finished else None) for _, response in pairs],
        drop_unfinished,
    )


def _client_library() -> ModuleType:
    check_needs([CLIENT])
    import openai

    return openai


def _delay(tries: int) -> float:
    """Seconds after the given number of failures: doubling, up to half of it left to chance, so that clients spread out."""
    return min(FIRST_DELAY * 2.0 ** min(tries - 1, 30), LONGEST_DELAY) * random.uniform(0.5, 1.0)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()
