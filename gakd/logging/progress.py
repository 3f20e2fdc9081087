"""How far a run is, while it runs: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from gakd.machine import peak_memory

# A live line has room for what tells how training goes; the CSV holds everything.
_SHORT = {
    "cross_entropy": "CE",
    "forward_kl": "FKL",
    "reverse_kl": "RKL",
    "jensen_shannon": "JSD",
    "adversarial": "adv",
    "discriminator": "D",
    "discriminator_accuracy": "D acc",
    "gradient_norm": "grad",
}
_BAR_WIDTH = 8
_NOT_SHOWN = {"discriminator_penalty", "discriminator_margin"}


class Pace:
    """Tokens per second and seconds left, from this process's own steps (the first is warm-up and not counted)."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.tokens, self.steps, self.started = 0, 0, time.perf_counter()

    def advance(self, tokens: int) -> None:
        if self.steps == 0:
            self.started = time.perf_counter()
        else:
            self.tokens += tokens
        self.steps += 1

    def pause(self, seconds: float) -> None:
        """Leave out time that was not training."""
        self.started += seconds

    def tokens_per_second(self) -> float:
        return self.tokens / max(time.perf_counter() - self.started, 1e-9)

    def seconds_left(self, step: int) -> float:
        return (time.perf_counter() - self.started) / max(self.steps - 1, 1) * (self.total - step)


def _peak_memory() -> int:
    """Bytes: the most that torch has held on this process's GPU; without one, of the process."""
    import torch  # here, so that the flags of a run can be read without it

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()


WIDTH = 80  # of a line that goes to no terminal


def fitted(terms: Sequence[str], behind: str, width: int) -> str:
    """The first terms, as many as fit before what stands behind them in a line of this width."""
    text = ""
    for term in terms:
        if len(text) + len(term) + len(behind) + 4 > width:
            break
        text += f"{term} "
    return f"{text}| {behind}"


class ProgressView:
    """Step, loss terms, tokens/s and time left: a live bar on a terminal, a line every so often otherwise."""

    def __init__(self, total: int, start: int, shown: bool, every: float = 10.0) -> None:
        self.total, self.shown, self.every = total, shown, every
        self.console = Console()
        self.pace = Pace(total)
        self._last_line = 0.0
        self._bar: Progress | None = None
        if shown and self.console.is_terminal:
            columns = (
                BarColumn(bar_width=_BAR_WIDTH),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("", total=total, completed=start)
            self._bar.start()

    def update(self, step: int, tokens: int, values: dict[str, float]) -> None:
        self.pace.advance(tokens)
        if not self.shown:
            return
        pace = "warming up"
        if self.pace.steps > 1:
            left = int(self.pace.seconds_left(step))
            pace = f"{self.pace.tokens_per_second():,.0f} tok/s, {left // 60}:{left % 60:02d} left"
        shown = {name: value for name, value in values.items() if name not in _NOT_SHOWN}
        terms = [f"{_SHORT.get(name, name)} {value:.3g}" for name, value in shown.items()]
        pace = f"{pace} | {_peak_memory() / 1e9:.1f} GB"
        if self._bar is not None:
            room = self.console.width - _BAR_WIDTH - len(f" {self.total}/{self.total} ")
            self._bar.update(self._task, completed=step, description=fitted(terms, pace, room))
        elif time.perf_counter() - self._last_line > self.every or step == self.total:
            self._last_line = time.perf_counter()
            start = f"step {step}/{self.total} "
            print(f"{start}{fitted(terms, pace, WIDTH - len(start))}", flush=True)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if not self.shown:
            return
        if self._bar is not None:
            self.console.print(text, highlight=False, soft_wrap=True)
        else:  # rich would end the process where nobody reads it
            print(Text.from_markup(text).plain, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
