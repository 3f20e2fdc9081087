"""What a program does on a fake CUDA device: kernels, waits, copies, mixed devices and live bytes, each with its line."""

from __future__ import annotations

import bisect
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from tests.fake_cuda.calls import LayerCall
from tests.fake_cuda.kernels import Kernel, is_view, kernel_of, own_bytes, short_name

Kind = Literal["kernel", "wait", "copy in", "copy in, no wait", "mixed devices"]
_NO_NUMBER = 2**62  # nodes of no place in the graph have the largest numbers
_BLOCK = 512  # bytes that an allocator for CUDA rounds up to
_WAITS = {"nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "equal"}
_MAY_MIX = {"_to_copy", "copy_", "index", "index_put_"}
_TOOLS = ("fake_cuda/re", "fake_cuda/patches", "fake_cuda/step", "benchmarks/")
_LIBRARIES = ("transformers/", "peft/", "torch/optim/", "torch/nn/utils/")


@dataclass(slots=True)
class Event:
    """One thing that happened, in order: `part` of the step, `micro` the micro-batch, None outside of one."""

    kind: Kind
    part: str
    micro: int | None
    layer: str  # of a model, where it is inside of one; "" elsewhere
    backward: bool
    what: str
    where: str
    kernel: Kernel | None = None
    bytes: int = 0  # of a copy


class Recorder(TorchDispatchMode):
    """Enter it inside a FakeTensorMode. A value that the host asks for is 1, True, or a mask that is true everywhere.

    An operation of a backward belongs to the part and layer in which the forward made its node.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.part, self.layer = "other", ""
        self.micro: int | None = None
        self.now = self.peak = 0
        self.peaks: dict[str, int] = defaultdict(int)
        self.repeats: dict[
            int, int
        ] = {}  # micro-batch -> how often it stands in the step, where it was run once for several
        self.calls: dict[tuple[str, tuple[int, ...]], LayerCall] = {}  # of layers, by model and shape of input
        self._live: set[int] = set()
        self._marks: list[tuple[int, str, str]] = [(-1, "other", "")]  # number of autograd's next node, part, layer
        self._last = ("other", "")

    # ---- where it is ----

    @contextmanager
    def at(self, part: str | None = None, layer: str | None = None) -> Iterator[None]:
        """Inside, what happens belongs to this part, and this layer."""
        before = self.part, self.layer
        self._go(before[0] if part is None else part, before[1] if layer is None else layer)
        try:
            yield
        finally:
            self._go(*before)

    def _go(self, part: str, layer: str) -> None:
        self.part, self.layer = part, layer
        self._marks.append((_next_node(), part, layer))

    def enter_layer(self, name: str) -> None:
        self._go(self.part, name)

    def leave_layer(self) -> None:
        self._go(self.part, "")

    def restart(self) -> None:
        """Forget what happened and the peaks, not what lives."""
        self.events, self.peak = [], self.now
        self.peaks.clear()

    def own(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._note(tensor)

    def _place(self) -> tuple[str, str, bool]:
        node = torch._C._current_autograd_node()
        if node is None:
            return self.part, self.layer, False
        number = node._sequence_nr()
        if not 0 <= number < _NO_NUMBER:  # a node that adds a gradient to what a parameter has
            return self._last[0], "", True
        at = bisect.bisect_right(self._marks, number, key=lambda mark: mark[0]) - 1
        self._last = self._marks[at][1:]
        return *self._last, True

    # ---- what happens ----

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, short_name(func)
        if name == "_local_scalar_dense":
            return self._item(args[0])
        args = self._asked(name, args)
        given = [value for value in tree_leaves((args, dict(kwargs))) if isinstance(value, Tensor)]
        if name not in _MAY_MIX and len({tensor.device.type for tensor in given if tensor.ndim > 0}) > 1:
            self._add("mixed devices", name)  # and most operations refuse it
        result = func(*args, **kwargs)
        if getattr(func, "namespace", "") == "prim":
            return result
        outs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if any(tensor.device.type == "cuda" for tensor in (*given, *outs)):
            self._happened(func, name, args, kwargs, given, outs, result)
        return result

    def _item(self, tensor: Tensor) -> Any:
        if tensor.device.type == "cuda":
            self._add("wait", "item")
        elif not isinstance(tensor, FakeTensor):
            with _disable_current_modes():
                return tensor.item()
        elif tensor.constant is not None:  # a number that the program itself has written
            with _disable_current_modes():
                return tensor.constant.item()
        return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1

    def _asked(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Waits for a size that depends on values, and arguments with a size in their place."""
        if name in ("index", "index_put", "index_put_"):
            masks = [value for value in args[1] if isinstance(value, Tensor) and value.dtype == torch.bool]
            if masks and masks[0].device.type == "cuda":
                self._add("wait", f"{name} by a mask")
                return args[0], _everywhere(args[1]), *args[2:]
        elif name in _WAITS and args[0].device.type == "cuda":
            self._add("wait", name)
        return args

    def _happened(
        self, func: Any, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor], result: Any
    ) -> None:
        for tensor in outs:
            self._note(tensor)
        if name in ("_to_copy", "copy_"):
            source, target = (args[1] if name == "copy_" else args[0]), outs[0]
            if source.device.type != target.device.type:
                self._copied(source, target, bool(kwargs.get("non_blocking", name == "copy_" and args[2:] and args[2])))
                return
        if not is_view(func):
            self._add("kernel", name, kernel_of(func, args, kwargs, ins, outs, result))

    def _copied(self, source: Tensor, target: Tensor, no_wait: bool) -> None:
        if target.device.type == "cuda":
            self._add("copy in, no wait" if no_wait else "copy in", "copy to the device", size=own_bytes(source))
        else:
            self._add("wait", "copy to the host", size=own_bytes(source))

    def _add(self, kind: Kind, what: str, kernel: Kernel | None = None, size: int = 0) -> None:
        part, layer, backward = self._place()
        heavy = kernel is not None and (kernel.flops > 10**9 or kernel.bytes > 10**8)
        where = line() if heavy or kind != "kernel" else ""
        self.events.append(Event(kind, part, self.micro, layer, backward, what, where, kernel, size))

    # ---- what lives ----

    def _note(self, tensor: Tensor) -> None:
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._live:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._live.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.peaks[self._place()[0]] = max(self.peaks[self._place()[0]], self.now)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._live.discard(address)
        self.now -= size


