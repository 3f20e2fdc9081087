"""The processes of a run: devices, strategy and precision from the flags."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from gakd.errors import InputError
from gakd.models.reach import unreached_weights
from gakd.models.sharding import shard_model
from gakd.run.config import RunConfig

# Other processes wait while rank 0 evaluates or hashes files; torch gives up after 10 or 30 minutes.
LONGEST_WAIT = timedelta(hours=12)


def launch(config: RunConfig) -> Fabric:
    """Start the processes that the flags ask for, this one among them; InputError where they cannot share a batch evenly."""
    precision = config.precision
    if precision == "auto":
        precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    fabric = Fabric(
        accelerator="auto",
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=_strategy(config),
        precision=precision,
    )
    if not _launched_by_fabric():  # which has launched them itself, and refuses a second time
        fabric.launch()
    if config.batch_size % fabric.world_size:
        raise InputError(
            f"--batch-size {config.batch_size} is not a multiple of the {fabric.world_size} processes that share it"
        )
    return fabric


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
        return DDPStrategy(timeout=LONGEST_WAIT) if several and not _launched_by_fabric() else config.strategy

    def cut(distiller: nn.Module, mesh: DeviceMesh) -> nn.Module:
        shard_model(cast(nn.Module, distiller.student), mesh["data_parallel"])
        return distiller

    return ModelParallelStrategy(
        cut, data_parallel_size=config.devices * config.num_nodes, tensor_parallel_size=1, timeout=LONGEST_WAIT
    )
