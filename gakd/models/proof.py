"""What a model computes between its last hidden states and its logits, found by asking the model itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gakd.models.asking import difference, numbers, two_rows
from gakd.models.errors import ModelError
from gakd.models.mode import evaluating
from gakd.models.parts import backbone_of, last_hidden_rows
from gakd.models.sharding import inside
from gakd.types import Batch, Head, LogitShape

# Logits of this standard deviation: a soft-cap shows in large ones, the scale in small ones.
_SIZES = (0.02, 1.0, 8.0, 50.0)
_SINGLE, _HALF = 1e-4, 2e-2  # largest relative difference of a row, in fp32 and in 16 bits
_SUPPORTED = (
    "gakd reads models whose logits are softcap(scale * (hidden @ weight.T + bias)) of the last hidden states, scale and cap "
    "being numbers of the configuration: give such a one"
)


class Heard(NamedTuple):
    """One forward of the model: what its head was given in place of its hidden states, and what it made of them."""

    own_NH: Tensor  # its hidden states
    given_NH: Tensor
    logits_NV: Tensor


@torch.no_grad()
def prove_head(base: PreTrainedModel, head: Head) -> LogitShape:
    """Scale and soft-cap with which `head` (weight and bias) gives the model's own logits; ModelError where none do.

    Two rows of different lengths go through the model's forward with an attention mask, and through its backbone as training
    does it. Their hidden states must agree, to 1e-4 in fp32. On its way to the head each row is then multiplied to a size of
    its own, so that what is not linear shows: the logits of all rows must be `softcap(scale * product)` to 1e-4.
    """
    try:
        with evaluating(base), torch.autocast(head.weight.device.type, enabled=False):
            batch = two_rows(base.config, head)
            heard = _listen(base, batch, head)
            hidden_NH = inside(base, last_hidden_rows, backbone_of(base), batch)
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model raises that wants more than token ids
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise ModelError(f"{type(base).__name__} does not read text by token ids and a mask alone: {reason}") from error
    tolerance = _SINGLE if head.weight.dtype in (torch.float32, torch.float64) else _HALF
    if heard.logits_NV.shape[-1] != head.vocab_size:
        raise ModelError(
            f"{type(base).__name__} gives {heard.logits_NV.shape[-1]} logits, its head has {head.vocab_size} rows: {_SUPPORTED}"
        )
    # In 16 bits a router may send a token elsewhere for a rounding, so all rows are compared together.
    half = tolerance == _HALF
    rows = (hidden_NH, heard.own_NH) if not half else (hidden_NH.flatten()[None], heard.own_NH.flatten()[None])
    apart = difference(*rows)
    if not apart <= (0.2 if half else tolerance):
        raise ModelError(
            f"{type(base).__name__} gives its head other hidden states than its backbone returns (relative difference "
            f"{apart:.2g}): a layer stands between them, or it is not causal; {_SUPPORTED}"
        )
    product_NV = head.product(heard.given_NH).double()
    return _shape(base, product_NV, heard.logits_NV.double(), tolerance)


def _listen(base: PreTrainedModel, batch: Batch, head: Head) -> Heard:
    """The model's own forward, its hidden states multiplied on their way to the head.

    OPT's class calls a part of what it names its backbone, so the models inside are listened to as well.
    """
    backbone = backbone_of(base)
    inside = [part for part in backbone.modules() if isinstance(part, PreTrainedModel) and part is not backbone]
    for part in (backbone, *inside):
        heard = _listen_to(part, base, batch, head)
        if heard is not None:
            return heard
    raise ModelError(f"{type(base).__name__} does not call {type(backbone).__name__} in its forward: {_SUPPORTED}")


def _listen_to(part: PreTrainedModel, base: PreTrainedModel, batch: Batch, head: Head) -> Heard | None:
    caught: dict[str, Tensor] = {}

    def multiply(_: Any, __: Any, output: Any) -> Any:
        hidden_BTH = output.last_hidden_state
        rows_NH = hidden_BTH.flatten(0, 1)[batch.rows_N]
        if rows_NH.shape[1] != head.weight.shape[1]:
            raise ModelError(
                f"{type(base).__name__} has hidden states of width {rows_NH.shape[1]}, its head reads {head.weight.shape[1]}: "
                f"a layer stands between them; {_SUPPORTED}"
            )
        deviation = head.cut(1000).product(rows_NH).float().std().clamp_min(1e-6)
        sizes_N = torch.tensor(_SIZES, device=rows_NH.device).repeat(len(rows_NH))[: len(rows_NH)] / deviation
        given_NH = (rows_NH * sizes_N[:, None]).to(rows_NH.dtype)
        caught.update(own=rows_NH, given=given_NH)
        output.last_hidden_state = (
            hidden_BTH.clone().flatten(0, 1).index_copy(0, batch.rows_N, given_NH).view_as(hidden_BTH)
        )
        return output

    hook = part.register_forward_hook(multiply)
    try:
        logits_BTV = base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    finally:
        hook.remove()
    return Heard(caught["own"], caught["given"], logits_BTV.flatten(0, 1)[batch.rows_N]) if caught else None


def _shape(base: PreTrainedModel, product_NV: Tensor, logits_NV: Tensor, tolerance: float) -> LogitShape:
    """The simplest shape that agrees: as it is, scaled, scaled and capped by a number of the text's configuration."""
    text = base.config.get_text_config()
    small_NV, small_logits_NV = product_NV[:: len(_SIZES)], logits_NV[:: len(_SIZES)]
    fitted = float((small_NV * small_logits_NV).sum() / small_NV.square().sum().clamp_min(1e-30))
    scale = _exact(fitted, base)
    caps = dict.fromkeys(value for value in numbers(text) if value > 0)
    tried: list[tuple[float, LogitShape]] = []
    for shape in (LogitShape(), LogitShape(scale), *(LogitShape(scale, cap) for cap in caps)):
        apart = difference(shape.logits(product_NV), logits_NV)
        if apart <= tolerance:
            return shape
        tried.append((apart, shape))
    apart, shape = min(tried, key=lambda found: found[0])
    closest = f" with scale {shape.scale:g} and cap {shape.softcap}" if apart < 0.5 else ": a layer stands between them"
    raise ModelError(
        f"{type(base).__name__} makes other logits of its hidden states than its head's weight does, relative difference "
        f"{apart:.2g} at best{closest}; {_SUPPORTED}"
    )


def _exact(fitted: float, base: PreTrainedModel) -> float:
    """The number that a configuration means by a scale that was measured: one of its own, its inverse, or a simple ratio.

    One that it does not name is what was measured, if no weight of the model could train it: else 1, which will not agree.
    """
    text: Any = base.config.get_text_config()
    width = getattr(text, "hidden_size", 1) or 1
    named = [value for value in numbers(text) if value > 0]
    meant = [1.0, width**-0.5, *named, *(1 / value for value in named), *(value / width for value in named)]
    close = min(meant, key=lambda value: abs(value - fitted))
    if abs(close - fitted) <= 1e-3 * abs(fitted):
        return close
    inside = {id(weight) for part in (backbone_of(base), base.get_output_embeddings()) for weight in part.parameters()}  # type: ignore[union-attr]
    return fitted if all(id(weight) in inside for weight in base.parameters()) else 1.0
