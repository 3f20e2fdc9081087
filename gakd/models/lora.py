"""LoRA around a model, and the model inside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gakd.extras import check_needs
from gakd.models.config import ALL_LINEAR, LORA
from gakd.models.errors import ModelError
from gakd.models.mode import evaluating
from gakd.models.parts import backbone_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAPER = "paper"
_PAPER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(
    model: PreTrainedModel, rank: int, alpha: int, dropout: float, targets: Sequence[str] = (ALL_LINEAR,)
) -> nn.Module:
    """LoRA on linear layers of the part that reads text; everything else, the head included, is frozen.

    `targets`: `all-linear`, `paper` (q, k, v, o, gate, up and down_proj), or the last parts of layers' names. The head never
    has an adapter: one on a head that is tied to the embeddings merges into wrong weights. Nor have layers that the model reads
    by their weight, which would pass an adapter by. Raises InputError where peft is missing, ModelError where no layer is left.
    """
    linear = linear_layers(model)
    wanted = [name for name in linear if is_target(name, targets)]
    if not wanted:
        kinds = sorted({name.rpartition(".")[2] for name in linear})
        raise ModelError(
            f"LoRA adapts linear layers named {', '.join(targets)}, and {type(model).__name__} has {', '.join(kinds) or 'none'}: "
            f"name some of these by --lora-targets, or train all weights with --lora-rank 0"
        )
    return adapt(model, wanted, rank, alpha, dropout)


def adapt(model: PreTrainedModel, names: Sequence[str], rank: int, alpha: int, dropout: float) -> nn.Module:
    """LoRA on the linear layers of these names; InputError where peft is missing or cannot be imported."""
    check_needs([LORA])
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:  # it is there, and something that it needs is not, or not in its version
        raise ModelError(
            f"peft cannot be imported ({error}): `gakd doctor` says what does not go together; or train all weights with "
            f"--lora-rank 0"
        ) from error

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(names), task_type="CAUSAL_LM",
        fan_in_fan_out=all(not isinstance(model.get_submodule(name), nn.Linear) for name in names),  # GPT-2's Conv1D
    )  # fmt: skip
    return get_peft_model(model, config)  # type: ignore[arg-type]


def is_target(name: str, targets: Sequence[str]) -> bool:
    """Whether `targets`, as in `add_lora`, mean a linear layer of this name."""
    own = name.rpartition(".")[2]
    return ALL_LINEAR in targets or own in targets or (PAPER in targets and own in _PAPER_TARGETS)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers of the part that reads text, without the head and those that are read by their weight."""
    backbone, head = backbone_of(model), model.get_output_embeddings()
    passed_by = _passed_by(model)
    names = {module: name for name, module in model.named_modules()}
    return [
        names[module]
        for module in backbone.modules()
        if _is_linear(module) and module is not head and module not in passed_by
    ]


def lora_text(model: nn.Module) -> str:
    """One line: how many layers have adapters, their share of the weights, and which weights have none."""
    base: Any = base_of(model)
    parts = {
        name: part for name, part in base.named_modules() if "lora_" not in name and not name.endswith(".base_layer")
    }
    linear = {
        name: hasattr(part, "base_layer")
        for name, part in parts.items()
        if _is_linear(part) or hasattr(part, "base_layer")
    }
    left = [name.rpartition(".")[2] for name, adapted in linear.items() if not adapted]
    for name, part in parts.items():
        own = [parameter for parameter in part.parameters(recurse=False) if parameter.ndim == 3]
        if own and not isinstance(part, nn.Conv1d):
            left.append(f"{name.rpartition('.')[2]} (3-D parameters)")
    trained = sum(parameter.numel() for parameter in base.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in base.parameters())
    rank = next(iter(model.peft_config.values())).r  # type: ignore[union-attr,operator]
    without = f"; not: {', '.join(dict.fromkeys(left))}" if left else ""
    count = f"{sum(linear.values())} of {len(linear)}"
    return f"LoRA r={rank} on {count} linear layers, {100 * trained / whole:.2g}% of the weights{without}"


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, without a LoRA wrapper; its linear layers then carry the adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator,return-value]


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _passed_by(model: PreTrainedModel) -> set[nn.Module]:
    """Linear layers that cannot have an adapter.

    A forward does not call them while it calls what holds them, or they give something else than `x W` (a router, a product in
    groups), or a GPU's kernel reads their weight (`out_proj` of a state-space mixer, which peft refuses too).
    """
    outputs: dict[nn.Module, bool] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        width = getattr(module, "out_features", getattr(module, "nf", None))
        plain = inputs and isinstance(output, torch.Tensor) and output.shape == (*inputs[0].shape[:-1], width)
        outputs[module] = bool(plain)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        embeddings: Any = model.get_input_embeddings()
        with evaluating(model):
            model(input_ids=torch.full((1, 4), 3, device=embeddings.weight.device), use_cache=False)
    except Exception:  # no weights, or a forward that wants more: the proof of the head says what
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    passed_by: set[nn.Module] = set()
    for owner in model.modules():
        state_space = all(hasattr(owner, name) for name in ("A_log", "D"))
        for name, child in owner.named_children():
            skipped = owner in outputs and child not in outputs
            if _is_linear(child) and (skipped or not outputs.get(child, True) or (state_space and name == "out_proj")):
                passed_by.add(child)
    return passed_by
