"""What a run has measured, step by step: a CSV, and whatever else it is told of."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from gakd.logging.loggers import Logger


class MetricsLog:
    """A wide CSV, a row a step and one more where the step was evaluated; late columns are added to the header.

    On resume the rows after `resume_at` are dropped: the steps they describe are run again. Each row goes to `others` too.
    """

    def __init__(self, path: Path, resume_at: int = 0, others: Sequence[Logger] = ()) -> None:
        self.path, self.others = path, others
        self.rows: list[dict[str, str]] = []
        if path.exists():
            # What follows the last line break is a row that a kill cut short.
            whole = path.read_text().rpartition("\n")[0].splitlines()
            self.rows = [row for row in csv.DictReader(whole) if int(row["step"]) <= resume_at]
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row)) or ["step"]
        self._rewrite()

    def append(self, step: int, values: dict[str, float]) -> None:
        row = {"step": str(step), **{name: f"{value:.6g}" for name, value in values.items()}}
        self.rows.append(row)
        late = [name for name in row if name not in self.columns]
        if late:
            self.columns += late
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        for other in self.others:
            other.log(step, values)

    def close(self) -> None:
        for other in self.others:
            other.close()

    def _rewrite(self) -> None:
        scratch = self.path.with_suffix(".tmp")
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(scratch, self.path)
