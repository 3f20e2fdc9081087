"""The processes of a run: devices, strategy and precision from the flags."""

from __future__ import annotations

import os
from typing import cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from gakd.errors import InputError
from gakd.models import shard_model
from gakd.run_config import RunConfig


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
    if os.environ.get("LT_CLI_USED") != "1":  # `fabric run` has launched them itself, and refuses a second time
        fabric.launch()
    if config.batch_size % fabric.world_size:
        raise InputError(
            f"--batch-size {config.batch_size} is not a multiple of the {fabric.world_size} processes that share it"
        )
    return fabric


def _strategy(config: RunConfig) -> str | ModelParallelStrategy:
    """Fabric's strategy; with `fsdp2`, one that cuts each student that is set up over all processes."""
    if config.strategy != "fsdp2":
        return config.strategy

    def cut(distiller: nn.Module, mesh: DeviceMesh) -> nn.Module:
        shard_model(cast(nn.Module, distiller.student), mesh["data_parallel"])
        return distiller

    return ModelParallelStrategy(cut, data_parallel_size=config.devices * config.num_nodes, tensor_parallel_size=1)
