"""The parent's side: fresh processes, at most three alive, one timed iteration at a time, in turns.

Each implementation runs in turns with the reference and with ours, so a noisy neighbour slows all three and the ratios of
their medians stay. Nothing else runs while one iterates: the others wait on their standard input.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import Case

TIMEOUT = 900.0  # seconds for any one answer: compilation is the slowest
ALLOCATORS = {
    # glibc that keeps what it was given, as a GPU's allocator does, against glibc as it comes
    "caching": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"},
    "default": {},
}
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
REPOSITORY = Path(__file__).parents[2]


class WorkerError(RuntimeError):
    """A worker said why it cannot, or ended."""


class Worker:
    def __init__(self, case: Case, implementation: str, allocator: str, device: str, threads: int) -> None:
        order = {
            "family": case.family, "implementation": implementation, "parameters": case.parameters, "device": device,
            "threads": threads,
        }  # fmt: skip
        self.implementation = implementation
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker", json.dumps(order)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=REPOSITORY,
            env=os.environ | ENVIRONMENT | ALLOCATORS[allocator] | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def ready(self) -> dict[str, Any]:
        return self._answer()

    def iterate(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], TIMEOUT)[0]:
            raise WorkerError(f"no answer in {TIMEOUT:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-1:] or ["no message"]
            raise WorkerError(f"ended with code {self._process.wait()}: {last[0]}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer


def run_module(name: str) -> Any:
    """What a module of this folder prints as JSON, from a process of its own."""
    command = [sys.executable, "-m", f"tests.benchmarks.{name}"]
    output = subprocess.run(command, cwd=REPOSITORY, env=os.environ | ENVIRONMENT, check=True, stdout=subprocess.PIPE)
    return json.loads(output.stdout.splitlines()[-1])


def measure(
    case: Case, allocator: str, rounds: int, device: str, threads: int, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row an implementation: its seconds, those of the reference and of ours in the same turns, memory, or an error."""

    @contextmanager
    def started(implementation: str) -> Iterator[tuple[Worker, dict[str, Any]]]:
        report(f"{case.title}, {allocator} allocator: {implementation}")
        worker = Worker(case, implementation, allocator, device, threads)
        try:
            yield worker, worker.ready()
        finally:
            worker.close()

    base = {"family": case.family, "case": case.name, "allocator": allocator, "parameters": case.parameters}
    rows: list[dict[str, Any]] = []

    def add(implementation: str, facts: dict[str, Any], times: dict[str, list[float]] | None = None) -> None:
        row = base | {"implementation": implementation} | facts
        if times:
            row["rounds"] = times
            row["seconds"] = statistics.median(times[implementation])
            row["to_reference"] = row["seconds"] / statistics.median(times[case.reference])
            row["to_ours"] = row["seconds"] / statistics.median(times["ours"])
        rows.append(row)

    with ExitStack() as stack:
        pair: list[tuple[Worker, dict[str, Any]]] = []
        for implementation in (case.reference, "ours"):
            try:
                pair.append(stack.enter_context(started(implementation)))
            except WorkerError as error:
                return [base | {"implementation": name, "error": str(error)} for name in case.implementations]
        pooled: dict[str, list[float]] = {case.reference: [], "ours": []}
        for implementation in case.others:
            try:
                with started(implementation) as (worker, facts):
                    times = _take_turns([*(worker for worker, _ in pair), worker], rounds)
                    add(implementation, facts, times)
            except WorkerError as error:
                add(implementation, {"error": str(error)})
                continue
            for name, seconds in pooled.items():
                seconds.extend(times[name])
        if not pooled["ours"]:
            pooled = _take_turns([worker for worker, _ in pair], rounds)
        for worker, facts in pair:
            add(worker.implementation, facts, pooled)
    return rows


def _take_turns(workers: Sequence[Worker], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {worker.implementation: [] for worker in workers}
    for index in range(rounds):
        for worker in workers if index % 2 == 0 else reversed(workers):
            times[worker.implementation].append(worker.iterate())
    return times
