"""What flows through one step: batches, rows of hidden states, heads. Imports torch and `products` only.

Shape legend, used as suffixes of tensor names everywhere:

- `B` sequences of a micro-batch, `T` positions, `V` vocabulary, `H` hidden width, `R` readout width
- `N` supervised rows: the positions of `[B, T]` whose label is not `IGNORE_INDEX`, in row-major order
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from gakd.products import projected

IGNORE_INDEX = -100


class RowValues:
    """What is known of the supervised rows beside their labels: a name -> `[N]`, such as advantages, for terms to read.

    A plain object, so that Fabric does not round what crosses a wrapped forward to the model's precision.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values

    def to(self, device: torch.device | str) -> RowValues:
        return RowValues({name: values_N.to(device, non_blocking=True) for name, values_N in self.values.items()})

    def pinned(self) -> RowValues:
        return RowValues({name: values_N.pin_memory() for name, values_N in self.values.items()})


class Batch(NamedTuple):
    """One micro-batch, right-padded; labels are already shifted, nothing downstream shifts again.

    `labels[b, t]` is the token that follows `input_ids[b, t]` where that token belongs to the response (its end-of-text
    token included), and `IGNORE_INDEX` on the prompt and on padding. Build one with `Batch.of`: whatever depends on how
    many tokens are supervised is worked out there once, so that no shape in a step waits for the device.
    """

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64, 1 = token, 0 = padding
    labels: Tensor  # [B, T] int64
    rows_N: Tensor  # int64: where the supervised rows stand in [B, T], flattened
    slots_N: (
        Tensor  # int64: where they stand in [B, T'], flattened, each sequence's moved to the left; T' = max(lengths)
    )
    lengths: tuple[int, ...]  # supervised tokens of each sequence
    tokens: int  # tokens that are no padding
    keys: tuple[str, ...] = ()  # what a teacher cache knows each sequence by
    row_values: RowValues | None = None

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, keys: tuple[str, ...] = ()) -> Batch:
        """A batch from its tensors; waits for the device once.

        Raises ValueError where the three differ in shape, where sequences are not padded on the right alone, and for labels on
        padding.
        """
        shapes = [tuple(tensor.shape) for tensor in (input_ids, attention_mask, labels)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise ValueError(f"input_ids, attention_mask and labels are all [B, T], got {', '.join(map(str, shapes))}")
        mask_BT = labels != IGNORE_INDEX
        if bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()) or bool((attention_mask[:, :1] == 0).any()):
            raise ValueError(
                "a batch is padded on the right: its attention mask is ones, then zeros; got padding before or between tokens"
            )
        if bool((mask_BT & (attention_mask == 0)).any()):
            raise ValueError(f"padding has no label: give {IGNORE_INDEX} where the attention mask is 0")
        rows_N = mask_BT.flatten().nonzero().squeeze(-1)
        sequence_N, lengths = rows_N // labels.shape[1], tuple(mask_BT.sum(1).tolist())
        within_N = mask_BT.cumsum(1).flatten()[rows_N] - 1
        slots_N = sequence_N * max(lengths) + within_N
        return cls(input_ids, attention_mask, labels, rows_N, slots_N, lengths, int(attention_mask.sum()), keys)

    @property
    def mask(self) -> Tensor:
        """`[B, T]` bool, True where a token is supervised."""
        return self.labels != IGNORE_INDEX

    @property
    def labels_N(self) -> Tensor:
        """Labels of the supervised rows."""
        return self.labels.flatten()[self.rows_N]

    def sequence_sums(self, values_N: Tensor) -> Tensor:
        """What each sequence's supervised rows sum to: `[N, ...]` to `[B, ...]`, differentiable; 0 for a sequence without any."""
        sequence_N = self.rows_N // self.labels.shape[1]
        return values_N.new_zeros(len(self.lengths), *values_N.shape[1:]).index_add(0, sequence_N, values_N)

    def sequence_means(self, values_N: Tensor) -> Tensor:
        """The same divided by their number."""
        sums_B = self.sequence_sums(values_N)
        count_B = self.sequence_sums(values_N.new_ones(len(values_N))).clamp(min=1)
        return sums_B / count_B.view(-1, *[1] * (sums_B.dim() - 1))

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: value.to(device, non_blocking=True) for name, value in self._tensors().items()}
        return self._replace(**moved, row_values=None if self.row_values is None else self.row_values.to(device))

    def pinned(self) -> Batch:
        """The same in page-locked memory of the host, from which `to` copies to a GPU without a wait; needs CUDA."""
        moved = {name: value.pin_memory() for name, value in self._tensors().items()}
        return self._replace(**moved, row_values=None if self.row_values is None else self.row_values.pinned())

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._asdict().items() if torch.is_tensor(value)}

    def with_row_values(self, values: dict[str, Tensor]) -> Batch:
        """The same batch with these beside the row values that it has; ValueError where one is not `[N]`."""
        for name, values_N in values.items():
            if values_N.shape != self.rows_N.shape:
                raise ValueError(
                    f"{name} needs a value for each of {len(self.rows_N)} supervised rows, got shape {list(values_N.shape)}"
                )
        own = {} if self.row_values is None else self.row_values.values
        return self._replace(row_values=RowValues(own | values))


