"""What a token pass holds: logits of a chunk, what their losses need, and the gradients that it forms."""

from __future__ import annotations

import torch

from gakd.losses.chunks import default_chunk_rows
from gakd.losses.kernel import block_rows
from gakd.planning.loss_footprint import row_bytes
from gakd.planning.setting import FLOAT32, HALF, Setting


def chunk_bytes(setting: Setting) -> int:
    """The most during the pass, of cross entropy and a term that compares, at one temperature.

    Logits of both models and the sum of the head's gradient are in float32 on every device.
    """
    student, rows = setting.student, _rows(setting)
    compared = 0 if setting.teacher is None else setting.vocab_size
    logits = FLOAT32 * rows * (student.vocab_size + compared)
    losses = _of_kernel(setting, rows) if setting.on_gpu else _eagerly(setting, rows, compared)
    return logits + losses + head_sum(setting) + setting.bytes * setting.rows * student.width


def head_sum(setting: Setting) -> int:
    """The sum of the head's gradient, from the pass until its backward hands it over in the weight's dtype."""
    return FLOAT32 * setting.student.head if setting.student.head_trains else 0


def _rows(setting: Setting) -> int:
    device = torch.device(setting.config.device)
    return min(default_chunk_rows(setting.rows, setting.student.vocab_size, device), setting.rows)


def _of_kernel(setting: Setting, rows: int) -> int:
    """On a GPU: the head as products read it, and the gradient of the logits; the Triton kernel has nothing else of their size.

    A chunk's gradient is formed while the one before is still there.
    """
    rounded = setting.mixed and setting.frozen_dtype.itemsize == FLOAT32
    copy = HALF * setting.student.head if rounded else 0
    itemsize = FLOAT32 if setting.precision == "32-true" else HALF
    gradients = min(-(-setting.rows // rows), 2)
    return copy + gradients * itemsize * rows * setting.student.vocab_size


def _eagerly(setting: Setting, rows: int, compared: int) -> int:
    """On a CPU, a block of a chunk's rows after the other, as PyTorch's own operations compute them."""
    block = min(block_rows(rows, setting.student.vocab_size, torch.device("cpu")), rows)
    found = row_bytes(block, setting.student.vocab_size, compared)
    # What is left of a block is there until the next one's result takes its place.
    return found.peak + (found.kept if setting.rows > block else 0)
