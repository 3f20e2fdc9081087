"""How a model has to be asked for text."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from gakd.models.asking import difference, two_rows, weight_of
from gakd.models.errors import ModelError
from gakd.models.lora import base_of
from gakd.models.mode import evaluating
from gakd.models.sharding import computes_in


class Writing(NamedTuple):
    """How a model has to be asked for text, so that transformers' `generate` writes what the model's forward says."""

    one_length: bool  # prompts of one length at a time: padding before a shorter one changes what follows it
    cached: bool  # with a cache of what was read before; without, each token reads the whole text again


def prove_writing(model: nn.Module) -> Writing:
    """Greedy tokens after texts of 3, 5 and 7 tokens, alone and padded, against one forward over each; ModelError if none agree.

    To 1e-3 of the logits in fp32, 0.1 in 16 bits.
    """
    base: Any = base_of(model)
    whole_1T, tolerance = two_rows(base.config, weight_of(base)).input_ids[:1], 1e-3
    if computes_in(base) not in (torch.float32, torch.float64):
        tolerance = 0.1
    texts = [whole_1T[:, :length] for length in (3, 5, 7)]
    # `generate` takes from there what it is not told.
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        with evaluating(model):
            cached = all(_writes(base, text, tolerance, cached=True) for text in texts)
            if not cached and not all(_writes(base, text, tolerance, cached=False) for text in texts):
                raise ModelError(
                    f"{type(base).__name__} writes by transformers' generate something else than its forward says: gakd can "
                    f"neither evaluate nor train on its text; --evaluate-every 0 trains on the dataset's"
                )
            alone, beside = (
                _next_logits(base, text, padding, 1, cached)[0] for text, padding in ((texts[1], 0), (texts[1], 3))
            )
    finally:
        base.generation_config = own
    return Writing(one_length=not difference(beside, alone) <= tolerance, cached=cached)


def _writes(base: Any, text_1T: Tensor, tolerance: float, cached: bool) -> bool:
    """Whether each of a few greedy tokens has the logits that one forward over the whole text gives."""
    logits_SV, written_1S = _next_logits(base, text_1T, 0, 5, cached)
    ids_1L = torch.cat([text_1T, written_1S[:, :-1]], 1)
    expected_SV = base(input_ids=ids_1L, use_cache=False).logits[0, text_1T.shape[1] - 1 :]
    return difference(logits_SV, expected_SV) <= tolerance


def _next_logits(base: Any, text_1T: Tensor, padding: int, count: int, cached: bool) -> tuple[Tensor, Tensor]:
    before_1P = text_1T[:, :1].expand(1, padding)
    output = base.generate(
        input_ids=torch.cat([before_1P, text_1T], 1),
        attention_mask=torch.cat([torch.zeros_like(before_1P), torch.ones_like(text_1T)], 1),
        generation_config=GenerationConfig(
            max_new_tokens=count, min_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True,
            use_cache=cached,
        ),
    )  # fmt: skip
    return torch.cat(output.logits), output.sequences[:, padding + text_1T.shape[1] :]
