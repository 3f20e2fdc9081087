"""LoRA around a model, and the model inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from gakd.models.names import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(model: PreTrainedModel, rank: int, alpha: int, dropout: float) -> nn.Module:
    """LoRA on the attention and MLP projections, the paper's targets; everything else, the head included, is frozen.

    The head never has an adapter: one on a head that is tied to the embeddings merges into wrong weights.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError(
            "LoRA needs peft: pip install 'gakd[lora]', or train all weights with --lora-rank 0"
        ) from error
    if not any(name.rpartition(".")[2] in _LORA_TARGETS for name, _ in model.named_modules()):
        raise ModelError(
            f"LoRA adapts {', '.join(_LORA_TARGETS)}, and {type(model).__name__} has none of these: train all weights with "
            f"--lora-rank 0"
        )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(_LORA_TARGETS), task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)  # type: ignore[arg-type]


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, without a LoRA wrapper; its linear layers then carry the adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator,return-value]
