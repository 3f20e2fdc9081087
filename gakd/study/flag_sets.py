"""Flags that methods of a study share, by what they stand for."""

from __future__ import annotations

from typing import NamedTuple

Flags = tuple[str, ...]


class FlagSets(NamedTuple):
    """For a budget of optimizer steps and a longest response."""

    game: (
        Flags  # the discriminator's size, and a game that begins after a tenth of the steps and is whole after a fifth
    )
    late: Flags  # the same discriminator, in the last fifth alone
    order_blind: Flags  # when `game` begins, for a discriminator that has no width
    slow: Flags  # a discriminator that learns slowly and is held back
    light: Flags  # penalties of a map of probabilities
    alone: Flags  # reverse KL without cross entropy
    own: Flags  # how long the student's own text may be
    taught: Flags  # how long the teacher's

    @classmethod
    def of(cls, steps: int, longest_response: int) -> FlagSets:
        """Penalties are per squared slope with respect to what is read. A map of probabilities starts V times as steep as one of
        logits, so 0.005 there is about what 10 is here at V = 2,048.

        A discriminator is about as large as the student, as the paper's is as its student; the recipes' own is eight times that.
        """
        tenth = str(max(steps // 10, 1))
        begin = ("--adversarial-start", tenth, "--adversarial-ramp", tenth)
        sizes = ("--readout-width", "64", "--discriminator-width", "64")
        return cls(
            game=(*sizes, *begin),
            late=(*sizes, "--adversarial-start", str(steps * 4 // 5), "--adversarial-ramp", "1"),
            order_blind=("--readout-width", "64", *begin),
            slow=("--r1", "100", "--r2", "100", "--discriminator-learning-rate", "5e-5"),
            light=("--r1", "0.005", "--r2", "0.005"),
            alone=("--cross-entropy-weight", "0", "--reverse-kl-weight", "1"),
            own=("--student-max-new-tokens", str(longest_response)),
            taught=("--teacher-max-new-tokens", str(longest_response), "--generation-batch-size", "256"),
        )


def share(value: float) -> Flags:
    """Of the token terms' gradient, at which the game's is held."""
    return "--adversarial-share", f"{value:g}"
