"""What one operation on the device is: kernels, FLOPs of its products and the type they are computed in, bytes it moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Kernels of the package's own, `namespace::name` -> bytes moved, from the arguments and the results. Where one is missing
# here, it reads each tensor that it is given and writes each that it returns, once.
CUSTOM_BYTES: dict[str, Callable[[Sequence[Any], Sequence[Tensor]], int]] = {}

_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "baddbmm": (1, 2), "baddbmm_": (1, 2)}
_NO_KERNEL = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "alias", "lift_fresh", "_unsafe_view",
    "_reshape_alias", "set_", "detach_", "resize_", "record_stream",
}  # fmt: skip
_WRITES_ALL = {"zero_", "fill_", "copy_", "normal_", "uniform_"}
_WRITES_SOME = {
    "index_copy_",
    "index_fill_",
    "index_put_",
    "scatter_add_",
    "scatter_",
    "index_add_",
    "_index_put_impl_",
}
_READS_SOME = {"index", "embedding", "index_select", "gather"}
# Sorting, scanning and adding up by index are chains of kernels.
_CHAINS = {"embedding_dense_backward": 8, "cumsum": 2, "sort": 8, "argsort": 8, "topk": 4}
_FUSED_OPTIMIZER = 320  # tensors that one launch of a multi-tensor kernel takes at the depth of AdamW's arguments
_FOREACH = 64


@dataclass(slots=True)
class Kernel:
    """One operation's work on the device."""

    name: str
    launches: int
    flops: int
    precision: str  # of its products' operands: bf16, tf32, fp32, fp64; "" without a product
    bytes: int
    shapes: str


def is_view(func: Any) -> bool:
    """Whether an operation only looks at memory in another way."""
    return bool(getattr(func, "is_view", False)) or short_name(func) in _NO_KERNEL


def short_name(func: Any) -> str:
    name = func._schema.name
    return name.removeprefix("aten::")


def own_bytes(tensor: Tensor) -> int:
    """Bytes that a kernel touches: expanded dimensions once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
    return math.prod(sizes) * tensor.element_size()


def kernel_of(
    func: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    ins: Sequence[Tensor],
    outs: Sequence[Tensor],
    result: Any,
) -> Kernel:
    """The kernel of an operation that is no view, from what it was given and what it returned."""
    name = short_name(func)
    flops = _flops(func, name, args, kwargs, result)
    precision = _precision(name, args, ins) if flops else ""
    moved = CUSTOM_BYTES[name](args, outs) if name in CUSTOM_BYTES else _bytes(func, name, args, kwargs, ins, outs)
    operands = "x".join(str(tuple(tensor.shape)) for tensor in ins[:3])
    shapes = f"{operands}->{tuple(outs[0].shape) if outs else ''}"
    return Kernel(name, _launches(name, args), flops, precision, moved, shapes)


def _flops(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    if name in _PRODUCTS:
        left, right = (args[at] for at in _PRODUCTS[name])
        return 2 * left.numel() * right.shape[-1]
    packet = func._overloadpacket
    return int(flop_registry[packet](*args, **kwargs, out_val=result)) if packet in flop_registry else 0


def _precision(name: str, args: Sequence[Any], ins: Sequence[Tensor]) -> str:
    """Of the operands: a product of bfloat16 with an fp32 result runs on the tensor cores of bfloat16."""
    operands = [args[at] for at in _PRODUCTS[name]] if name in _PRODUCTS else ins[:3]
    dtypes = {tensor.dtype for tensor in operands if tensor.is_floating_point()}
    if torch.float64 in dtypes:
        return "fp64"
    if torch.float32 in dtypes:
        return "tf32" if getattr(torch.backends.cuda.matmul, "fp32_precision", "") == "tf32" else "fp32"
    return "bf16"


def _launches(name: str, args: Sequence[Any]) -> int:
    longest = max((len(value) for value in args if isinstance(value, (list, tuple))), default=1)
    if name.startswith("_fused_"):
        return math.ceil(longest / _FUSED_OPTIMIZER)
    if name.startswith("_foreach"):
        return math.ceil(longest / _FOREACH)
    return _CHAINS.get(name, 1)


def _bytes(
    func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], ins: Sequence[Tensor], outs: Sequence[Tensor]
) -> int:
    written = _written(func, args, kwargs)
    replaces = name in _WRITES_ALL or "out" in kwargs or (name == "addmm_" and kwargs.get("beta", 1) == 0)
    moved, seen = 0, set[tuple[Any, ...]]()
    for position, tensor in enumerate(ins):
        place = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        if id(tensor) in written:
            if name in _WRITES_SOME:
                moved += 2 * sum(own_bytes(value) for value in ins if value is not tensor and value.is_floating_point())
                continue
            # Written where it has been read as an operand: `addmm(total, ..., out=total)`.
            moved += own_bytes(tensor) * (1 if replaces or place in seen else 2)
        elif place not in seen:
            some = name in _READS_SOME and position == 0
            moved += sum(map(own_bytes, outs)) if some else own_bytes(tensor)
        seen.add(place)
    given = {tensor.untyped_storage()._cdata for tensor in ins}
    moved += sum(own_bytes(out) for out in outs if out.untyped_storage()._cdata not in given)
    return 2 * moved if name == "embedding_dense_backward" else moved


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[int]:
    named = {argument.name: argument for argument in func._schema.arguments}
    pairs = [*zip(func._schema.arguments, args, strict=False), *((named[key], value) for key, value in kwargs.items())]
    return {
        id(value)
        for argument, whole in pairs
        if argument.alias_info is not None and argument.alias_info.is_write
        for value in tree_leaves(whole)
        if isinstance(value, Tensor)
    }
