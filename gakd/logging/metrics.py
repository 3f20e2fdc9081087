"""What a run has measured, step by step: a CSV, and whatever else it is told of."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from gakd.errors import InputError
from gakd.files import write_whole
from gakd.logging.loggers import Logger


class MetricsLog:
    """A wide CSV, a row a step and one more where the step was evaluated; late columns are added to the header.

    On resume the rows after `resume_at` are dropped: the steps they describe are run again. Each row goes to `others` too.
    InputError where the rows that are kept are damaged.
    """

    def __init__(self, path: Path, resume_at: int = 0, others: Sequence[Logger] = ()) -> None:
        self.path, self.others = path, others
        self.rows: list[dict[str, str]] = []
        if path.exists() and resume_at:
            self.rows = [row for row in read_rows(path) if int(row["step"]) <= resume_at]
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
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv, by column; InputError where it is damaged.

    What follows the last line break is a row that a kill cut short.
    """
    try:
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        reader = csv.DictReader(lines)
        rows = list(reader)
        if "step" not in (reader.fieldnames or ()):
            raise ValueError("its first line names no column step")
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"the row of step {row['step']!r} has more or fewer cells than there are columns")
            int(row["step"])
            for value in filter(None, row.values()):
                float(value)
    except (ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({error}): put back a copy of it, or remove it, and the log begins where the run goes on"
        ) from error
    return rows
