"""The flags of a black-box teacher: which server, how text is drawn, how long it is waited for."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from gakd.errors import InputError

SHORTEST_KEY = 8
_OWN_FIELDS = {
    "model",
    "messages",
    "temperature",
    "top_p",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "stream",
}


@dataclass
class EndpointConfig:
    """A server that speaks OpenAI's chat API, and how it is asked."""

    base_url: str
    """Address of the API without /chat/completions, such as http://localhost:8000/v1 or https://api.openai.com/v1."""
    model: str
    """The model's name at that server."""
    temperature: float | None = 1.0
    """Divides the teacher's logits; 0 is its most probable token each time, None leaves it to the server."""
    top_p: float | None = 1.0
    """Keeps the most probable tokens up to this probability mass; None leaves it to the server."""
    max_new_tokens: int = 256
    """Tokens after which a response is cut."""
    samples: int = 1
    """Responses to each prompt, a request each."""
    seed: int | None = None
    """Gives each request a seed of its own, for servers that take one; None sends none."""
    extra_body: str = "{}"
    """JSON object of further fields of each request, such as '{"top_k": -1}', for servers that know more than OpenAI's."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The server's name for --max-new-tokens; OpenAI's reasoning models want max_completion_tokens."""
    concurrency: int = 8
    """Requests under way at once."""
    timeout: float = 600.0
    """Seconds until a request without an answer is given up and tried again."""
    patience: float = 600.0
    """Seconds after its first failure in which a request is tried again: server down, overloaded, rate limit."""
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, never the key; it may be unset for a server without keys."""

    def __post_init__(self) -> None:
        # The value may be the key itself: no message repeats it.
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_variable):
            raise InputError(
                "the key variable is the name of an environment variable, such as OPENAI_API_KEY, got something else: put "
                "the key into that variable, and its name here"
            )
        try:
            address = urlsplit(self.base_url)
            _ = address.port
        except ValueError as error:
            raise InputError(
                f"got the base URL {self.base_url!r} ({error}), expected one such as http://localhost:8000/v1"
            ) from error
        if address.username or address.password or address.query:
            raise InputError("the base URL holds a name, a password or a query: put the key into the environment")
        if address.scheme not in {"http", "https"} or not address.hostname or self.base_url.endswith("/completions"):
            raise InputError(f"got the base URL {self.base_url!r}, expected one such as http://localhost:8000/v1")
        whole = (self.samples, self.concurrency, self.max_new_tokens)
        at_least_one = all(type(number) is int and number >= 1 for number in whole)
        if not (at_least_one and 0 < self.timeout < math.inf and 0 <= self.patience < math.inf):
            raise InputError(
                f"samples, concurrency and max_new_tokens are whole and at least 1, timeout above 0, patience at least 0, both "
                f"finite; got {self}"
            )
        drawn = (self.temperature or 0, 1 if self.top_p is None else self.top_p)
        if bool in map(type, drawn) or not (0 <= drawn[0] < math.inf and 0 < drawn[1] <= 1):
            raise InputError(
                f"temperature is at least 0 and top_p in (0, 1], got {self.temperature} and {self.top_p}: change them"
            )
        self.body()

    def body(self) -> dict[str, Any]:
        """The fields of a request beside the model, the messages and the seed."""
        try:
            extra = json.loads(self.extra_body, parse_constant=_no_number)
        except (ValueError, RecursionError):
            extra = None
        if not isinstance(extra, dict) or extra.keys() & _OWN_FIELDS:
            got = self.redacted(repr(self.extra_body))
            raise InputError(f"the extra body is a JSON object without {', '.join(sorted(_OWN_FIELDS))}, got {got}")
        own = {"temperature": self.temperature, "top_p": self.top_p, self.limit_field: self.max_new_tokens}
        return {name: value for name, value in own.items() if value is not None} | extra

    def drawn(self) -> dict[str, Any]:
        """What decides, beside the messages and the sample, which text comes back; where the server is does not."""
        return {"model": self.model, "seed": self.seed, **self.body()}

    def key(self) -> str:
        """The key as the environment holds it now, empty where there is none. Never store or print it."""
        key = os.environ.get(self.key_variable, "").strip()
        if not all("!" <= character <= "~" for character in key):  # an HTTP client's own error would show it
            raise InputError(
                f"the environment variable {self.key_variable} holds a space or a character that no key has: set it again"
            )
        return key

    def without_key(self, text: str) -> str:
        """A text without the key, which some servers repeat, as it is or as an address has it."""
        key = self.key()
        if len(key) < SHORTEST_KEY:  # a word that stands for "no key", such as EMPTY
            return text
        for form in dict.fromkeys((key, quote(key, safe=""), json.dumps(key)[1:-1])):
            text = text.replace(form, "[key]")
        return text

    def redacted(self, text: str) -> str:
        """One short line without the key."""
        line = " ".join(self.without_key(text).split())
        return line if len(line) <= 300 else f"{line[:297]}..."


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
