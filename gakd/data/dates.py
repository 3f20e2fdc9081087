"""The date that templates set: fixed where a run begins, and taken up again by whatever goes on with it."""

from __future__ import annotations

from datetime import date as Date
from pathlib import Path
from typing import Any

from gakd.errors import InputError
from gakd.files import read_json


def fixed_date(given: str | None, *kept: tuple[Path, tuple[str, ...]]) -> str:
    """The date that is given, else the first that a file has kept (its path, and the keys down to the date), else today's.

    InputError for a date that is none.
    """
    if given is not None:
        try:
            return Date.fromisoformat(given).isoformat()
        except ValueError:
            raise InputError(f"--date {given!r} is no date: give one such as 2026-11-30, or leave it out") from None
    found = (_kept_in(path, keys) for path, keys in kept)
    return next(filter(None, found), None) or Date.today().isoformat()


def _kept_in(path: Path, keys: tuple[str, ...]) -> str | None:
    value: Any = read_json(path)
    try:
        for key in keys:
            value = value[key]
        return Date.fromisoformat(value).isoformat()
    except (ValueError, KeyError, TypeError):  # what is wrong with such a file is said where it is read
        return None
