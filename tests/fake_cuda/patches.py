"""What a torch without CUDA and fake tensors lack of a card, for the rest of the process."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional

MEMORY = 80 * 10**9
# Of the card that the device stands for: an H100 SXM.
PROPERTIES = SimpleNamespace(
    name="fake H100", major=9, minor=0, total_memory=MEMORY, multi_processor_count=132, warp_size=32, max_threads_per_block=1024,
    max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, shared_memory_per_block=49152,
    shared_memory_per_multiprocessor=233472, shared_memory_per_block_optin=232448, L2_cache_size=52428800, gcnArchName="",
)  # fmt: skip


def install() -> None:
    """To be called once, after `guard.load`."""
    _answers_of_the_device()
    _autocast()
    _fused_optimizers()
    functional.scaled_dot_product_attention = _Attention(functional.scaled_dot_product_attention)
    # transformers leaves out, of fake tensors, the questions that it asks of real ones.
    importlib.import_module("transformers.masking_utils").is_tracing = _Answer(False)  # type: ignore[attr-defined]
    # What a compiler would do is modelled apart; what it would compile runs here, operation by operation.
    torch.compile = _uncompiled


def _answers_of_the_device() -> None:
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True, "is_initialized": True,
        "get_device_capability": (9, 0), "get_device_name": PROPERTIES.name, "get_device_properties": PROPERTIES,
        "get_rng_state_all": [], "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
        "set_device": None, "synchronize": None, "empty_cache": None, "manual_seed_all": None,
        "mem_get_info": (MEMORY, MEMORY), "init": None, "_lazy_init": None,
        "_exchange_device": 0, "_maybe_exchange_device": 0,
    }  # fmt: skip
    for name, value in answers.items():
        setattr(torch.cuda, name, _Answer(value))
    # The compilers' own view of a device has kept the functions that torch.cuda had when it was imported.
    view = importlib.import_module("torch._dynamo.device_interface").CudaInterface
    for name in answers:
        if hasattr(view, own := name.lstrip("_")):
            setattr(view, own, staticmethod(getattr(torch.cuda, name)))
    # A card is there, and yet must not be woken: tensors made from numbers are then copied where a mode can see it.
    FakeTensorMode.avoid_device_init = property(lambda self: True)  # type: ignore[assignment]
    Tensor.pin_memory = lambda self, device=None: self  # type: ignore[assignment,method-assign]


class _Answer:
    """A function of anything that always says the same."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.value


def _autocast() -> None:
    for module in ("torch.amp.autocast_mode", "torch.cuda.amp.common"):
        importlib.import_module(module).amp_definitely_not_available = _Answer(False)  # type: ignore[attr-defined]


def _fused_optimizers() -> None:
    """Optimizers take several tensors at once where these are of types that they know; fake ones count too."""
    for module in ("torch.utils._foreach_utils", "torch.optim.optimizer"):
        known: list[Any] = vars(importlib.import_module(module)).get("_foreach_supported_types", [])
        if FakeTensor not in known:
            known.append(FakeTensor)


class _Attention:
    """`scaled_dot_product_attention` as CUDA chooses: flash attention without a mask in half precision; the maths elsewhere."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if query.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        flash = query.dtype in (torch.bfloat16, torch.float16) and attn_mask is None and query.shape[-1] <= 256
        if query.device.type != "cuda" or not flash:
            return self.real(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        attend = torch.ops.aten._scaled_dot_product_flash_attention
        return attend(query, key, value, dropout_p, is_causal, scale=scale)[0]


def _uncompiled(model: Any = None, **named: Any) -> Any:
    return (lambda function: function) if model is None else model