def check_batch(batch: object) -> None:
    """TypeError for anything but a `Batch`."""
    if not isinstance(batch, Batch):
        raise TypeError(
            f"a batch is a gakd.Batch, got {type(batch).__name__}: Batch.of(input_ids, attention_mask, labels), labels shifted"
        )


class LogitShape(NamedTuple):
    """How raw products become logits: `softcap(scale * product)`, as in `Head`."""

    scale: float = 1.0
    softcap: float | None = None

    def logits(self, product_NV: Tensor) -> Tensor:
        """Logits in fp32 (fp64 from fp64); the product itself where there is nothing to do."""
        logits_NV = product_NV.to(torch.promote_types(product_NV.dtype, torch.float32))
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV

    def through_(self, gradient_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """A gradient with respect to the logits, in place to one with respect to the product."""
        if self.softcap is not None:  # d softcap(z)/dz = 1 - tanh(z / cap)^2
            gradient_NV.mul_(1 - (logits_NV / self.softcap).square())
        return gradient_NV if self.scale == 1.0 else gradient_NV.mul_(self.scale)


class Head(NamedTuple):
    """How a model turns a hidden state into logits: `softcap(scale * (hidden @ weight.T + bias))`.

    `softcap(z) = cap * tanh(z / cap)` where `softcap` is set. Order and names follow transformers: Cohere's `logit_scale`
    and Granite's `1 / logits_scaling` are `scale`, Gemma's `final_logit_softcapping` is `softcap`.
    """

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    @property
    def shape(self) -> LogitShape:
        return LogitShape(self.scale, self.softcap)

    def cut(self, vocab_size: int) -> Head:
        """Without the padded end of a wider head; itself where there is none, as the backward of a slice holds a second
        gradient of the whole."""
        if vocab_size >= self.vocab_size:
            return self
        return self._replace(
            weight=self.weight[:vocab_size], bias=None if self.bias is None else self.bias[:vocab_size]
        )

    def product(self, hidden_NH: Tensor) -> Tensor:
        """`hidden @ weight.T + bias` in the head's dtype, as its own model forms it."""
        return linear(hidden_NH.to(self.weight.dtype), self.weight, self.bias)

    def logits(self, hidden_NH: Tensor, vocab_size: int | None = None) -> Tensor:
        """Logits `[N, vocab_size]` in fp32 (fp64 from an fp64 head), of operands in the head's dtype."""
        head = self if vocab_size is None else self.cut(vocab_size)
        product_NV = projected(hidden_NH, head.weight)
        return self.shape.logits(product_NV if head.bias is None else product_NV + head.bias)


class TeacherOutput:
    """The teacher's last hidden states of the supervised rows, and its head; logits are formed chunk by chunk, later.

    `rows` (int64, each at most once) says which of the student's supervised rows it speaks about, in this order; None is
    all of them. Without `shared_vocabulary` its tokens are not the student's, and only terms that need none may use it.

    A plain object, so that Fabric neither casts nor copies what it holds when it crosses a wrapped forward.
    """

    def __init__(
        self, hidden_NH: Tensor, head: Head, rows: Tensor | None = None, shared_vocabulary: bool = True
    ) -> None:
        self.hidden_NH = hidden_NH
        self.head = head
        self.rows = rows
        self.shared_vocabulary = shared_vocabulary

    def logits(self) -> Tensor:
        """All logits `[N, V]` at once: for inspection and tests, never for training."""
        return self.head.logits(self.hidden_NH)


class StudentRows(NamedTuple):
    """What an adversary needs of the student's supervised rows."""

    live_NR: Tensor  # what the discriminator sees, with gradient to the student
    hidden_NH: Tensor  # detached; the head's projection was formed in the forward, where a sharded head is whole
    log_normalizers_N: Tensor | None = None  # log-sum-exps of both models' logits, for a readout that needs them
    teacher_log_normalizers_N: Tensor | None = None


class StudentOutput(NamedTuple):
    """What one forward of the distiller returns. Named tuples, so that FSDP2 finds the tensors that need its hooks."""

    loss: Tensor  # scalar: sum of the token terms, each times its coefficient; its gradient is already formed
    token_losses: dict[str, Tensor]  # term name -> [N], or [B] of one a sequence; unreduced, without gradient
    readout: StudentRows | None  # None where no adversary plays this step
