"""The flags of a black-box teacher: which server, how text is drawn, how long it is waited for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any, Literal
from urllib.parse import urlsplit

from gakd.errors import InputError
from gakd.extras import Need
from gakd.flags import COUNT, NOT_NEGATIVE, POSITIVE, Bound

CLIENT = Need("a teacher behind an API", ("openai",), "api", "give a model that is loaded here")
SHORTEST_KEY = 8  # characters; what is shorter stands for "no key", such as EMPTY, and is a word of any text
_BOUNDS = {
    "max_new_tokens": COUNT, "samples": COUNT, "concurrency": COUNT, "timeout": POSITIVE, "patience": NOT_NEGATIVE,
    "temperature": NOT_NEGATIVE, "top_p": Bound(above=0, at_most=1), "seed": Bound(),
}  # fmt: skip
_WHOLE, _OPTIONAL = {"max_new_tokens", "samples", "concurrency", "seed"}, {"temperature", "top_p", "seed"}
_EXAMPLE = "http://localhost:8000/v1"
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

    def needs(self) -> Iterator[Need]:
        """What these flags cannot do without."""
        yield CLIENT

    def __post_init__(self) -> None:
        # The value may be the key itself: no message repeats it.
        is_name = re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_variable) or self.key_variable in os.environ
        if not (is_name and re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.key_variable)):
            raise InputError(
                "the key variable is the name of an environment variable, such as OPENAI_API_KEY, or one with small letters "
                "that is set; got something else: put the key into that variable, and its name here"
            )
        try:
            address = urlsplit(self.base_url)
            _ = address.port
        except ValueError as error:
            raise InputError(f"the base URL is no address ({error}), expected one such as {_EXAMPLE}") from None
        if address.username or address.password or address.query:
            raise InputError("the base URL holds a name, a password or a query: put the key into the environment")
        if address.scheme not in {"http", "https"} or not address.hostname or self.base_url.endswith("/completions"):
            raise InputError(f"got the base URL {self.base_url!r}, expected one such as {_EXAMPLE}")
        for name, bound in _BOUNDS.items():
            value, kinds = getattr(self, name), (int,) if name in _WHOLE else (int, float)
            if not (type(value) in kinds and bound.holds(value)) and not (value is None and name in _OPTIONAL):
                kind = "a whole number" if name in _WHOLE else "a number"
                raise InputError(f"{name} is {kind}, {bound}, got {_shown(value)}: change it")
        self.body()
        for name in ("base_url", "model", "extra_body"):  # they stand in messages and in files
            if self.without_key(getattr(self, name)) != getattr(self, name):
                raise InputError(f"{name} holds the key of {self.key_variable}: leave it out, the header has it")

    def body(self) -> dict[str, Any]:
        """The fields of a request beside the model, the messages and the seed."""
        try:
            extra = json.loads(self.extra_body)
            json.dumps(extra, allow_nan=False)
        except (ValueError, TypeError, RecursionError):
            extra = None
        if not isinstance(extra, dict) or extra.keys() & _OWN_FIELDS:
            raise InputError(
                f"the extra body is a JSON object of finite numbers without {', '.join(sorted(_OWN_FIELDS))}, got "
                f"{_shown(self.extra_body)}: change it"
            )
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
        """A text with [key] in place of the key, which some servers repeat: as it is, or as addresses, JSON or HTML have it."""
        key = self.key()
        return _forms(key).sub("[key]", text) if len(key) >= SHORTEST_KEY else text

    def redacted(self, text: str) -> str:
        """One short line without the key, that any screen shows."""
        line = " ".join(self.without_key(text).split())
        line = line if len(line) <= 300 else f"{line[:297]}..."
        return "".join(character if character.isprintable() else "\ufffd" for character in line)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


@lru_cache(1)
def _forms(key: str) -> re.Pattern[str]:
    return re.compile("".join(map(_forms_of, key)))


def _forms_of(character: str) -> str:
    """A pattern of the ways to write a character of a key; escaping may have happened more than once."""
    code = ord(character)
    forms = [
        rf"\\{{0,4}}{re.escape(character)}", rf"\\{{1,4}}u(?i:{code:04x})", f"%(?:25){{0,3}}(?i:{code:02x})",
        f"&(?:amp;)?#0{{0,4}}(?:{code}|[xX]0{{0,4}}(?i:{code:x}));", re.escape(escape(character)),
    ]  # fmt: skip
    return f"(?:{'|'.join(dict.fromkeys(forms))})"
