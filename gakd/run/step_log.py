"""What an optimizer step leaves behind: its counts, notes and losses, in metrics.csv, the loggers and the progress line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gakd.adversary.watch import GameWatch
from gakd.logging.loggers import PROJECT, LoggerName, Loggers
from gakd.logging.metrics import MetricsLog
from gakd.logging.progress import ProgressView
from gakd.objective import Counts, Objective
from gakd.pipes import LEFT, leave_closed_pipes
from gakd.run.exchange import Hosts, sum_
from gakd.types import Batch


class StepLog:
    """Collects one step at a time, of all `world_size` ranks, each of which calls every method; rank 0 alone writes."""

    def __init__(self, world_size: int, hosts: Hosts) -> None:
        self.world_size, self._hosts = world_size, hosts
        self.notes: dict[str, float] = {}  # the same on every rank
        self.own_notes: dict[str, float] = {}  # of this rank: the log has their mean over ranks
        self._counts: dict[tuple[str, ...], Counts] = {}  # names of terms -> counts of the window that they are about
        self._read, self._positions = 0, 0
        self._game = GameWatch()
        self._metrics: MetricsLog | None = None
        self.trouble: str | None = None
        """What keeps this rank from logging: a full disk, a folder that is gone, a pipe that nobody reads."""

    @contextmanager
    def open(
        self, folder: Path, log_to: Sequence[LoggerName], step: int, total: int, is_main: bool, project: str = PROJECT,
        run_name: str | None = None,
    ) -> Iterator[None]:  # fmt: skip
        """The files and the bar of a run that goes on after `step`."""
        with ExitStack() as leaving:
            self._view = leaving.enter_context(closing(ProgressView(total, step, is_main)))
            if is_main:
                log = MetricsLog(
                    folder / "metrics.csv", step, [Loggers(log_to, folder, step, self.say, project, run_name)]
                )
                self._metrics = leaving.enter_context(closing(log))
            yield

    def say(self, text: str) -> None:
        with self._noting_trouble():
            self._view.say(text)

    @contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        """Keeps what hinders the log, so that the step is finished and saved before the run leaves."""
        try:
            yield
        except BrokenPipeError:
            leave_closed_pipes()
            self.trouble = LEFT
        except OSError as error:
            self.trouble = self.trouble or f"cannot write {error.filename or 'the log'} ({error.strerror})"

    def counts(self, window: Sequence[Batch], *names: str) -> Counts:
        """Supervised tokens and sequences of a window over all ranks, kept for the terms that are about it."""
        counts = Counts.over(*window)
        read, positions = sum(batch.tokens for batch in window), sum(batch.labels.numel() for batch in window)
        own = [int(count) for count in self._hosts.sum([counts.tokens, counts.sequences, read, positions])]
        self._counts[names] = Counts(own[0], own[1], self.world_size)
        self._read, self._positions = self._read + own[2], self._positions + own[3]
        return self._counts[names]

    def validation(self, step: int, scores: dict[str, float], seconds: float) -> None:
        """A row of `valid/...` columns; the `seconds` they took are not the training's."""
        if self._metrics is not None:
            with self._noting_trouble():
                self._metrics.append(step, {f"valid/{name}": value for name, value in scores.items()})
            self._view.pace.pause(seconds)

    def read(self, losses: dict[str, Tensor], known: Sequence[Tensor]) -> tuple[dict[str, float], list[float]]:
        """The sum of each loss over all ranks, and what all ranks know already: the one wait for the device in a step."""
        rows = [sum_(_row(list(losses.values())))] if losses else []
        values = torch.cat([*rows, *([_row(known)] if known else [])]).cpu().tolist() if losses or known else []
        return dict(zip(losses, values, strict=False)), values[len(losses) :]

    def finish_step(self, step: int, losses: dict[str, float], objective: Objective) -> None:
        """Log finished `step`, whose `losses` are sums over all ranks, and begin the next."""
        means = self._means(losses, objective)
        self.notes |= objective.finish_step(lambda own: sum_(own.clone()))
        if self.own_notes:
            noted = self._hosts.sum(list(self.own_notes.values()), torch.float32)
            self.notes |= {name: value / self.world_size for name, value in zip(self.own_notes, noted, strict=True)}
        with self._noting_trouble():
            self._view.update(step, self._read, means | {"gradient_norm": self.notes["gradient_norm"]})
        accuracy = (self.notes | means).get("discriminator_accuracy")
        if accuracy is not None and (warning := self._game.observe(accuracy)):
            self.say(f"warning: {warning}")
        if self._metrics is not None:
            tokens = sum(counts.tokens for counts in self._counts.values())
            row = (
                means
                | {"padding": 1 - self._read / self._positions}
                | self.notes
                | {"tokens": tokens, "tokens_read": self._read}
            )
            if self._view.pace.steps > 1:
                row["tokens_per_second"] = self._view.pace.tokens_per_second()
            with self._noting_trouble():
                self._metrics.append(step, row)
        self._counts, self.notes, self.own_notes = {}, {}, {}
        self._read, self._positions = 0, 0

    def _means(self, sums: dict[str, float], objective: Objective) -> dict[str, float]:
        """What the losses are over all ranks, each per token or sequence of its own window."""
        named = {name for names in self._counts for name in names}
        means: dict[str, float] = {}
        for names, counts in self._counts.items():
            about = {name: total for name, total in sums.items() if name in (names or sums.keys() - named)}
            means |= objective.means(about, counts)
        return means


def _row(numbers: Sequence[Tensor]) -> Tensor:
    """Numbers side by side, in fp32, or fp64 where one is."""
    wide = any(number.dtype == torch.float64 for number in numbers)
    return torch.stack([number.to(torch.float64 if wide else torch.float32) for number in numbers])
