"""Flags: their names and values in a dataclass, and what a number or text among them may be."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gakd.errors import InputError

Group = TypeVar("Group")


class Bound(NamedTuple):
    """The numbers that a flag takes; `above` and `below` are themselves refused."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    infinite: bool = False  # infinity is one of them

    def holds(self, value: float) -> bool:
        try:
            value = float(value)
        except OverflowError:  # an integer of hundreds of digits
            return False
        return (
            (math.isfinite(value) or (self.infinite and not math.isnan(value)))
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        limits = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return (
            " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
            or "a finite number"
        )


COUNT, OPTIONAL_COUNT = Bound(at_least=1), Bound(at_least=0)
NOT_NEGATIVE, POSITIVE = Bound(at_least=0), Bound(above=0)
RATE = Bound(above=0, at_most=1e6)
SHARE = Bound(at_least=0, at_most=1)
# The last word of a variable's name, perhaps with a number behind it; API_KEY may also have whose it is behind it.
_SECRET_NAME = re.compile(
    r"(API_?KEYS?|TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|(^|_)(KEYS?|PASS|PWD|PAT|CREDENTIALS?|AUTH))(_?\d+)?$"
    r"|(^|_)API_?KEYS?_",
    re.IGNORECASE,
)
# Flags that are called otherwise than they were: a run's config.json may be from before.
RENAMED = {"temperature": "sampling_temperature"}
SEED = Bound(at_least=0, at_most=2**32 - 1)  # what every generator that is seeded takes


def check(config: Any, bounds: Mapping[str, Bound]) -> None:
    """InputError for a number out of its bounds, and for a text that holds a password.

    `config` is a dataclass whose groups of flags are dataclasses. A flag without an entry takes any finite number, and a
    weight any that is not negative.
    """
    for name, value in flags_of(config):
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            bound = bounds.get(name, NOT_NEGATIVE if name.endswith("_weight") else Bound())
            if not bound.holds(value):
                raise InputError(f"{flag} is {bound}, got {value}")
        if isinstance(value, (str, Path)) and _holds_secret(str(value)):
            raise InputError(  # which repeats no part of it
                f"{flag} holds a password or a key, which would be saved with the run: leave it out, and put it into the "
                f"environment"
            )


def group_of(config: Any, kind: type[Group]) -> Group | None:
    """The group of flags of a kind that a recipe's configuration has."""
    return next((value for value in vars(config).values() if isinstance(value, kind)), None)


def flags_of(config: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of all flags, those of groups included."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flags_of(value)
        else:
            yield field.name, value


def words_of(config: Any, defaults: Any, left_out: Set[str] = frozenset()) -> list[str]:
    """The flags of a command line that makes `config` out of `defaults`, another one of its class."""
    before, words = dict(flags_of(defaults)), list[str]()
    for name, value in flags_of(config):
        if name in left_out or value == before[name]:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, (tuple, list)) else [value])]
    return words


def _holds_secret(text: str) -> bool:
    """Whether a text has an address with a password, https://name:password@host, or a key that the environment holds."""
    if re.search(r"[a-z0-9]{2}:/{1,2}[^/\s@]+@", text, re.I):  # a path has lost one of the two strokes
        return True
    values = [value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    return any(_may_be_secret(value) and value in text for value in values)


def _may_be_secret(value: str) -> bool:
    """Whether a value is long enough for a secret, and no path: a path says where the secret is."""
    return len(value) >= 8 and not value.startswith(("~", "./", "../", "file:")) and not _is_there(value)


def _is_there(value: str) -> bool:
    """Whether it is a path with a top folder of this machine: a key may begin with a stroke as well."""
    return "/" in value and os.path.exists("/".join(value.split("/", 2)[:2]))
