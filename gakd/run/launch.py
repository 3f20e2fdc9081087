"""The processes of a run: devices, strategy and precision from the flags."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import ProcessGroup

from gakd.errors import InputError
from gakd.models.reach import unreached_weights
from gakd.models.sharding import shard_model
from gakd.run.config import RunConfig
from gakd.run.exchange import WHILE_IT_LIVES, Hosts, host_group

# Processes that wait longer for one of the others end, and with them the run.
LONGEST_SILENCE = timedelta(minutes=30)
_STORE_IS_OPEN = "TORCHELASTIC_USE_AGENT_STORE"  # torch then opens none of its own
_stores: list[object] = []  # open to the end of the process
_launched: list[int] = []  # numbers of processes: of the one launch that a script may have


def launch(config: RunConfig) -> Fabric:
    """Start the processes that the flags ask for, this one among them.

    InputError where they cannot share a batch evenly, and where no process can be started: from a notebook, or a second time.
    """
    if hasattr(sys, "ps1") and (config.devices * config.num_nodes > 1 or config.strategy != "auto"):
        raise InputError(
            f"--devices {config.devices} --strategy {config.strategy} starts processes that run a script from its top, which a "
            f"notebook is not: give devices=1 and strategy='auto' here, or run the loop as a script"
        )
    precision = precision_of(config)
    fabric = Fabric(
        accelerator="auto",
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=_strategy(config),
        precision=precision,
    )
    _launch_once(fabric)
    if not _launched_by_fabric():  # which has launched them itself, and refuses a second time
        with _meeting_on_loopback(fabric):
            fabric.launch()
    if config.batch_size % fabric.world_size:
        raise InputError(
            f"--batch-size {config.batch_size} is not a multiple of the {fabric.world_size} processes that share it"
        )
    return fabric


def _launch_once(fabric: Fabric) -> None:
    """InputError where this script has started processes before: each of those runs the script too, from its top.

    They would meet the second run's while they wait in the first. Of processes that something else starts, as torchrun
    does, nobody starts more.
    """
    if fabric.world_size == 1 or not isinstance(_environment(fabric), LightningEnvironment):
        return
    if _launched:
        raise InputError(
            f"this script has started {_launched[0]} processes for a Run before, and each of them runs the script from its top: "
            f"give every Run of --devices above 1 a script of its own, or begin it with torchrun"
        )
    _launched.append(fabric.world_size)


def _environment(fabric: Fabric) -> object:
    return getattr(fabric.strategy, "cluster_environment", None)


def use_tensor_cores(device: torch.device, precision: str) -> None:
    """Products that mixed precision leaves in fp32, the game's and its maps', take TF32 operands on CUDA; sums stay fp32.

    A setting of the process. `32-true` leaves it alone, and so does a CPU, whose products it may change too.
    """
    if device.type == "cuda" and precision != "32-true":
        torch.set_float32_matmul_precision("high")


def precision_of(config: RunConfig) -> Literal["32-true", "bf16-mixed", "bf16-true"]:
    """The one that is meant by the flag, on this machine."""
    if config.precision == "auto":
        return "bf16-mixed" if torch.cuda.is_available() else "32-true"
    return config.precision


@contextmanager
def _meeting_on_loopback(fabric: Fabric) -> Iterator[None]:
    """Where this process starts all others: the store by which they meet listens on this machine alone, and so do they.

    A store that torch opens listens on all interfaces, to anybody who reaches the port.
    """
    environment = _environment(fabric)
    alone = isinstance(environment, LightningEnvironment) and not environment.creates_processes_externally
    if not (alone and fabric.world_size > 1 and getattr(fabric.strategy, "num_nodes", 1) == 1):
        yield
        return
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    port = listening.getsockname()[1]
    store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
    )
    _stores.append(store)
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), _STORE_IS_OPEN: "True"}
    try:
        yield
    finally:
        del os.environ[_STORE_IS_OPEN]


def patient_barrier() -> Callable[[], object]:
    """A barrier at which processes wait for one that evaluates, however long that takes, as long as it lives."""
    group = host_group(WHILE_IT_LIVES)
    return (lambda: None) if group is None else (lambda: distributed.barrier(group=group))


def hosts() -> Hosts:
    """What hosts tell each other in a step."""
    return Hosts(LONGEST_SILENCE)


def writers_group() -> ProcessGroup | None:
    """What the threads that write checkpoints tell each other."""
    return host_group(LONGEST_SILENCE)


def expect_gradients(fabric: Fabric, student: nn.Module) -> None:
    """Tell DDP where it waits for gradients that some weights never get; it then looks for those that come, at every step.

    They keep their values, as in one process, where they have no gradient either.
    """
    strategy = fabric.strategy
    if isinstance(strategy, DDPStrategy) and unreached_weights(student):
        strategy._ddp_kwargs["find_unused_parameters"] = True


def _launched_by_fabric() -> bool:
    """Whether `fabric run` has: it takes a strategy's name alone."""
    return os.environ.get("LT_CLI_USED") == "1"


def _strategy(config: RunConfig) -> str | Strategy:
    """Fabric's strategy; with `fsdp2`, one that cuts each student that is set up over all processes."""
    if config.strategy != "fsdp2":
        several = config.devices * config.num_nodes > 1 or config.strategy == "ddp"
        if not several or _launched_by_fabric():
            return config.strategy
        # Gradients live in the buckets that are exchanged, not in a copy of them. Buffers are those of the same files.
        return DDPStrategy(timeout=LONGEST_SILENCE, gradient_as_bucket_view=True, broadcast_buffers=False)

    gathered = torch.bfloat16 if precision_of(config) == "bf16-mixed" else None

    def cut(distiller: nn.Module, mesh: DeviceMesh) -> nn.Module:
        names = [name for name, _ in distiller.named_parameters() if not name.startswith("student.")]
        if names:  # nobody would sum their gradients over ranks
            raise InputError(
                f"--strategy fsdp2 trains the student's own weights, got {names[0]} beside them: use --strategy ddp"
            )
        shard_model(cast(nn.Module, distiller.student), mesh["data_parallel"], gathered)
        return distiller

    return ModelParallelStrategy(
        cut, data_parallel_size=config.devices * config.num_nodes, tensor_parallel_size=1, timeout=LONGEST_SILENCE
    )
