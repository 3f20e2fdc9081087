"""Packages that gakd does without until a flag asks for one: who needs which, and the extra that brings it."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gakd.errors import InputError


class Need(NamedTuple):
    """What cannot be done without some packages."""

    what: str
    packages: tuple[str, ...]  # as they are imported
    extra: str
    otherwise: str = "leave it out"


def needs_of(config: Any) -> Iterator[Need]:
    """What the flags ask for: each group of them says so itself, in `needs()`, which imports nothing."""
    if hasattr(config, "needs"):
        yield from config.needs()
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from needs_of(value)


def check_needs(needs: Iterable[Need]) -> None:
    """InputError, with the line that installs all that is missing."""
    missing = {need: [name for name in need.packages if importlib.util.find_spec(name) is None] for need in needs}
    missing = {need: names for need, names in missing.items() if names}
    if missing:
        found = ", ".join(f"{need.what} needs {' and '.join(names)}" for need, names in missing.items())
        extras = ",".join(dict.fromkeys(need.extra for need in missing))
        otherwise = " and ".join(dict.fromkeys(need.otherwise for need in missing))
        raise InputError(f"{found}: pip install 'gakd[{extras}]', or {otherwise}")
