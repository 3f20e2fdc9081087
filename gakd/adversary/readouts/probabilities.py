"""A readout of probabilities: the mean of an embedding under a model's next-token distribution.

    rows = sum_v p_v E_v = E p,   p = exp(logits - lse)

Unlike maps of logits it reads tokens by their mass, not thousands of tails. Softmax stands between hidden state and
row, so no product of E and W helps: every pass reads the logits of its rows again, a chunk at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gakd.adversary.readouts.direct_rows import DirectRows, Reading
from gakd.adversary.readouts.map_products import MapProducts
from gakd.adversary.readouts.protocol import DEFAULT_WIDTH, known
from gakd.types import Head


def _probabilities(logits_NV: Tensor, log_normalizers_N1: Tensor | None) -> Tensor:
    return (logits_NV - known(log_normalizers_N1)).exp()


def _slope(probs_NV: Tensor, pulled_NV: Tensor, along_N1: Tensor) -> Tensor:
    return probs_NV * (pulled_NV - along_N1)


PROBABILITIES = Reading(_probabilities, _slope)


class ExpectedEmbedding(nn.Module):
    """`E p`, `[N, R]`; penalties are norms of gradients with respect to the probabilities, `g^T (E E^T) g`.

    E starts with entries of variance 1, or as `embeddings_VR`, say the input embeddings of the language model that is the
    discriminator; `trains` False leaves it there. `vocab_size` is the smaller of the two heads'. Raises ValueError for a head
    that is smaller, and where log-sum-exps are not given.
    """

    needs_log_normalizers = True
    student_map = None

    def __init__(
        self, vocab_size: int, width: int | None = None, embeddings_VR: Tensor | None = None, trains: bool = True
    ) -> None:
        super().__init__()
        self.vocab_size, self.trains = vocab_size, trains
        self.width_is_open = width is None and embeddings_VR is None
        if width is None:
            width = DEFAULT_WIDTH if embeddings_VR is None else embeddings_VR.shape[-1]
        if embeddings_VR is not None and embeddings_VR.shape != (vocab_size, width):
            raise ValueError(
                f"embeddings of {vocab_size} tokens and width {width} expected, got {tuple(embeddings_VR.shape)}"
            )
        self.draw(width, embeddings_VR)

    def draw(self, width: int, embeddings_VR: Tensor | None = None) -> None:
        """Begin with an embedding of that width."""
        start_RV = (
            torch.randn(width, self.vocab_size) if embeddings_VR is None else embeddings_VR.detach().T.contiguous()
        )
        self.weight = nn.Parameter(start_RV, requires_grad=self.trains)
        self._products = MapProducts(self.weight)
        self._rows = DirectRows(self.weight, PROBABILITIES)

    @property
    def width(self) -> int:
        return len(self.weight)

    def live(self, hidden_NH: Tensor, head: Head, step_rows: float, log_normalizers_N: Tensor | None = None) -> Tensor:
        return self._rows.live(hidden_NH, head, known(log_normalizers_N))

    def detached(
        self, hidden_NH: Tensor, head: Head | None, step_rows: float, log_normalizers_N: Tensor | None = None
    ) -> Tensor:
        return self._rows.detached(hidden_NH, head, known(log_normalizers_N))

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        return self._products.squared_norm(gradient_BTR)

    def flush(self) -> None:
        self._rows.flush()
        self._products.flush()
