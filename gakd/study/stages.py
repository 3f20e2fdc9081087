"""The stages of a study: its world, the choice of learning rates, the runs that are reported."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from rich.progress import Progress

from gakd.data import DataConfig
from gakd.errors import RunError
from gakd.study.config import Config
from gakd.study.grid import REFERENCE, VARIED, Method, chosen, methods
from gakd.study.knobs import knobs
from gakd.study.results import Entry, Results, read_scores
from gakd.study.runs import LOG, Job, cost_of, run_all
from gakd.study.scoring import Scoring, write_teacher_text
from gakd.study.world import World, make_material, training_flags, training_steps

SECONDS_BETWEEN_LINES = 60  # where there is no terminal to draw a bar on
TEACHER_COST, STUDENT_COST = 20.0, 5.0  # against one run of reverse KL, about: for the time left
RUNS, SEARCH = "runs", "search"  # folders
TUNING_SEED = 0  # the runs that choose a learning rate are none of those that are reported


class Study:
    """Stages that a tool calls in order; `recipes` is the folder of the recipes it runs."""

    def __init__(self, config: Config, recipes: Path, progress: Progress) -> None:
        self.config, self.recipes, self.progress = config, recipes, progress
        self.world = World(config.output_dir / "world", config.world.teacher)
        self.data = DataConfig(
            dataset=str(self.world.data),
            max_length=config.world.max_length,
            max_prompt_length=config.world.longest_prompt,
        )
        self.test = Scoring(self.world, self.data, "test", config.sampling_seeds, config.world.longest_response)
        self.valid = self.test._replace(split="valid", seeds=config.sampling_seeds[:3], rouge_alone=True)
        # A search never looks at the test split.
        self.reported = self.valid._replace(rouge_alone=False) if config.search else self.test
        self.methods = self._methods()
        self.failed: list[Job] = []
        reported = sum(method.cost * self._seeds(method) for method in self.methods)
        self.tuned = [method for method in self.methods if self._is_tuned(method)]
        self._tried = config.learning_rates if len(config.learning_rates) > 1 else ()  # one rate needs no choice
        tuned = sum(method.cost for method in self.tuned) * len(self._tried)
        trained = TEACHER_COST if config.world.teacher is None else 0.0
        self._total = trained + STUDENT_COST + tuned + reported
        self._done, self._before, self._started = 0.0, 0.0, time.monotonic()
        self._said, self._stage = 0.0, ""
        self._task = progress.add_task("", total=self._total, left="", running="")

    def _methods(self) -> list[Method]:
        config = self.config
        steps, longest_response = config.steps, config.world.longest_response
        grid = knobs(steps, longest_response) if config.search else methods(steps, longest_response, self.world.student)
        return chosen(grid, config.methods)

    def _is_tuned(self, method: Method) -> bool:
        """A search compares at the learning rate of the reference."""
        if self.config.search:
            return method.name == REFERENCE
        return method.headline or self.config.tune_ablations

    def make_world(self) -> None:
        """Texts and models; a given teacher reads the texts once, for all runs that can learn from its cache."""
        config = self.config.world
        make_material(self.world, config)
        teacher = Job("teacher", None, (), self.world.folder / "teacher", model=self.world.teacher)
        if config.teacher is None:
            teacher = self._training("teacher", TEACHER_COST)
            self._run("world: teacher", [teacher])
            self.check()
        student = Job("student", None, (), self.world.folder / "student", cost=STUDENT_COST)
        if config.student_epochs > 0:
            student = self._training("student", STUDENT_COST)
        self._show("world: the teacher's text", self._done, self.world.teacher)
        write_teacher_text(self.test)
        self._run(
            "world: student", [teacher._replace(scoring=self.test, cost=0.0), student._replace(scoring=self.test)]
        )
        self.check()
        if self.world.teacher_cache is not None and any(method.cached for method in self.methods):
            self._cache_teacher(self.world.teacher_cache)

    def _training(self, name: str, cost: float) -> Job:
        steps = training_steps(self.world, self.config.world, name, self.config.batch_size)
        flags = (*self._shared_flags(), *training_flags(self.world, name, steps))
        recipe, threads = self.recipes / "baselines" / "sft.py", max(self.config.jobs, 1)
        return Job(name, recipe, flags, self.world.folder / name, None, steps, cost, threads)

    def _cache_teacher(self, folder: Path) -> None:
        command = [
            sys.executable, str(self.recipes / "tools" / "cache_teacher.py"), "--teacher", self.world.teacher, "--output",
            str(folder), *self._data_flags(),
        ]  # fmt: skip
        path = self.world.folder / "teacher-cache.txt"
        self._show("world: teacher cache", self._done, str(path))
        with path.open("w") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise RunError(f"the teacher could not be cached, see {path}; the same command goes on from there")

    def tune(self) -> dict[str, dict[float, float]]:
        """Validation ROUGE-L of each method at each learning rate; nothing where there is one rate."""
        jobs = {
            (method.name, rate): self._job(method, rate, TUNING_SEED, self.valid)
            for method in self.tuned
            for rate in self._tried
        }
        self._run("learning rates", list(jobs.values()))
        tried: dict[str, dict[float, float]] = {method.name: {} for method in self.tuned}
        for (name, rate), job in jobs.items():
            if job.finished:
                tried[name][rate] = fmean(read_scores(job.scores)["rouge_l"]["sums"])
        return {name: own for name, own in tried.items() if own}

    def compare(self, tried: dict[str, dict[float, float]]) -> Results:
        """The runs that are reported, at the best rate tried; a method that is not tuned takes that of what it varies.

        A search has a folder of its own.
        """
        rates = {name: max(own, key=own.__getitem__) for name, own in tried.items()}
        if not self._tried:
            rates = {method.name: self.config.learning_rates[0] for method in self.tuned}
        searched, folder = self.config.search, SEARCH if self.config.search else RUNS
        write_teacher_text(self.reported)
        own = {
            method.name: rates.get(method.name, rates.get(REFERENCE if searched else VARIED)) for method in self.methods
        }
        jobs = {
            method: [self._job(method, rate, 1 + index, self.reported, folder) for index in range(self._seeds(method))]
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
        controls = {method.name: method.compared for method in self.methods}
        return Results(entries, () if searched else models, REFERENCE, controls)

    def _seeds(self, method: Method) -> int:
        return self.config.seeds if method.headline and not self.config.search else self.config.ablation_seeds

    def _entry(self, method: Method, jobs: Sequence[Job], rate: float | None) -> Entry:
        finished = {1 + index: job for index, job in enumerate(jobs) if job.finished}
        scores = {seed: read_scores(job.scores) for seed, job in finished.items()}
        costs = [cost_of(job) for job in finished.values()]
        seconds = [cost["seconds"] for cost in costs if cost["seconds"] is not None]
        memory = [cost["megabytes"] for cost in costs if cost["megabytes"] is not None]
        return Entry(
            method.name, method.label, scores, rate, fmean(seconds) if seconds else None, fmean(memory) if memory else None
        )  # fmt: skip

    def _job(self, method: Method, rate: float, seed: int, scoring: Scoring, runs: str = RUNS) -> Job:
        steps, cache = self.config.steps, ()
        if self.world.teacher_cache is not None and method.cached:
            cache = ("--teacher-cache", str(self.world.teacher_cache))
        name = f"lr-{rate:g}-seed-{seed}"
        flags = (
            "--student", str(self.world.student), "--teacher", self.world.teacher, *cache, *self._shared_flags(),
            "--steps", str(steps), "--warmup-steps", str(steps // 20), "--learning-rate", str(rate), "--seed", str(seed),
            "--evaluate-every", str(max(steps // 5, 1)), *method.flags,
        )  # fmt: skip
        folder = self.config.output_dir / runs / method.name / name
        return Job(f"{method.name} {name}", self.recipes / method.recipe, flags, folder, scoring, steps, method.cost)

    def _shared_flags(self) -> tuple[str, ...]:
        """The run's own evaluation is a light one; what is reported is measured alike for all afterwards."""
        size = str(self.config.batch_size)
        return (
            *self._data_flags(), "--lora-rank", "0", "--batch-size", size, "--micro-batch-size", size, "--save-every", "0",
            "--keep-checkpoints", "1", "--examples", "32", "--text-examples", "0", "--valid-text-examples", "0",
        )  # fmt: skip

    def _data_flags(self) -> tuple[str, ...]:
        return (
            "--dataset", self.data.dataset, "--max-length", str(self.data.max_length), "--max-prompt-length",
            str(self.data.max_prompt_length),
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
        due = stage != self._stage or now - self._said > SECONDS_BETWEEN_LINES
        if not self.progress.console.is_terminal and due:
            self._said, self._stage = now, stage
            said = (f"{done / self._total:.0%} of all", left, running and f"running {running}")
            print(f"{stage}: {', '.join(part for part in said if part)}", flush=True)
