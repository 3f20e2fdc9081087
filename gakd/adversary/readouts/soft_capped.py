"""A readout of soft-capped logits (Gemma 2) as they are, behind the cap, where the probabilities come from.

    rows = E z,   z = softcap(scale * (W h + b))

What `LogitReadout` reads of a head without a cap. The cap stands between hidden state and row, so no product of E and W
helps: every pass reads the logits of its rows again, a chunk at a time.
"""

from __future__ import annotations

from torch import Tensor, nn

from gakd.adversary.readouts.direct_rows import DirectRows, Reading
from gakd.adversary.readouts.map_products import MapProducts, map_of_logits
from gakd.adversary.readouts.protocol import DEFAULT_WIDTH
from gakd.types import Head


def _as_they_are(logits_NV: Tensor, log_normalizers_N1: Tensor | None) -> Tensor:
    return logits_NV


def _slope_as_it_is(logits_NV: Tensor, pulled_NV: Tensor, along_N1: Tensor) -> Tensor:
    return pulled_NV


def _centered(logits_NV: Tensor, log_normalizers_N1: Tensor | None = None) -> Tensor:
    return logits_NV - logits_NV.mean(-1, keepdim=True)


def _centered_slope(centered_NV: Tensor, pulled_NV: Tensor, along_N1: Tensor) -> Tensor:
    return _centered(pulled_NV)  # the map that centres is symmetric


RAW, CENTERED = Reading(_as_they_are, _slope_as_it_is), Reading(_centered, _centered_slope)


class SoftCappedLogitReadout(nn.Module):
    """A linear map of soft-capped logits, `[N, R]`; centred (less their mean over the vocabulary) or raw.

    Penalties are norms of gradients with respect to these logits, `g^T (E E^T) g`, E centred where they are. Either head
    may have a cap or none, and train or not. `vocab_size` is the smaller of the two heads'; the map starts as that of
    `LogitReadout`. Raises ValueError for a head that is smaller.
    """

    needs_log_normalizers = False
    student_map = None

    def __init__(self, vocab_size: int, width: int | None = None, centered: bool = True) -> None:
        super().__init__()
        self.vocab_size, self.centered, self.width_is_open = vocab_size, centered, width is None
        self.draw(DEFAULT_WIDTH if width is None else width)

    def draw(self, width: int) -> None:
        """Begin with a map of that width."""
        self.weight = map_of_logits(self.vocab_size, width)
        self._products = MapProducts(self.weight, self.centered)
        self._rows = DirectRows(self.weight, CENTERED if self.centered else RAW)

    @property
    def width(self) -> int:
        return len(self.weight)

    def live(self, hidden_NH: Tensor, head: Head, step_rows: float, log_normalizers_N: Tensor | None = None) -> Tensor:
        return self._rows.live(hidden_NH, head)

    def detached(
        self, hidden_NH: Tensor, head: Head | None, step_rows: float, log_normalizers_N: Tensor | None = None
    ) -> Tensor:
        return self._rows.detached(hidden_NH, head)

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        return self._products.squared_norm(gradient_BTR)

    def flush(self) -> None:
        self._rows.flush()
        self._products.flush()
