"""A readout whose cost does not know the vocabulary, for models whose heads do not train (LoRA, frozen embeddings).

Every logit vector `scale * (W h + b)` of either model then lies in the span of the columns of both heads, at most
H_student + H_teacher (+ 2) dimensions. With an orthonormal basis `Q [V, K]` of that span, formed once, a map of logits matters
only through `C = E Q [R, K]`:

    E logits = C (Q^T W) h + C (Q^T b),    E E^T = C C^T + E_p E_p^T,    E_p = E - C Q^T

so C is what the discriminator trains, `Q^T W [K, H]` stands in for the head, and the part of E that no logits reach enters
the penalty as a constant. The same discriminator on the same logits, at `R K H` a step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gakd.adversary.readouts.logits import LogitReadout
from gakd.adversary.readouts.map_products import MapProducts
from gakd.adversary.readouts.protocol import Readout
from gakd.adversary.readouts.soft_capped import SoftCappedLogitReadout
from gakd.types import Head

BLOCK = 8192  # rows of the vocabulary in double precision at a time
RANK_TOLERANCE = 1e-11  # of an eigenvalue of the Gram matrix, relative to the largest: heads may share columns


class FrozenHeadsReadout(nn.Module):
    """`LogitReadout` between two frozen heads, restricted to the logits they can produce.

    `like` is the readout it starts as: same scores, same penalties, and gradients `dC = dE Q`. Raises ValueError for
    heads that train, soft-cap their logits or are smaller than the readout's vocabulary.
    """

    needs_log_normalizers = False
    student_map = None
    basis_student_KH: Tensor
    basis_teacher_KH: Tensor
    offset_student_K: Tensor
    offset_teacher_K: Tensor
    gram_constant_RR: Tensor

    def __init__(self, student: Head, teacher: Head, like: LogitReadout) -> None:
        super().__init__()
        for owner, head in (("student", student), ("teacher", teacher)):
            if head.weight.requires_grad or head.softcap is not None or head.vocab_size < like.weight.shape[1]:
                got = f"requires_grad={head.weight.requires_grad}, softcap={head.softcap}, {head.vocab_size} tokens"
                raise ValueError(
                    f"the {owner}'s head must be frozen, without soft-cap, of {like.weight.shape[1]} tokens or more; "
                    f"got {got}: use logit_readout(...), which chooses"
                )
        columns = _Columns(student, teacher, like.weight.shape[1], like.centered)
        to_basis_CK, onto_basis_KC = _basis(columns)
        map_RV = like.weight.detach().to(teacher.weight.device)
        map_RK = torch.zeros(len(map_RV), to_basis_CK.shape[1], dtype=torch.float64, device=map_RV.device)
        gram_RR = torch.zeros(len(map_RV), len(map_RV), dtype=torch.float64, device=map_RV.device)
        mean_R = map_RV.double().mean(-1, keepdim=True) if like.centered else 0.0
        for part in columns.parts():
            own_RP = map_RV[:, part].double() - mean_R
            map_RK += own_RP @ (columns.block(part) @ to_basis_CK)
            gram_RR += own_RP @ own_RP.T
        self.weight = nn.Parameter(map_RK.to(map_RV.dtype))
        # Saved with the weights: the basis is unique up to a rotation only, and C means nothing in another.
        buffers = columns.split(onto_basis_KC) | {"gram_constant_RR": gram_RR - map_RK @ map_RK.T}
        for name, value in buffers.items():
            self.register_buffer(
                name, value.to(map_RV.dtype).contiguous()
            )  # a view would save the whole it is cut from
        self._products = MapProducts(self.weight)

    @property
    def width(self) -> int:
        return len(self.weight)

    def live(self, hidden_NH: Tensor, head: Head, step_rows: float, log_normalizers_N: Tensor | None = None) -> Tensor:
        if head.weight.requires_grad:
            raise ValueError("the student's head trains: this readout was formed from what it was; use LogitReadout")
        projection_RH, offset_R = self._project("student")
        return self._rows(hidden_NH, projection_RH.detach(), None if offset_R is None else offset_R.detach())

    def detached(
        self, hidden_NH: Tensor, head: Head | None, step_rows: float, log_normalizers_N: Tensor | None = None
    ) -> Tensor:
        return self._rows(hidden_NH.detach(), *self._project("student" if head is None else "teacher"))

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        self._products.gram_constant_RR = self.gram_constant_RR
        return self._products.squared_norm(gradient_BTR)

    def flush(self) -> None:
        self._products.flush()

    def _project(self, owner: str) -> tuple[Tensor, Tensor | None]:
        basis_KH, offset_K = getattr(self, f"basis_{owner}_KH"), getattr(self, f"offset_{owner}_K")
        return self._products.form(owner, basis_KH, offset_K, scale=1.0)

    def _rows(self, hidden_NH: Tensor, projection_RH: Tensor, offset_R: Tensor | None) -> Tensor:
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return linear(hidden_NH.to(projection_RH.dtype), projection_RH, offset_R)


def logit_readout(student: Head, teacher: Head, width: int = 256, centered: bool = True) -> Readout:
    """A readout of logits for two heads, the same game with each.

    `SoftCappedLogitReadout` where either soft-caps its logits, `FrozenHeadsReadout` where the student's does not train,
    else `LogitReadout`.
    """
    vocab_size = min(student.vocab_size, teacher.vocab_size)
    if student.softcap is not None or teacher.softcap is not None:
        return SoftCappedLogitReadout(vocab_size, width, centered)
    readout = LogitReadout(vocab_size, width, centered)
    trains = any(tensor is not None and tensor.requires_grad for tensor in (student.weight, student.bias))
    return readout if trains else FrozenHeadsReadout(student, teacher, readout)


class _Columns:
    """Both heads side by side, `scale * [W_student, b_student, W_teacher, b_teacher]`, `[V, C]`, some rows at a time.

    On the teacher's device, wherever the student is: it may not have moved to its own yet.
    """

    def __init__(self, student: Head, teacher: Head, vocab_size: int, centered: bool) -> None:
        self.heads, self.vocab_size = (student, teacher), vocab_size
        self.mean_1C: Tensor | float = 0.0
        if centered:
            self.mean_1C = _sum(self.block(part).sum(0, keepdim=True) for part in self.parts()) / vocab_size

    def parts(self) -> list[slice]:
        return [slice(start, min(start + BLOCK, self.vocab_size)) for start in range(0, self.vocab_size, BLOCK)]

    def block(self, part: slice) -> Tensor:
        # In one place: of wide heads a block is hundreds of MB, and would be there once for each step of making it.
        width, device = sum(head.weight.shape[1] + 1 for head in self.heads), self.heads[1].weight.device
        block_PC = torch.zeros(part.stop - part.start, width, dtype=torch.float64, device=device)
        start = 0
        for head in self.heads:
            end = start + head.weight.shape[1]
            block_PC[:, start:end] = head.weight.detach()[part]
            if head.bias is not None:
                block_PC[:, end] = head.bias.detach()[part]
            if head.scale != 1.0:  # in float64: 16 bits of a head have no room for a product
                block_PC[:, start : end + 1] *= head.scale
            start = end + 1
        return block_PC.sub_(self.mean_1C)

    def split(self, onto_basis_KC: Tensor) -> dict[str, Tensor]:
        """Each head's and bias's coordinates, by the name of their buffer."""
        student, teacher = (head.weight.shape[1] for head in self.heads)
        names = ["basis_student_KH", "offset_student_K", "basis_teacher_KH", "offset_teacher_K"]
        parts = dict(zip(names, onto_basis_KC.split([student, 1, teacher, 1], dim=1), strict=True))
        return {name: part.squeeze(1) if name.startswith("offset") else part for name, part in parts.items()}


def _basis(columns: _Columns) -> tuple[Tensor, Tensor]:
    """`A [C, K]` with `Q = columns A` orthonormal, and `Q^T columns [K, C]`, from the columns' Gram matrix in float64.

    By eigenvectors rather than Cholesky: heads may share columns (a student pruned from its teacher), which leaves the
    Gram matrix singular.
    """
    gram_CC = _sum(block.T @ block for block in map(columns.block, columns.parts()))
    values_C, vectors_CC = torch.linalg.eigh(gram_CC)
    kept = values_C > RANK_TOLERANCE * values_C[-1]
    roots_K, vectors_CK = values_C[kept].sqrt(), vectors_CC[:, kept]
    return vectors_CK / roots_K, (vectors_CK * roots_K).T


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of one shape, of which two are there at a time."""
    return functools.reduce(Tensor.add_, parts)
