"""Does the adversary help, and when? Methods x seeds at one budget in a mini world, with error bars.

python recipes/tools/study.py --output-dir runs/study

A teacher and a student of a Qwen3 architecture are trained from scratch on docstrings; every method starts from that
student, makes the same number of updates, and has its learning rate chosen by the same rule on the validation split.
report.md, results.json and two plots tell how each differs from reverse KL. Killed at any moment, the same command goes on;
what is finished is never run again. --quick shows all of it in minutes, on too little to conclude from.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import fmean

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gakd.cli import run
from gakd.data import DataConfig
from gakd.errors import InputError, RunError
from gakd.study.grid import LEARNING_RATES, REFERENCE, VARIED, Method, chosen, methods
from gakd.study.plots import plot_buckets, plot_differences
from gakd.study.results import Entry, Results, as_json, read_scores
from gakd.study.runs import LOG, Job, cost_of, run_all
from gakd.study.scoring import Scoring, write_teacher_text
from gakd.study.settings import keep_to, write_json
from gakd.study.tables import report, summary
from gakd.study.world import World, WorldConfig, make_material, training_flags

RECIPES = Path(__file__).resolve().parent.parent
FREE_TO_CHANGE = ("output_dir", "quick", "methods", "seeds", "ablation_seeds", "jobs")
SECONDS_BETWEEN_LINES = 60  # where there is no terminal to draw a bar on
TEACHER_COST, STUDENT_COST = 20.0, 5.0  # against one run of reverse KL, about: for the time left
TUNING_SEED = 0  # the runs that choose a learning rate are none of those that are reported


@dataclass
class Config:
    output_dir: Path = Path("runs/study")
    """Folder of the world, all runs and the report; a later command with the same settings goes on in it."""
    quick: bool = False
    """A tiny world, two methods and two seeds: minutes, to see that all works and what comes out."""
    methods: tuple[str, ...] = ()
    """Methods to run, reverse_kl always among them, and gakd where a variant of it is; none: all."""
    seeds: int = 5
    """Runs of each headline method, each with its own data order."""
    ablation_seeds: int = 3
    """Runs of each variant of GAKD."""
    steps: int = 300
    """Updates of the student in each run."""
    batch_size: int = 16
    """Sequences per update."""
    learning_rates: tuple[float, ...] = LEARNING_RATES
    """Peak learning rates that are tried for every headline method."""
    tune_ablations: bool = False
    """Try them for every variant of GAKD too; else these take GAKD's, so that one thing changes."""
    sampling_seeds: tuple[int, ...] = (10, 20, 30, 40, 50)
    """Each draws one response a test prompt; validation takes the first three. [10 20 30 40 50]"""
    jobs: int = os.cpu_count() or 1
    """Runs at once, of one thread each; 0: in this process, one after the other."""
    world: WorldConfig = field(default_factory=WorldConfig)


QUICK = Config(
    output_dir=Path("runs/study-quick"), quick=True, methods=("reverse_kl", "gakd"), seeds=2, ablation_seeds=2, steps=40,
    learning_rates=(1e-3, 3e-3), sampling_seeds=(10, 20),
    world=WorldConfig(
        vocabulary=1024, longest_response=64, train_rows=2000, held_out_rows=64, teacher_width=64, teacher_epochs=2,
        student_layers=1, student_epochs=1,
    ),
)  # fmt: skip


