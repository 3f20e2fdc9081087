"""Notices, from the log's accuracies, that a game is lost."""

from __future__ import annotations


class GameWatch:
    """Notices a game that is lost: every pair, or as good as a coin toss, told apart for `patience` steps on end."""

    def __init__(self, patience: int = 50) -> None:
        self.patience = patience
        self._verdict, self._steps = "", 0

    def observe(self, accuracy: float) -> str | None:
        """Once per spell, what is wrong and what to change."""
        verdict = {1.0: "won by the discriminator", 0.5: "undecided"}.get(accuracy, "")
        self._steps = self._steps + 1 if verdict == self._verdict else 1
        self._verdict = verdict
        if not verdict or self._steps != self.patience:
            return None
        if accuracy == 1.0:
            remedy = "lower --discriminator-learning-rate, or raise its penalties' weights"
        else:
            remedy = "raise --discriminator-learning-rate, or lower its penalties' weights"
        return f"the game has been {verdict} for {self.patience} steps: the student learns little from it; {remedy}"
