"""The parts of a causal language model: its text backbone, the lists of its layers, and what text never reaches."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from gakd.models.errors import ModelError
from gakd.models.unpacked import one_sequence_a_row
from gakd.types import Batch

_EXPERTS_PER_TOKEN = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts", "top_k",
)  # fmt: skip


def backbone_of(base: PreTrainedModel) -> PreTrainedModel:
    """What turns token ids into the hidden states that the head reads.

    Of a model that is composed of several, such as a vision-language model, the part whose configuration is the text's. Else
    the model without its head; where a class names none (Llama 4), the only model inside it.
    """
    text = base.config.get_text_config()
    if text is not base.config:
        part = next((part for part in _models_inside(base) if type(part.config) is type(text)), None)
        if part is not None:
            return backbone_of(part) if part.get_output_embeddings() is not None else part
    body = cast(PreTrainedModel, base.base_model)
    if body is base:
        inside = [child for child in base.children() if isinstance(child, PreTrainedModel)]
        body = inside[0] if len(inside) == 1 else base
    return body


def last_hidden_rows(backbone: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden states of the supervised rows, `[N, H]`, without an attention mask."""
    with one_sequence_a_row():
        hidden_BTH = backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return hidden_BTH.flatten(0, 1).index_select(0, batch.rows_N)


def routed_rows(backbone: PreTrainedModel, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `last_hidden_rows`, and the logits of each layer's router, `[B T, E]`; none of a model that returns none."""
    with one_sequence_a_row():
        output = backbone(input_ids=batch.input_ids, use_cache=False, output_router_logits=True)
    hidden_NH = output.last_hidden_state.flatten(0, 1).index_select(0, batch.rows_N)
    routers = getattr(output, "router_logits", None) or ()
    return hidden_NH, tuple(logits for logits in routers if logits is not None)


def tables_of(base: nn.Module) -> set[int]:
    """Identities of the weights that have a row for each token: embeddings, and the head of a transformers model."""
    tables = [module for module in base.modules() if isinstance(module, nn.Embedding)]
    head: Any = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    return {id(module.weight) for module in (*tables, head) if module is not None}


def layer_lists(backbone: nn.Module, config: PreTrainedConfig) -> dict[str, nn.Module]:
    """The lists of the backbone that have one entry a layer, by name; none inside another."""
    found: dict[str, nn.Module] = {}
    for name, child in backbone.named_modules():
        of_layers = isinstance(child, (nn.ModuleList, nn.ParameterList)) and len(child) == config.num_hidden_layers
        if of_layers and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = child
    return found


def decoder_layers(base: PreTrainedModel) -> nn.ModuleList:
    """A causal language model's decoder layers; ModelError for a model that keeps them otherwise."""
    backbone = backbone_of(base)
    of_depth = [child for child in layer_lists(backbone, backbone.config).values() if isinstance(child, nn.ModuleList)]
    lists = of_depth or [
        child for child in backbone.children() if isinstance(child, nn.ModuleList)
    ]  # of blocks of two layers
    layers = max(lists, key=_size, default=None)
    if layers is None:
        depth = getattr(backbone.config, "num_hidden_layers", "its")
        raise ModelError(
            f"{type(base).__name__} keeps {depth} layers in no ModuleList: it can be neither pruned nor cut"
        )
    return layers


def experts_per_token(base: PreTrainedModel) -> int | None:
    """How many experts read a token, under whatever name the text's configuration has for it; None of a dense model."""
    text: Any = base.config.get_text_config()
    for config in (text, getattr(text, "ffn_config", None)):
        for name in _EXPERTS_PER_TOKEN:
            value = getattr(config, name, None)
            value = max(value, default=0) if isinstance(value, (list, tuple)) else value  # of each layer
            if isinstance(value, int) and value > 0:
                return value
    return None


def idle_parameters(base: PreTrainedModel) -> dict[str, nn.Parameter]:
    """What no text reaches, by name: vision and audio towers and what joins them to the text's part."""
    if base.config.get_text_config() is base.config:
        return {}
    head = base.get_output_embeddings()
    used = {id(parameter) for part in (backbone_of(base), head) if part is not None for parameter in part.parameters()}
    return {name: parameter for name, parameter in base.named_parameters() if id(parameter) not in used}


def _models_inside(base: PreTrainedModel) -> list[PreTrainedModel]:
    return [part for part in base.modules() if isinstance(part, PreTrainedModel) and part is not base]


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
