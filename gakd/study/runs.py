"""Runs of recipes, each in a process of its own, several at once; what is finished is never run again."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from gakd.cli.entry import parse
from gakd.cli.recipe_files import load_recipe
from gakd.files import write_json
from gakd.machine import peak_memory
from gakd.study.scoring import Scoring, score

COST, SPENT, LOG = "cost.json", "spent.json", "log.txt"
POLL = 0.5  # seconds between looks at the runs


class Job(NamedTuple):
    """One run of a recipe, and how its student is then measured; without a recipe a model is only measured."""

    label: str
    recipe: Path | None
    flags: tuple[str, ...]
    folder: Path
    scoring: Scoring | None = None
    steps: int = 1  # to tell how far it is
    cost: float = 1.0  # against other jobs, about
    threads: int = 1
    model: str | None = None  # what is measured, where that is not the run's student

    @property
    def trained(self) -> bool:
        return self.recipe is None or ((self.folder / "after.json").exists() and (self.folder / COST).exists())

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def finished(self) -> bool:
        return self.trained and (self.scoring is None or self.scores.exists())

    def progress(self) -> float:
        """Share of its steps that are done, 0 to 1."""
        if self.finished:
            return 1.0
        try:
            rows = (self.folder / "metrics.csv").read_bytes().count(b"\n")
        except OSError:
            return 0.0
        return min(rows / (self.steps + 1), 1.0) * 0.9  # what is left is its measuring


def execute(job: Job) -> None:
    """Train, if that is still to do, then measure."""
    torch.set_num_threads(job.threads)
    if job.recipe is not None and not job.trained:
        train(job.recipe, [*job.flags, "--output-dir", str(job.folder), "--resume"], job.folder)
    if job.scoring is not None and not job.scores.exists():
        write_json(job.scores, score(job.model or str(job.folder / "student"), job.scoring))
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)  # a finished run is not resumed, and there are many


def train(recipe: Path, flags: Sequence[str], folder: Path) -> None:
    """Run a recipe and write what all its parts took, where it was interrupted and goes on, to `FOLDER/cost.json`."""
    before = _spent_before(folder)
    started, processor, memory = time.perf_counter(), time.process_time(), peak_memory()

    def spent() -> dict[str, float | None]:
        seconds, processor_seconds = time.perf_counter() - started, time.process_time() - processor
        return {
            "seconds": None if before is None else before["seconds"] + seconds,
            "processor_seconds": None if before is None else before["processor_seconds"] + processor_seconds,
            "megabytes": max((peak_memory() - memory) / 1e6, before["megabytes"] if before is not None else 0.0),
        }

    try:
        run_recipe(recipe, flags)
    except SystemExit:  # a signal asked it to leave: it saved its last step, so none of this time will be spent again
        write_json(folder / SPENT, spent())
        raise
    write_json(folder / COST, spent())


def _spent_before(folder: Path) -> dict[str, float] | None:
    """What the earlier parts of a run took; None where one of them was killed, which tells nobody."""
    spent = folder / SPENT
    told = json.loads(spent.read_text()) if spent.exists() else None
    spent.unlink(missing_ok=True)  # this part, too, may be killed
    if not (folder / "before.json").exists():
        return {"seconds": 0.0, "processor_seconds": 0.0, "megabytes": 0.0}
    return None if told is None or told["seconds"] is None else told


def run_recipe(path: Path, flags: Sequence[str]) -> None:
    """What `python PATH FLAGS` does, in this process."""
    module = load_recipe(path)
    module.main(parse(module.PAPER, module.DEMO, module.__doc__, flags))


def run_all(jobs: Sequence[Job], workers: int, on_progress: Callable[[float, str], None]) -> list[Job]:
    """All jobs that are not finished, the longest first, `workers` at once; 0 workers: here, one after the other.

    `on_progress` gets the cost that is done and what is running. Returns the jobs that failed, which stop no others; their
    folders' logs say why. An interruption ends the running ones; the recipes save, and go on from there.
    """
    waiting = sorted((job for job in jobs if not job.finished), key=lambda job: -job.cost)
    if workers == 0:
        for job in waiting:
            execute_logged(job)
            on_progress(_done(jobs, []), job.label)
    else:
        _run_in_processes(jobs, waiting, workers, on_progress)
    return [job for job in jobs if not job.finished]


def _run_in_processes(
    jobs: Sequence[Job], waiting: list[Job], workers: int, on_progress: Callable[[float, str], None]
) -> None:
    context = _context()
    running: dict[BaseProcess, Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                process = context.Process(target=execute_logged, args=(job,))
                process.start()
                running[process] = job
            time.sleep(POLL)
            running = {process: job for process, job in running.items() if process.is_alive()}
            on_progress(_done(jobs, waiting), ", ".join(job.label for job in running.values()))
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _context() -> ForkServerContext | SpawnContext:
    """A server that has imported everything forks each run in no time; where there is none, each imports by itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gakd.study.runs", "gakd.run.training", "matplotlib.backends.backend_agg"])
    return context


def _done(jobs: Sequence[Job], waiting: Sequence[Job]) -> float:
    skipped = {job.folder for job in waiting}
    return sum(job.cost * job.progress() for job in jobs if job.folder not in skipped)


def execute_logged(job: Job) -> None:
    """`execute`, with all that it prints, and why it failed, in `FOLDER/log.txt`."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / LOG).open("a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        if job.recipe is not None:
            print(f"$ python {job.recipe} {' '.join(job.flags)} --output-dir {job.folder} --resume")
        try:
            execute(job)
        except Exception:
            traceback.print_exc()


def cost_of(job: Job) -> dict[str, float | None]:
    """Wall and processor time in seconds, None for a run that was killed, and peak memory in MB above importing."""
    return json.loads((job.folder / COST).read_text())
