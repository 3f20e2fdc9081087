"""The time that one optimizer step would take on an H100, modelled: nothing here was measured on a card.

What is real: the step. `recipes/gakd.py` runs as it is on fake CUDA tensors (`tests/fake_cuda`) of the models' true sizes, and
every operation that it asks of the device is written down: its FLOPs, the type of its operands, the bytes that it reads and
writes, and every place at which the host waits. What is assumed, all of it in this file:

- A kernel takes the longest of three: its FLOPs at the rate that large products reach, its bytes at the rate that streaming
  kernels reach, and `SHORTEST`. "roofline ms" leaves the efficiencies and the shortest kernel out.
- An operation of torch is one kernel; sorts, scans and sums by index are chains (`tests/fake_cuda/kernels.py`), multi-tensor
  optimizers a few. It reads each operand once and writes each result once: no cache serves a second kernel.
- Attention without a mask in half precision is flash attention.
- The host issues one kernel after the other, each `host` seconds after the last, and the device runs them in that order. A
  wait ends when the queue is empty, and costs `WAIT`; a copy that waits moves `PAGEABLE` bytes a second besides.
- Compiled layers (`--layers compiled`): products and attention are those of the eager layer; all else is what Inductor makes of
  that layer's forward and backward, which it lowers for the fake device: its own kernels, with the bytes that its scheduler
  counts. The host issues them as it issues others. Nothing is recomputed that its partitioner would not.
- The row pass of the token losses, where it is not a kernel of the package's own: `ROW_PASS_KERNELS` a chunk, that move
  `ROW_PASS_BYTES` an element of the student's logits between them, as Inductor's code for it does.
- Attention counts whole squares of scores, not the half that a causal kernel needs.
- Memory is that of tensors, rounded up as the allocator does, with eager layers; fragmentation, the libraries' workspaces and
  the context are not in it.
- MFU counts the FLOPs of products and attention that were done, against the card's peak in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Rates a second at their peak, and the share of it that is reached."""

    memory: float = 3.35e12  # bytes of HBM3
    memory_share: float = 0.85
    # FLOPs of dense products by the type of their operands.
    peak: tuple[tuple[str, float], ...] = (("bf16", 989e12), ("tf32", 495e12), ("fp32", 67e12), ("fp64", 67e12))
    share: tuple[tuple[str, float], ...] = (("bf16", 0.70), ("tf32", 0.65), ("fp32", 0.80), ("fp64", 0.80))


H100 = Card()
SHORTEST = 2e-6  # seconds of the shortest kernel
WAIT = 10e-6  # seconds until the host goes on once the queue is empty
PAGEABLE = 6e9  # bytes a second of a copy from memory that is not pinned
ROW_PASS_KERNELS = 17
ROW_PASS_BYTES = 46
HOSTS = (4e-6, 8e-6, 12e-6)  # seconds in which a host issues a kernel: a fast one, a common one, a slow one

# Positions and supervised tokens of the 32 sequences of a step. `FIXED` fills the paper's window. `DOLLY` is a window at the
# middle of Dolly's, whose responses have some 80 tokens: a window holds sequences of like lengths, since 16 windows are sorted
# together (1.6% padding). Windows of long sequences do better, of short ones worse.
FIXED = ((512, 307),) * 32
DOLLY = ((150, 80),) * 32
