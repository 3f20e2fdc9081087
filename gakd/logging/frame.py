"""A run's metrics as a table to work with, in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gakd.errors import InputError
from gakd.logging.metrics import read_rows

if TYPE_CHECKING:  # half a second, for those who ask for a table
    import pandas


def metrics(folder: str | Path) -> pandas.DataFrame:
    """The numbers of the run in `folder`, a row a step; a run that is still going gives what it has written so far.

    The index is `step`, from 1. The columns are those of `metrics.csv`: losses in nats per token or per sequence, gradient
    norms, the game's accuracy (a share) and margin. What was validated after the step stands in the same row as
    `valid/NAME`, and is NaN at the other steps: `metrics(folder)["valid/reverse_kl"].dropna()`.

    Raises InputError where the folder holds no run, where its metrics.csv is damaged, and where pandas is missing.
    """
    try:
        import pandas
    except ImportError as error:
        raise InputError(
            "gakd.metrics gives a pandas table, and pandas is not installed: pip install pandas"
        ) from error
    path = Path(folder).expanduser() / "metrics.csv"
    if not path.is_file():
        raise InputError(f"{path.parent} holds no metrics.csv: give the output_dir of a run that has begun to train")
    steps: dict[int, dict[str, float]] = {}
    columns: dict[str, None] = {}
    for row in read_rows(path):
        step = int(row.pop("step"))
        columns |= dict.fromkeys(row)
        steps.setdefault(step, {}).update({name: float(cell) for name, cell in row.items() if cell})
    index = pandas.Index(steps, dtype="int64", name="step")
    return pandas.DataFrame(list(steps.values()), index=index, columns=list(columns), dtype="float64")
