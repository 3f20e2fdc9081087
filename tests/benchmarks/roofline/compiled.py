"""Compiled layers, modelled: what Inductor makes of a decoder layer's forward and backward, on a card that is not there.

The layer is traced with its backward as torch.compile traces it, cut in two by Inductor's partitioner, and lowered until the
scheduler has fused what it fuses. Its kernels and the bytes that they move are read there; nothing is compiled or run.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from tests.benchmarks.roofline import ROW_PASS_BYTES, ROW_PASS_KERNELS
from tests.fake_cuda.calls import LayerCall
from tests.fake_cuda.kernels import Kernel
from tests.fake_cuda.recorder import Event
from tests.fake_cuda.step import Recorded

# Passes that would run something on the card: folding constants, and padding shapes where that was measured to pay.
_WITHOUT_A_RUN = {"joint_graph_constant_folding": False, "shape_padding": False}
Made = dict[str, list[Kernel]]  # "forward" and "backward" -> kernels that are no products


def with_compiled_layers(step: Recorded, events: Sequence[Event]) -> list[Event]:
    """The events of a step, those of its layers as Inductor would have them: products stay, the rest is replaced."""
    made = {key: lowered(call, step.mode) for key, call in step.recorder.calls.items()}
    by_place = {(whose, shape[:2]): own for (whose, shape), own in made.items()}
    shapes = {micro: tuple(shape) for micro, shape in enumerate(step.shapes)}
    found: list[Event] = []
    begun: set[tuple[int | None, str, bool]] = set()
    for event in events:
        own = by_place.get((event.layer.partition(" ")[0], shapes.get(event.micro, ())))  # type: ignore[arg-type]
        if own is None or event.kernel is None:
            found.append(event)
            continue
        place = event.micro, event.layer, event.backward
        if place not in begun:
            begun.add(place)
            kernels = own["backward" if event.backward else "forward"]
            found += [replace(event, kernel=kernel, what=kernel.name, where="") for kernel in kernels]
        if event.kernel.flops:
            found.append(event)
    return found


def with_compiled_rows(events: Sequence[Event]) -> list[Event]:
    """The row pass of each chunk as torch.compile has it, where it is not a kernel of the package's own."""
    found: list[Event] = []
    for (part, layer, micro), group in groupby(events, key=lambda event: (event.part, event.layer, event.micro)):
        own = list(group)
        kernels = [event.kernel for event in own if event.kernel is not None]
        if part == "token pass: rows" and kernels and not any(kernel.name.startswith("gakd::") for kernel in kernels):
            moved = int(layer.partition(" ")[2]) * ROW_PASS_BYTES // ROW_PASS_KERNELS
            kernel = Kernel("compiled", 1, 0, "", moved, "row pass")
            compiled = replace(own[0], kind="kernel", what="compiled", where="", kernel=kernel, micro=micro)
            own = [event for event in own if event.kernel is None] + [compiled] * ROW_PASS_KERNELS
        found += own
    return found


def lowered(call: LayerCall, mode: FakeTensorMode) -> Made:
    """What is no product of one layer's forward and, where anything trains, of its backward."""
    aot: Any = importlib.import_module("torch._functorch.aot_autograd")
    compile_fx: Any = importlib.import_module("torch._inductor.compile_fx")
    decompositions: Any = importlib.import_module("torch._inductor.decomposition")
    made: Made = {"forward": [], "backward": []}
    layer = call.layer
    layer._forward_pre_hooks.clear()
    layer._forward_hooks.clear()

    def forward(parameters: dict[str, Tensor], arguments: Any, named: Any) -> Any:
        with torch.autocast("cuda", torch.bfloat16, enabled=call.autocast):
            return torch.func.functional_call(layer, parameters, arguments, named)

    with ExitStack() as stack:
        stack.enter_context(mode)
        virtualized: Any = importlib.import_module("torch._inductor.virtualized").V
        stack.enter_context(virtualized.set_fake_mode(mode))  # for passes over both graphs, dropout's among them
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(_triton_is_there())
        stack.enter_context(compile_fx.config.patch(_WITHOUT_A_RUN))
        arguments, named = call.arguments()
        compiled = aot.aot_function(
            forward,
            fw_compiler=_reader(made["forward"], mode, backward=False),
            bw_compiler=_reader(made["backward"], mode, backward=True),
            partition_fn=compile_fx.partition_fn,
            decompositions=decompositions.select_decomp_table(),
        )
        result = compiled(dict(layer.named_parameters()), arguments, named)
        trained = [value for value in tree_leaves(result) if isinstance(value, Tensor) and value.requires_grad]
        if trained:
            trained[0].sum().backward()
    return made


def _triton_is_there() -> ExitStack:
    stack = ExitStack()
    for name in ("torch.utils._triton", "torch._inductor.scheduler"):
        stack.enter_context(patch.object(importlib.import_module(name), "has_triton", lambda *_: True))
    return stack


def _reader(kernels: list[Kernel], mode: FakeTensorMode, backward: bool) -> Callable[..., Any]:
    """A compiler of a graph that lowers it, notes its kernels, and leaves the graph to run as it is."""
    compile_fx: Any = importlib.import_module("torch._inductor.compile_fx")
    graphs: Any = importlib.import_module("torch._inductor.graph")
    virtualized: Any = importlib.import_module("torch._inductor.virtualized").V

    def compiler(module: Any, inputs: Sequence[Any]) -> Any:
        run, module = module.forward, copy.deepcopy(module)
        compile_fx.view_to_reshape(module)
        context = importlib.import_module("torch._inductor.debug").DebugContext()
        with virtualized.set_fake_mode(mode), virtualized.set_debug_handler(context):
            compile_fx._recursive_post_grad_passes(module, is_inference=False)
        graph = graphs.GraphLowering(module, example_inputs=inputs, is_backward=backward)
        with ExitStack() as stack:
            stack.enter_context(virtualized.set_fake_mode(mode))
            stack.enter_context(virtualized.set_graph_handler(graph))
            stack.enter_context(virtualized.set_debug_handler(context))
            stack.enter_context(virtualized.set_extern_kernel_nodes([]))
            graph.run(*inputs)
            graph.init_wrapper_code()
            graph._update_scheduler()
            for node in graph.scheduler.nodes:
                kernels.extend(_kernels(node))
        return importlib.import_module("functorch.compile").make_boxed_func(run)

    return compiler


def _kernels(node: Any) -> list[Kernel]:
    """None for what is no kernel of Inductor's own: products and attention, which the layer keeps, and views."""
    kind = type(node).__name__
    if kind in ("ExternKernelSchedulerNode", "NopKernelSchedulerNode"):
        return []
    moved = int(node.get_read_write_buffers_sizes())
    return [Kernel("compiled", 1, 0, "", moved, f"{len(node.get_nodes())} operations")]
