"""The student's optimizer: PyTorch's, by name, or bitsandbytes' with moments of 8 bits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gakd.errors import InputError
from gakd.extras import check_needs
from gakd.planning.config import OptimizerName
from gakd.run.config import optimizer_need

# Blocks, matrices, rows and columns: a part of a weight has others.
_OF_WHOLE_WEIGHTS = {"adamw8bit", "muon", "adafactor"}


def check_cut(name: OptimizerName, strategy: str) -> None:
    """InputError where it cannot step on weights that are cut over devices."""
    if strategy == "fsdp2" and name in _OF_WHOLE_WEIGHTS:
        raise InputError(
            f"--optimizer {name} needs whole weights, and --strategy fsdp2 cuts them: give --optimizer adamw or sgd, or "
            f"--strategy ddp"
        )


def check_optimizer(name: OptimizerName, strategy: str) -> None:
    """InputError where it cannot step on such weights, or is missing here."""
    check_cut(name, strategy)
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"--optimizer muon came with torch 2.9, this is {torch.__version__}: update torch, or give --optimizer adamw"
        )
    if need := optimizer_need(name):
        check_needs([need])


def student_optimizer(
    name: OptimizerName,
    weights: Sequence[nn.Parameter],
    tables: Collection[int],
    learning_rate: float,
    weight_decay: float,
) -> Optimizer:
    """An optimizer of these weights, of which `tables` are identities of embeddings and heads.

    muon steps the matrices of hidden layers by Muon, LoRA's among them, and all else by AdamW: tables, and what is no matrix
    (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). Its steps are scaled to the size of AdamW's, so that one
    learning rate suits both (arXiv 2502.16982). sgd has a momentum of 0.9.
    """
    if name == "adamw":
        return torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]

        return AdamW8bit(weights, lr=learning_rate, weight_decay=weight_decay)
    if name == "adafactor":
        return torch.optim.Adafactor(weights, lr=learning_rate, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(  # of one weight after the other: all at once would copy all gradients
            weights, lr=learning_rate, momentum=0.9, weight_decay=weight_decay, foreach=False
        )
    matrices = [weight for weight in weights if weight.ndim == 2 and id(weight) not in tables]
    others = [weight for weight in weights if weight.ndim != 2 or id(weight) in tables]
    parts: list[Optimizer] = []
    if matrices:
        parts.append(
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    if others:
        parts.append(torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay))
    return parts[0] if len(parts) == 1 else Together(*parts)


class Together(Optimizer):
    """Several optimizers of different weights as one: one list of groups, one state dict."""

    def __init__(self, *parts: Optimizer) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Give each part its groups and the one state, of which each knows its own weights."""
        start = 0
        for part in self._parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:end], self.state
            start = end

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()
