"""What a readout is, and from how many rows on its map is worth forming."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor, nn

from gakd.types import Head

Owner = Literal["student", "teacher"]
DEFAULT_WIDTH = 256  # of what a discriminator sees of a token


class Readout(Protocol):
    """What `Adversarial` asks of a readout.

    `step_rows`: rows of each model that this rank reads in the whole step. `log_normalizers_N`: log-sum-exps of the rows'
    logits, where the readout says it needs them.
    """

    needs_log_normalizers: bool

    @property
    def student_map(self) -> nn.Module | None:
        """A part that plays on the student's side, trained by its optimizer; None for most."""
        ...

    def live(self, hidden_NH: Tensor, head: Head, step_rows: float, log_normalizers_N: Tensor | None = None) -> Tensor:
        """The student's rows `[N, R]`, with gradient to hidden states and head, and not to the readout's parameters."""
        ...

    def detached(
        self, hidden_NH: Tensor, head: Head | None, step_rows: float, log_normalizers_N: Tensor | None = None
    ) -> Tensor:
        """Rows whose gradient reaches the readout's parameters alone. Without a head: the student's, after `live`."""
        ...

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        """Squared norm `[B]` of d(score)/d(what is read, over all tokens), from the gradient at the readout."""
        ...

    def flush(self) -> None:
        """Carry the gradients of the step's products to the parameters, and forget the products."""
        ...


def rows_that_pay(readout_width: int, hidden_width: int, owner: Owner, head_trains: bool = False) -> float:
    """Rows of one model in a step from which forming M costs less than reading its logits.

    In multiply-adds for each token of the vocabulary. Factored, a step costs R H each for M and for the gradient of E,
    and for that of a head that trains. Direct, each row costs H for its logits, R to read them and R for the gradient of
    E, and a student's also R + H for the gradients of its logits and hidden state, and H for a head that trains.
    """
    if owner == "teacher":
        return 2 * readout_width * hidden_width / (hidden_width + 2 * readout_width)
    products = 2 + head_trains
    return products * readout_width * hidden_width / (products * hidden_width + 3 * readout_width)


def check_vocabulary(head: Head, owner: Owner, vocab_size: int) -> None:
    """ValueError where a head has fewer tokens than a map."""
    if head.vocab_size < vocab_size:
        raise ValueError(
            f"the readout maps {vocab_size} tokens, the {owner}'s head has {head.vocab_size}: "
            "build it with the smaller size"
        )


def known(log_normalizers_N: Tensor | None) -> Tensor:
    """Log-sum-exps that a readout needs; ValueError where they are missing."""
    if log_normalizers_N is None:
        raise ValueError(
            "this readout needs the log-sum-exps of a token pass, got None: call `token_pass(..., normalizers=True)`"
        )
    return log_normalizers_N
