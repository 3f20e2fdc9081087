"""Responses that were paid for, on disk the moment they arrive: a JSONL file that any kill leaves readable."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from gakd.errors import InputError
from gakd.files import sync

_BEGINNING = b'{"key": "'
_CHECK = "check"


class Response(NamedTuple):
    """What a model wrote, and why it stopped."""

    text: str
    finish_reason: str  # the server's word: "stop" at the model's own end, "length" at the limit of tokens
    prompt_tokens: int = 0  # as the server counted them; 0 where it did not
    completion_tokens: int = 0

    @property
    def finished(self) -> bool:
        """Whether the model came to its own end."""
        return self.finish_reason == "stop"


class ResponseCache:
    """Responses by key in the file `path`, a checksum with each; enter it to read what is new there and to append.

    One process at a time may be inside. A last line that a kill cut short is dropped. Raises InputError if another
    process is inside, for a file that something else wrote, which stays untouched, and for one that is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.found: dict[str, Response] = {}
        self._bytes = self._lines = 0  # how far it was read

    def __enter__(self) -> ResponseCache:
        is_new = not self.path.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}): give another path") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._file.close()
            raise InputError(f"another process writes {self.path}: wait for it, or give another path") from None
        except BaseException:
            self._file.close()
            raise
        if is_new:
            sync(self.path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()  # and with it the lock

    def append(self, key: str, response: Response) -> None:
        """On disk once this returns."""
        # ASCII alone: a text may hold halves of surrogate pairs, or line breaks that JSON does not escape.
        record = {"key": key, **response._asdict()}
        line = json.dumps({**record, _CHECK: _check_of(record)}).encode("ascii") + b"\n"
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._bytes, self._lines = self._bytes + len(line), self._lines + 1
        self.found[key] = response

    def _read(self) -> None:
        if self.path.stat().st_size < self._bytes:  # another file took its place
            self._bytes = self._lines = 0
            self.found.clear()
        with self.path.open("rb") as file:
            file.seek(self._bytes)
            whole, line_break, rest = file.read().rpartition(b"\n")
        for line in whole.split(b"\n") if line_break else ():
            try:
                key, response = _response_in(line)
            except (ValueError, TypeError, RecursionError):
                raise InputError(
                    f"{self.path}:{self._lines + 1} is no response of this cache, so something else wrote the file or it "
                    f"is damaged: give another path, or delete the line"
                ) from None
            self.found.setdefault(key, response)
            self._bytes, self._lines = self._bytes + len(line) + 1, self._lines + 1
        if not rest:
            return
        # A kill leaves the beginning of a line, a power cut perhaps zeros; anything else is somebody's text.
        if not (rest.startswith(_BEGINNING[: len(rest)]) or not rest.strip(b"\0")):
            raise InputError(f"{self.path} is no response cache: something else wrote it; give another path")
        os.truncate(self.path, self._bytes)


def _response_in(line: bytes) -> tuple[str, Response]:
    """A line's key and response; ValueError or TypeError where it is not as it was written."""
    record = json.loads(line)
    if not isinstance(record, dict):
        raise TypeError
    names = {"key", *Response._fields}
    if record.keys() != names:  # a line of those names alone is from before there were checksums
        check = record.pop(_CHECK, None)
        if record.keys() != names or check != _check_of(record):
            raise ValueError
    key, response = record.pop("key"), Response(**record)
    if [type(value) for value in (key, *response)] != [str, str, str, int, int]:
        raise TypeError
    return key, response


def _check_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode("ascii")).hexdigest()[:16]
