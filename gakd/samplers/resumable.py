"""A JSONL file that is written batch by batch and, after any interruption, goes on after the last whole batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gakd.errors import InputError
from gakd.files import hold, read_sealed, write_sealed

_UNSEALED = frozenset({"settings", "batches", "bytes", "totals"})  # of a file from before it had a digest


class ResumableRows:
    """Rows in `path`; beside it `path.json` with the settings that made them and how much is done.

    A file begun with other settings is refused, since its rows would be a mixture. Raises InputError for that, for a file
    that something else wrote or another process writes, for one that lost rows, and for one whose rows have changed.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self._sidecar = self.path.with_name(self.path.name + ".json")
        self._settings = json.loads(json.dumps(settings, default=str))
        self._bytes, self._digest = 0, hashlib.sha256()  # of the whole batches
        self.batches = 0
        """Whole batches in the file."""
        self.totals: dict[str, int] = {}
        """Sums of what `append` was told to count."""
        self._lock = hold(self.path.with_name(f".{self.path.name}.lock"))  # open as long as this object is
        if self._lock is None:
            raise InputError(f"another process writes {path}: wait for it or end it, or give another path")
        if self._sidecar.exists():
            self._continue()
        elif self.path.exists():
            raise InputError(
                f"{path} has no {self._sidecar.name} beside it, so something else wrote it: give another path"
            )
        else:
            self._save()

    def append(self, records: Sequence[dict[str, Any]], counts: dict[str, int]) -> None:
        """One batch; it is on disk, or not there at all, whenever the process ends."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        with self.path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._digest.update(lines)
        self._bytes += len(lines)
        self.batches += 1
        self.totals = {name: self.totals.get(name, 0) + count for name, count in counts.items()}
        self._save()

    def _continue(self) -> None:
        try:
            state = read_sealed(self._sidecar, _UNSEALED)
        except ValueError as error:
            raise InputError(
                f"{self._sidecar} is damaged ({error}), so nothing says what {self.path.name} is: put back a copy of it, or "
                f"delete both to start again"
            ) from error
        check_settings(self.path, state["settings"], self._settings)
        self.batches, self._bytes, self.totals = state["batches"], state["bytes"], state["totals"]
        self.path.touch()
        with self.path.open("rb") as file:
            left = self._bytes
            while left and (block := file.read(min(left, 1 << 20))):
                self._digest.update(block)
                left -= len(block)
        again = "delete both files to start again"
        if left:
            raise InputError(
                f"{self.path} has {self._bytes - left} bytes, {self._sidecar.name} says {self._bytes}: rows were lost; {again}"
            )
        if state.get("sha256", now := self._digest.hexdigest()) != now:
            raise InputError(f"{self.path} is not as it was written: put back a copy of it, or {again}")
        os.truncate(self.path, self._bytes)  # what an interrupted batch left

    def _save(self) -> None:
        state = {"settings": self._settings, "batches": self.batches, "bytes": self._bytes, "totals": self.totals}
        write_sealed(self._sidecar, state | {"sha256": self._digest.hexdigest()})


def check_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """InputError where what a file was begun with is not what it would go on with."""
    if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        differences = "; ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in changed)
        raise InputError(f"{path} was begun with other settings: {differences}. Use the same, or another path")
