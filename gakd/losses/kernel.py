"""What happens to the logits of some rows: log-softmax in fp32, every term, and one gradient. Row by row, no products.

This is the part of a token pass that memory bandwidth bounds. On a CPU it runs on blocks of a few rows, which stay in
cache from the first operation to the last; on a GPU on a whole chunk, by the kernels of `row_pass.py`, which this one is
the oracle of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gakd.losses.functional import LOWEST_LOG_PROB, honest, logit_gradient
from gakd.losses.term import LogProbs, TokenChunk, TokenTerm
from gakd.types import LogitShape

# What a thread's part of one tensor of a block takes. A handful of them must fit the cache of a CPU; below, calls cost more
# than they do, the more so the more threads must meet at the end of each.
BLOCK_BYTES = 2 * 2**20


def block_rows(rows: int, vocab_size: int, device: torch.device) -> int:
    """Rows of a block: on a CPU as many as fit the cache, a multiple of the threads, elsewhere all."""
    if device.type != "cpu":
        return rows
    threads = torch.get_num_threads()  # softmax and sums give each thread whole rows
    return threads * max(1, BLOCK_BYTES // (4 * vocab_size))


def row_losses(
    product_NV: Tensor, teacher_product_NV: Tensor | None, labels_N: Tensor, terms: Sequence[TokenTerm],
    shape: LogitShape, teacher_shape: LogitShape, compared: int | None = None, row_values: dict[str, Tensor] | None = None,
) -> list[Tensor]:  # fmt: skip
    """Losses `[N]` of each term, from raw products of hidden states and heads; `compared` as in `row_losses_and_gradient`."""
    chunks = _Chunks(product_NV, teacher_product_NV, labels_N, shape, teacher_shape, compared, row_values)
    chunks.expect(terms)
    return [honest(term.chunk_losses(chunks.of(term))) * term.scale for term in terms]


class RowResult(NamedTuple):
    losses: list[Tensor]  # [N] of each term
    gradient_NV: Tensor | None  # d(weighted sum of the row)/d(product); None without terms
    log_normalizers: list[
        Tensor
    ]  # [N], where asked for: log-sum-exps of the student's logits, and of the teacher's if any


def row_losses_and_gradient(
    product_NV: Tensor, teacher_product_NV: Tensor | None, labels_N: Tensor, terms: Sequence[TokenTerm],
    coefficients: Sequence[float] | Sequence[Tensor], shape: LogitShape, teacher_shape: LogitShape, normalizers: bool = False,
    compared: int | None = None, row_values: dict[str, Tensor] | None = None,
) -> RowResult:  # fmt: skip
    """Losses of each term, and the gradient of their weighted sum with respect to the student's raw product.

    Terms that compare see the first `compared` tokens of the student's, those that both models have; the others see all.
    Terms give gradients with respect to log-probabilities at their temperature; `logit_gradient` and a division by the
    temperature make them gradients of logits, once for all terms of one temperature and vocabulary. Eagerly the products
    are used up: what is formed of them takes their place, which is in cache, where a compiled graph has registers.
    """
    chunks = _Chunks(product_NV, teacher_product_NV, labels_N, shape, teacher_shape, compared, row_values)
    chunks.expect(terms, normalizers)
    losses: dict[int, Tensor] = {}
    total_NV: Tensor | None = None
    # Terms with a teacher first: their gradient is dense and becomes the sum, a label's is then added at one place.
    ordered = sorted(enumerate(terms), key=lambda entry: not entry[1].needs_teacher)
    for key in dict.fromkeys(chunks.key(term) for term in terms):
        chunk = chunks.at(*key)
        gradient_NV: Tensor | None = None
        for index, term in ordered:
            if chunks.key(term) == key:
                factor = coefficients[index] * term.scale / term.temperature
                losses_N, gradient_NV = term.accumulate_(chunk, factor, gradient_NV)
                losses_N = honest(losses_N)
                losses[index] = losses_N * term.scale if term.scale != 1.0 else losses_N
        assert gradient_NV is not None
        own_NV = logit_gradient(gradient_NV, chunk.student_probs_NV, chunks.place(gradient_NV))
        if total_NV is None:
            missing = chunks.logits_NV.shape[1] - own_NV.shape[1]
            total_NV = pad(own_NV, (0, missing)) if missing else own_NV
        else:
            total_NV[:, : own_NV.shape[1]].add_(own_NV)
    gradient_NV = None if total_NV is None else shape.through_(total_NV, chunks.logits_NV)
    in_order = [losses[index] for index in range(len(terms))]
    return RowResult(in_order, gradient_NV, chunks.log_normalizers() if normalizers else [])


class _Chunks:
    """The rows at each temperature and over each vocabulary that a term asks for."""

    def __init__(
        self,
        product_NV: Tensor,
        teacher_product_NV: Tensor | None,
        labels_N: Tensor,
        shape: LogitShape,
        teacher_shape: LogitShape,
        compared: int | None,
        row_values: dict[str, Tensor] | None,
    ) -> None:
        self.labels_N, self.row_values = labels_N, row_values
        self.logits_NV = shape.logits(product_NV)
        self.teacher_logits_NV: Tensor | None = None
        if teacher_product_NV is not None:
            self.teacher_logits_NV = teacher_shape.logits(teacher_product_NV).to(self.logits_NV.dtype)
        self.compared = self.logits_NV.shape[1] if compared is None else compared
        self._capped = shape.softcap is not None
        self._used_once = False
        self._at: dict[tuple[float, int], TokenChunk] = {}
        self._log_normalizers: dict[tuple[float, int], list[Tensor]] = {}

    def expect(self, terms: Sequence[TokenTerm], normalizers: bool = False) -> None:
        """Says what will be asked for: logits that one chunk alone needs may be written to."""
        keys = {self.key(term) for term in terms} | ({(1.0, self.compared)} if normalizers else set())
        self._used_once = len(keys) == 1 and not torch.compiler.is_compiling()

    def place(self, gradient_NV: Tensor) -> Tensor | None:
        """Where the gradient goes, once nothing reads the logits any more: into their place, or a compiled graph's own."""
        if torch.compiler.is_compiling():
            return None
        fits = gradient_NV.shape == self.logits_NV.shape and gradient_NV.dtype == self.logits_NV.dtype
        return self.logits_NV if self._used_once and not self._capped and fits else gradient_NV

    def key(self, term: TokenTerm) -> tuple[float, int]:
        """The temperature of a term, and how many of the student's tokens it sees."""
        return term.temperature, self.compared if term.needs_teacher else self.logits_NV.shape[1]

    def of(self, term: TokenTerm) -> TokenChunk:
        return self.at(*self.key(term))

    def at(self, temperature: float, size: int) -> TokenChunk:
        key = temperature, size
        if key not in self._at:
            own_NV = self.logits_NV if size == self.logits_NV.shape[1] else self.logits_NV[:, :size]
            # Through a cap the gradient needs the logits once more.
            log_q, q_NV, normalizer_N = lazy_log_probs(own_NV, temperature, self._used_once and not self._capped)
            log_p, p_NV, normalizers = None, None, [normalizer_N]
            if self.teacher_logits_NV is not None and size == self.compared:
                log_p, p_NV, normalizer_N = lazy_log_probs(self.teacher_logits_NV, temperature, self._used_once)
                normalizers.append(normalizer_N)
            self._at[key] = TokenChunk(log_q, log_p, self.labels_N, q_NV, p_NV, self.row_values)
            self._log_normalizers[key] = normalizers
        return self._at[key]

    def log_normalizers(self) -> list[Tensor]:
        """Of the logits as they are, at temperature 1, over the tokens that are compared."""
        self.at(1.0, self.compared)
        return self._log_normalizers[1.0, self.compared]


def lazy_log_probs(logits_NV: Tensor, temperature: float, in_place: bool = False) -> tuple[LogProbs, Tensor, Tensor]:
    """`log q` on request, q and log-sum-exps `[N]`, from one exponential; the likeliest token's q is at least 1/V.

    Floored, so that a token that is excluded (a logit of -inf) has a finite one. One way for both models, so that equal ones
    agree to the last bit. `in_place` lets `log q` take the logits' place.
    """
    if temperature != 1.0:
        logits_NV, in_place = logits_NV / temperature, not torch.compiler.is_compiling()
    probs_NV = torch.softmax(logits_NV, dim=-1)
    highest_N1, log_highest_N1 = logits_NV.amax(-1, keepdim=True), probs_NV.amax(-1, keepdim=True).log()
    log_probs = LogProbs(logits_NV, highest_N1, log_highest_N1, LOWEST_LOG_PROB, in_place)
    return log_probs, probs_NV, (highest_N1 - log_highest_N1).squeeze(-1)


def log_probs_and_probs(logits_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """`lazy_log_probs` with all of `log q` formed."""
    log_probs, probs_NV, normalizers_N = lazy_log_probs(logits_NV, temperature)
    return log_probs.all(), probs_NV, normalizers_N
