"""A few lines that wait, copy and mix, as nobody should inside of a micro-batch: what the recorder must see."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.fake_cuda.models import DEVICE
from tests.fake_cuda.recorder import Recorder


def asks_for_a_number(values_N: Tensor) -> None:
    float(values_N.sum())


def asks_for_a_truth(values_N: Tensor) -> None:
    if values_N.isfinite().all():
        return


def asks_for_a_list(values_N: Tensor) -> None:
    values_N[:1].tolist()


def picks_by_a_mask(values_N: Tensor) -> None:
    values_N[values_N > 0].sum()


def looks_for_places(values_N: Tensor) -> None:
    values_N.nonzero()


def copies_to_the_host(values_N: Tensor) -> None:
    values_N.cpu()


def copies_numbers_in(values_N: Tensor) -> None:
    values_N.add(torch.tensor([1.0, 2.0, 3.0, 4.0], device=values_N.device))


def copies_a_table_in(values_N: Tensor) -> None:
    values_N.add(torch.arange(4.0).to(values_N))


def copies_without_a_wait(values_N: Tensor) -> None:
    values_N.add(torch.arange(4.0).to(values_N.device, non_blocking=True))


def mixes_devices(values_N: Tensor) -> None:
    values_N.gather(0, torch.zeros(2, dtype=torch.int64))


def only_computes(values_N: Tensor) -> None:
    values_N.softmax(-1).sum().mul_(2)


def multiplies_in_fp32(values_N: Tensor) -> None:
    values_N.view(2, 2) @ values_N.view(2, 2)


def multiplies_in_bf16_with_an_fp32_result(values_N: Tensor) -> None:
    half_NN = values_N.view(2, 2).bfloat16()
    torch.mm(half_NN, half_NN, out_dtype=torch.float32)


SLIPS: tuple[Callable[[Tensor], None], ...] = (
    asks_for_a_number, asks_for_a_truth, asks_for_a_list, picks_by_a_mask, looks_for_places, copies_to_the_host,
    copies_numbers_in, copies_a_table_in, copies_without_a_wait, mixes_devices, only_computes, multiplies_in_fp32,
    multiplies_in_bf16_with_an_fp32_result,
)  # fmt: skip


def recorded(slip: Callable[[Tensor], None]) -> Recorder:
    """What the recorder has seen of one of them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        values_N = torch.empty(4, device=DEVICE)
        # RuntimeError: as torch refuses tensors of two devices.
        with Recorder() as recorder, suppress(RuntimeError):
            slip(values_N)
    return recorder
