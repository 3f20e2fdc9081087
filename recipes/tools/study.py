"""Does the adversary help, and when? Methods x seeds at one budget in a mini world, with error bars.

python recipes/tools/study.py --output-dir runs/study

A teacher and a student of a Qwen3 architecture are trained from scratch on docstrings; every method starts from that
student, makes the same number of updates, and has its learning rate chosen by the same rule on the validation split.
report.md, results.json and two plots tell how each differs from reverse KL. Killed at any moment, the same command goes on;
what is finished is never run again. --quick shows all of it in minutes, on too little to conclude from. --search tries
many settings of the adversary on the validation split, in the same world, and writes into OUTPUT_DIR/search.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gakd.cli import start_tool
from gakd.errors import InputError
from gakd.study.config import QUICK, Config, claim

if TYPE_CHECKING:
    from gakd.study.results import Results
    from gakd.study.scoring import Scoring

RECIPES = Path(__file__).resolve().parent.parent


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from gakd.study.stages import SEARCH, Study
    from gakd.study.tables import summary

    if (
        min(config.seeds, config.ablation_seeds, config.steps, len(config.learning_rates), len(config.sampling_seeds))
        < 1
    ):
        raise InputError("a study needs at least one seed, one step, one learning rate and one sampling seed")
    claim(config)
    console = Console(width=None if Console().is_terminal else 200)
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"), TextColumn("{task.fields[running]}", style="dim"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        study = Study(config, RECIPES, progress)
        study.make_world()
        tried = study.tune()
        results = study.compare(tried)
    folder = config.output_dir / SEARCH if config.search else config.output_dir
    write_report(folder, results, tried, config, study.reported)
    console.print(summary(results))
    console.print(f"report:  {folder / 'report.md'}", soft_wrap=True)
    study.check()


def write_report(
    folder: Path, results: Results, tried: dict[str, dict[float, float]], config: Config, scoring: Scoring
) -> None:
    """report.md, results.json, differences.png and buckets.png."""
    from gakd.files import write_json, write_whole
    from gakd.study.plots import plot_buckets, plot_differences
    from gakd.study.results import as_json
    from gakd.study.scoring import BOUNDS
    from gakd.study.tables import report

    longest = config.world.longest_response
    short, medium = (int(share * longest) for share in BOUNDS)
    settings = (
        f"On the {'validation' if scoring.split == 'valid' else 'test'} split. {config.steps} updates of {config.batch_size} "
        f"sequences, up to {max(len(entry.seeds) for entry in results.entries)} seeds, sampling seeds "
        f"{', '.join(map(str, scoring.seeds))}, responses of at most {longest} tokens; references are short up to {short}, "
        f"medium up to {medium}."
    )
    write_whole(folder / "report.md", report(results, tried, settings))
    write_json(folder / "results.json", as_json(results))
    plot_differences(results, folder / "differences.png")
    plot_buckets(results, folder / "buckets.png")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are ended with it
    start_tool(main, Config, __doc__, QUICK if "--quick" in sys.argv else Config())
