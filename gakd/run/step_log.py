"""What an optimizer step leaves behind: its counts, notes and losses, in metrics.csv, the loggers and the progress line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gakd.adversary.adversarial import GameWatch
from gakd.logging.loggers import LoggerName, Loggers
from gakd.logging.metrics import MetricsLog
from gakd.logging.progress import ProgressView
from gakd.objective import Counts, Objective
from gakd.pipes import LEFT, leave_closed_pipes
from gakd.types import Batch


class StepLog:
    """Collects one step at a time. `over_ranks` sums a tensor over all `world_size` ranks; rank 0 alone writes."""

    def __init__(self, world_size: int, device: torch.device, over_ranks: Callable[[Tensor], Tensor]) -> None:
        self.world_size, self.device, self.over_ranks = world_size, device, over_ranks
        self.notes: dict[str, float] = {}  # the same on every rank
        self.own_notes: dict[str, float] = {}  # of this rank: the log has their mean over ranks
        self._counts: dict[tuple[str, ...], Counts] = {}  # names of terms -> counts of the window that they are about
        self._read, self._positions = 0, 0
        self._game = GameWatch()
        self._metrics: MetricsLog | None = None
        self.trouble: str | None = None
        """What keeps this rank from logging: a full disk, a folder that is gone, a pipe that nobody reads."""

    @contextmanager
    def open(self, folder: Path, log_to: Sequence[LoggerName], step: int, total: int, is_main: bool) -> Iterator[None]:
        """The files and the bar of a run that goes on after `step`."""
        with ExitStack() as leaving:
            self._view = leaving.enter_context(closing(ProgressView(total, step, is_main)))
            if is_main:
                log = MetricsLog(folder / "metrics.csv", step, [Loggers(log_to, folder, step, self.say)])
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
        lengths = [length for batch in window for length in batch.lengths]
        read, positions = sum(batch.tokens for batch in window), sum(batch.labels.numel() for batch in window)
        own = [sum(lengths), sum(length > 0 for length in lengths), read, positions]
        if self.world_size > 1:
            own = self.over_ranks(torch.tensor(own, device=self.device)).tolist()
        self._counts[names] = Counts(own[0], own[1], self.world_size)
        self._read, self._positions = self._read + own[2], self._positions + own[3]
        return self._counts[names]

    def validation(self, step: int, scores: dict[str, float], seconds: float) -> None:
        """A row of `valid/...` columns; the `seconds` they took are not the training's."""
        if self._metrics is not None:
            with self._noting_trouble():
                self._metrics.append(step, {f"valid/{name}": value for name, value in scores.items()})
            self._view.pace.pause(seconds)

    def finish_step(self, step: int, losses: dict[str, Tensor], objective: Objective) -> None:
        """Log finished `step`, whose `losses` are this rank's sums, and begin the next; every rank must call it."""
        means = self._means(losses, objective)
        self.notes |= objective.finish_step(self.over_ranks)
        if self.own_notes:
            noted = self.over_ranks(torch.tensor(list(self.own_notes.values()), device=self.device))
            self.notes |= zip(self.own_notes, (noted / self.world_size).tolist(), strict=True)
        with self._noting_trouble():
            self._view.update(step, self._read, means | {"gradient_norm": self.notes["gradient_norm"]})
        accuracy = (self.notes | means).get("discriminator_accuracy")
        if accuracy is not None and (warning := self._game.observe(accuracy)):
            self.say(f"warning: {warning}")
        if self._metrics is not None:
            tokens = sum(counts.tokens for counts in self._counts.values())
            row = means | {"padding": 1 - self._read / self._positions} | self.notes | {"tokens": tokens}
            if self._view.pace.steps > 1:
                row["tokens_per_second"] = self._view.pace.tokens_per_second()
            with self._noting_trouble():
                self._metrics.append(step, row)
        self._counts, self.notes, self.own_notes = {}, {}, {}
        self._read, self._positions = 0, 0

    def _means(self, losses: dict[str, Tensor], objective: Objective) -> dict[str, float]:
        """What the losses are over all ranks, each per token or sequence of its own window."""
        sums = {name: float(self.over_ranks(total)) for name, total in losses.items()}
        named = {name for names in self._counts for name in names}
        means: dict[str, float] = {}
        for names, counts in self._counts.items():
            about = {name: total for name, total in sums.items() if name in (names or sums.keys() - named)}
            means |= objective.means(about, counts)
        return means