def _next_node() -> int:
    """The number that autograd gives the next node of this thread."""
    return torch._C._autograd._get_sequence_nr()


def _everywhere(indices: Any) -> list[Any]:
    """Indices of all places, where a mask asks for those at which it is true."""
    found: list[Any] = []
    for value in indices:
        if isinstance(value, Tensor) and value.dtype == torch.bool:
            places = value.new_empty(value.numel(), dtype=torch.int64)
            found += [places] * value.ndim
        else:
            found.append(value)
    return found


def line() -> str:
    """The innermost line of this repository that is not of the tools, and the library's below it: `file:line (library:line)`."""
    library, frame = "", sys._getframe(1)
    while frame is not None:
        name, at = frame.f_code.co_filename, frame.f_lineno
        if "site-packages" in name:
            own = name.partition("site-packages/")[2]
            library = library or (f"{own}:{at}" if own.startswith(_LIBRARIES) else "")
        elif (found := _own_name(name)) is not None:
            return f"{found}:{at} ({library})" if library else f"{found}:{at}"
        frame = frame.f_back
    return library


def _own_name(path: str) -> str | None:
    for root in ("/gakd/", "/recipes/", "/tests/"):
        _, found, rest = path.rpartition(root)
        if found:
            return None if rest.startswith(_TOOLS) else f"{found[1:]}{rest}"
    return None