class Study:
    """The stages of a study: its world, the choice of learning rates, the runs that are reported."""

    def __init__(self, config: Config, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.world = World(config.output_dir / "world")
        self.data = DataConfig(
            dataset=str(self.world.data),
            max_length=config.world.max_length,
            max_prompt_length=config.world.longest_prompt,
        )
        self.test = Scoring(self.world, self.data, "test", config.sampling_seeds, config.world.longest_response)
        self.valid = self.test._replace(split="valid", seeds=config.sampling_seeds[:3], rouge_alone=True)
        grid = methods(config.steps, config.world.longest_response, self.world.student)
        self.methods = chosen(grid, config.methods)
        self.failed: list[Job] = []
        reported = sum(method.cost * self._seeds(method) for method in self.methods)
        self.tuned = [method for method in self.methods if method.headline or config.tune_ablations]
        tuned = sum(method.cost for method in self.tuned) * len(config.learning_rates)
        self._total = TEACHER_COST + STUDENT_COST + tuned + reported
        self._done, self._before, self._started, self._said = 0.0, 0.0, time.monotonic(), 0.0
        self._task = progress.add_task("", total=self._total, left="", running="")

    def make_world(self) -> None:
        config, recipe, threads = self.config, RECIPES / "baselines" / "sft.py", max(self.config.jobs, 1)
        make_material(self.world, config.world)
        teacher, student = (
            Job(name, recipe, (*self._shared_flags(), *training_flags(self.world, config.world, name, config.batch_size)),
                self.world.folder / name, cost=TEACHER_COST, threads=threads)
            for name in ("teacher", "student")
        )  # fmt: skip
        self._run("world: teacher", [teacher])
        self.check()
        write_teacher_text(self.test)
        self._run(
            "world: student", [job._replace(scoring=self.test, cost=STUDENT_COST / 2) for job in (teacher, student)]
        )

        self.check()

    def tune(self) -> dict[str, dict[float, float]]:
        """Validation ROUGE-L of each method at each learning rate."""
        jobs = {
            (method.name, rate): self._job(method, rate, TUNING_SEED, self.valid)
            for method in self.tuned
            for rate in self.config.learning_rates
        }
        self._run("learning rates", list(jobs.values()))
        tried: dict[str, dict[float, float]] = {method.name: {} for method in self.tuned}
        for (name, rate), job in jobs.items():
            if job.finished:
                tried[name][rate] = fmean(read_scores(job.scores)["rouge_l"]["sums"])
        return {name: own for name, own in tried.items() if own}

    def compare(self, rates: dict[str, float]) -> Results:
        """The runs that are reported; a method without a rate of its own takes that of what it varies."""
        own = {method.name: rates.get(method.name, rates.get(VARIED)) for method in self.methods}
        jobs = {
            method: [self._job(method, rate, 1 + index, self.test) for index in range(self._seeds(method))]
            for method in self.methods
            if (rate := own[method.name]) is not None
        }
        self._run("runs", [job for of_method in jobs.values() for job in of_method])
        found = [self._entry(method, of_method, own[method.name]) for method, of_method in jobs.items()]
        entries = tuple(entry for entry in found if entry.scores)
        if REFERENCE not in {entry.name for entry in entries}:
            self.check()
        models = tuple(
            Entry(name, label, {0: read_scores(self.world.folder / name / "scores.json")})
            for name, label in (("teacher", "the teacher"), ("student", "the student before"))
        )
        return Results(entries, models, REFERENCE)

    def _seeds(self, method: Method) -> int:
        return self.config.seeds if method.headline else self.config.ablation_seeds

    def _entry(self, method: Method, jobs: Sequence[Job], rate: float | None) -> Entry:
        finished = {1 + index: job for index, job in enumerate(jobs) if job.finished}
        scores = {seed: read_scores(job.scores) for seed, job in finished.items()}
        costs = [cost_of(job) for job in finished.values()]
        seconds = [cost["seconds"] for cost in costs if cost["seconds"] is not None]
        memory = [cost["megabytes"] for cost in costs if cost["megabytes"] is not None]
        return Entry(
            method.name, method.label, scores, rate, fmean(seconds) if seconds else None, fmean(memory) if memory else None
        )  # fmt: skip

    def _job(self, method: Method, rate: float, seed: int, scoring: Scoring) -> Job:
        steps = self.config.steps
        name = f"lr-{rate:g}-seed-{seed}"
        flags = (
            "--student", str(self.world.student), "--teacher", str(self.world.teacher), *self._shared_flags(),
            "--steps", str(steps), "--warmup-steps", str(steps // 20), "--learning-rate", str(rate), "--seed", str(seed),
            "--evaluate-every", str(max(steps // 5, 1)), *method.flags,
        )  # fmt: skip
        folder = self.config.output_dir / "runs" / method.name / name
        return Job(f"{method.name} {name}", RECIPES / method.recipe, flags, folder, scoring, steps, method.cost)

    def _shared_flags(self) -> tuple[str, ...]:
        """The run's own evaluation is a light one; what is reported is measured alike for all afterwards."""
        size = str(self.config.batch_size)
        return (
            "--dataset", self.data.dataset, "--max-length", str(self.data.max_length),
            "--max-prompt-length", str(self.data.max_prompt_length), "--lora-rank", "0", "--batch-size", size,
            "--micro-batch-size", size, "--save-every", "0", "--keep-checkpoints", "1", "--examples", "32",
            "--text-examples", "0", "--valid-text-examples", "0",
        )  # fmt: skip

    def _run(self, stage: str, jobs: Sequence[Job]) -> None:
        self._before += sum(job.cost for job in jobs if job.finished)
        self.failed += run_all(
            jobs, self.config.jobs, lambda done, running: self._show(stage, self._done + done, running)
        )
        self._done += sum(job.cost for job in jobs)

    def check(self) -> None:
        """RunError where runs have failed."""
        if self.failed:
            first = self.failed[0]
            raise RunError(
                f"{len(self.failed)} runs failed and are left out, the first: {first.label}, see {first.folder / LOG}; "
                f"the same command runs again what is missing"
            )

    def _show(self, stage: str, done: float, running: str) -> None:
        new, now = done - self._before, time.monotonic()
        left = "" if new <= 0 else f"{timedelta(seconds=int((self._total - done) * (now - self._started) / new))} left"
        self.progress.update(self._task, completed=done, description=stage, left=left, running=running)
        if not self.progress.console.is_terminal and now - self._said > SECONDS_BETWEEN_LINES:
            self._said = now
            print(f"{stage}: {done / self._total:.0%} of all, {left}, running {running}", flush=True)


def main(config: Config) -> None:
    if (
        min(config.seeds, config.ablation_seeds, config.steps, len(config.learning_rates), len(config.sampling_seeds))
        < 1
    ):
        raise InputError("a study needs at least one seed, one step, one learning rate and one sampling seed")
    claim(config)
    console = Console(width=None if Console().is_terminal else 160)
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"), TextColumn("{task.fields[running]}", style="dim"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        study = Study(config, progress)
        study.make_world()
        tried = study.tune()
        results = study.compare({name: max(own, key=own.__getitem__) for name, own in tried.items()})
    write_report(config.output_dir, results, tried, config)
    console.print(summary(results))
    console.print(f"report:  {config.output_dir / 'report.md'}", soft_wrap=True)
    study.check()


def claim(config: Config) -> None:
    """Keep the settings beside the results; InputError where the folder holds a study of other ones."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    if not keep_to(config.output_dir / "study.json", settings):
        config.output_dir.mkdir(parents=True, exist_ok=True)
        write_json(config.output_dir / "study.json", settings)


def write_report(folder: Path, results: Results, tried: dict[str, dict[float, float]], config: Config) -> None:
    """report.md, results.json, differences.png and buckets.png."""
    settings = (
        f"{config.steps} updates of {config.batch_size} sequences, up to {config.seeds} seeds, sampling seeds "
        f"{', '.join(map(str, config.sampling_seeds))}, responses of at most {config.world.longest_response} tokens."
    )
    (folder / "report.md").write_text(report(results, tried, settings))
    write_json(folder / "results.json", as_json(results))
    plot_differences(results, folder / "differences.png")
    plot_buckets(results, folder / "buckets.png")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are ended with it
    default = QUICK if "--quick" in sys.argv else Config()
    run(main, tyro.cli(Config, default=default, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
