"""A causal language model in two parts, so that no logits are built: hidden states of some rows, and the head."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from gakd.models.lora import base_of
from gakd.models.names import ModelError
from gakd.models.sharding import inside, whole
from gakd.types import Batch, Head


def head_of(model: nn.Module) -> Head:
    """The output head of a causal language model, with the scale and soft-cap that its configuration names.

    Of a model that is sharded over ranks, outside its forward: a gathered copy without gradient, for which every rank asks.
    """
    base = base_of(model)
    embeddings = base.get_output_embeddings()
    if embeddings is None:
        raise ModelError(f"{type(base).__name__} has no output head: load a causal language model")
    scale = getattr(base.config, "logit_scale", None) or 1.0  # Cohere
    scale = scale / (getattr(base.config, "logits_scaling", None) or 1.0)  # Granite
    softcap = getattr(base.config, "final_logit_softcapping", None)  # Gemma
    bias = getattr(embeddings, "bias", None)
    return Head(whole(embeddings.weight), None if bias is None else whole(bias), scale, softcap)  # type: ignore[arg-type]


def hidden_rows(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states (after the final norm) of the supervised rows, `[N, H]`; prompt and padding never reach a head.

    No attention mask: batches are padded on the right, where causal attention lets no token see it. So attention takes
    its fastest path, and nothing asks the device whether there is padding.
    """
    return inside(base_of(model), _hidden_rows, base_of(model).base_model, batch)


def _hidden_rows(backbone: PreTrainedModel, batch: Batch) -> Tensor:
    hidden_BTH = backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return hidden_BTH.flatten(0, 1)[batch.rows_N]
