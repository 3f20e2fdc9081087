"""A JSONL file that is written batch by batch and, after any interruption, goes on after the last whole batch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gakd.errors import InputError
from gakd.files import write_json


class ResumableRows:
    """Rows in `path`; beside it `path.json` with the settings that made them and how much is done.

    A file begun with other settings is refused, since its rows would be a mixture. Raises ValueError for that, for a
    file that something else wrote, and for one that lost rows.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self._sidecar = self.path.with_name(self.path.name + ".json")
        self._settings = json.loads(json.dumps(settings, default=str))
        self._bytes = 0
        self.batches = 0
        """Whole batches in the file."""
        self.totals: dict[str, int] = {}
        """Sums of what `append` was told to count."""
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
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        self._bytes = self.path.stat().st_size
        self.batches += 1
        self.totals = {name: self.totals.get(name, 0) + count for name, count in counts.items()}
        self._save()

    def _continue(self) -> None:
        state = json.loads(self._sidecar.read_text(encoding="utf-8"))
        check_settings(self.path, state["settings"], self._settings)
        self.batches, self._bytes, self.totals = state["batches"], state["bytes"], state["totals"]
        self.path.touch()
        if (size := self.path.stat().st_size) < self._bytes:
            raise InputError(
                f"{self.path} has {size} bytes, {self._sidecar.name} says {self._bytes}: rows were lost; "
                f"delete both files to start again"
            )
        os.truncate(self.path, self._bytes)  # what an interrupted batch left

    def _save(self) -> None:
        state = {"settings": self._settings, "batches": self.batches, "bytes": self._bytes, "totals": self.totals}
        write_json(self._sidecar, state, indent=2)


def check_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """InputError where what a file was begun with is not what it would go on with."""
    if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        differences = "; ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in changed)
        raise InputError(f"{path} was begun with other settings: {differences}. Use the same, or another path")
