"""What a model computes between its last hidden states and its logits, found by asking the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from gakd.models.errors import ModelError
from gakd.models.lora import base_of
from gakd.models.mode import evaluating
from gakd.models.parts import backbone_of, last_hidden_rows
from gakd.types import IGNORE_INDEX, Batch, Head, LogitShape

_LENGTHS = (7, 4)  # tokens of the two rows that are asked about
_SIZES = (
    0.02,
    1.0,
    8.0,
    50.0,
)  # logits of this standard deviation: a soft-cap shows in large ones, the scale in small ones
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
            batch = _two_rows(base.config, head)
            heard = _listen(base, batch, head)
            hidden_NH = last_hidden_rows(backbone_of(base), batch)
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
    apart = _difference(hidden_NH.flatten()[None], heard.own_NH.flatten()[None]) if tolerance == _HALF else (
        _difference(hidden_NH, heard.own_NH))  # fmt: skip
    if not apart <= (0.2 if tolerance == _HALF else tolerance):
        raise ModelError(
            f"{type(base).__name__} gives its head other hidden states than its backbone returns (relative difference "
            f"{apart:.2g}): a layer stands between them, or it is not causal; {_SUPPORTED}"
        )
    product_NV = head.product(heard.given_NH).double()
    return _shape(base, product_NV, heard.logits_NV.double(), tolerance)


def text_logits(model: nn.Module) -> Tensor:
    """A model's own logits of two short rows, `[N, V]` in fp64 on the CPU: what tells two models apart. Its mode stays."""
    base = base_of(model)
    batch = _two_rows(base.config, _weight_of(base))
    with evaluating(model):
        logits = base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits.flatten(0, 1)[batch.rows_N].double().cpu()


def prove_folder(kind: type[PreTrainedModel], dtype: torch.dtype, expected_NV: Tensor, folder: Path) -> None:
    """ModelError where the model in `folder` is not the one whose `text_logits` are expected: a weight lost, another function.

    To 1e-3 of each row, which leaves room for another device's rounding; 0.2 over all rows in 16 bits, where a router may
    send a token elsewhere for a rounding.
    """
    with torch.random.fork_rng(devices=[]):  # a weight that is not in the folder would be drawn
        loaded, info = cast(Any, kind).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if lost := sorted(
        set(info["missing_keys"]) | set(info["unexpected_keys"]) | set(map(str, info["mismatched_keys"]))
    ):
        raise ModelError(f"what is exported of {kind.__name__} is not what was trained: {lost[:3]} are not read back")
    found_NV, half = text_logits(loaded), dtype not in (torch.float32, torch.float64)
    apart = (
        _difference(found_NV.flatten()[None], expected_NV.flatten()[None])
        if half
        else _difference(found_NV, expected_NV)
    )
    if not apart <= (0.2 if half else 1e-3):
        raise ModelError(
            f"what is exported of {kind.__name__} is not what was trained: read back it gives other logits (relative difference "
            f"{apart:.2g})"
        )


class Writing(NamedTuple):
    """How a model has to be asked for text, so that transformers' `generate` writes what the model's forward says."""

    one_length: bool  # prompts of one length at a time: padding before a shorter one changes what follows it
    cached: bool  # with a cache of what was read before; without, each token reads the whole text again


def prove_writing(model: nn.Module) -> Writing:
    """Greedy tokens after texts of 3, 5 and 7 tokens, alone and padded, against one forward over each; ModelError if none agree.

    To 1e-3 of the logits in fp32, 0.1 in 16 bits.
    """
    base: Any = base_of(model)
    whole_1T, tolerance = _two_rows(base.config, _weight_of(base)).input_ids[:1], 1e-3
    if base.dtype not in (torch.float32, torch.float64):
        tolerance = 0.1
    texts = [whole_1T[:, :length] for length in (3, 5, 7)]
    own, base.generation_config = (
        base.generation_config,
        GenerationConfig(),
    )  # `generate` takes from there what it is not told
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
    return Writing(one_length=not _difference(beside, alone) <= tolerance, cached=cached)


def _writes(base: Any, text_1T: Tensor, tolerance: float, cached: bool) -> bool:
    """Whether each of a few greedy tokens has the logits that one forward over the whole text gives."""
    logits_SV, written_1S = _next_logits(base, text_1T, 0, 5, cached)
    ids_1L = torch.cat([text_1T, written_1S[:, :-1]], 1)
    expected_SV = base(input_ids=ids_1L, use_cache=False).logits[0, text_1T.shape[1] - 1 :]
    return _difference(logits_SV, expected_SV) <= tolerance


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


def unreached_weights(model: nn.Module) -> list[str]:
    """Names of trainable weights that get no gradient from two short rows: those of an indexer that only chooses, of experts
    for pictures, of layers that read pictures alone.
    """
    base: Any = base_of(model)
    batch = _two_rows(base.config, _weight_of(base))
    with evaluating(model), torch.enable_grad():
        hidden_NH = last_hidden_rows(backbone_of(base), batch)
    reached, seen, waiting = set(base.get_output_embeddings().parameters()), set(), [hidden_NH.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reached.add(getattr(node, "variable", None))
        waiting += [before for before, _ in node.next_functions]
    return [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter not in reached
    ]


def _weight_of(base: Any) -> Head:
    return Head(base.get_output_embeddings().weight)


def _two_rows(config: PreTrainedConfig, head: Head) -> Batch:
    taken = set(_numbers(config, lambda name: "token" in name)) | set(
        _numbers(config.get_text_config(), lambda name: "token" in name)
    )
    free = [index for index in range(min(head.vocab_size, 1000)) if index not in taken]
    ids = [free[(3 + 5 * place) % len(free)] for place in range(sum(_LENGTHS))]
    input_ids = torch.full((2, _LENGTHS[0]), ids[0])
    mask = torch.zeros_like(input_ids)
    for row, (start, length) in enumerate(zip((0, _LENGTHS[0]), _LENGTHS, strict=True)):
        input_ids[row, :length] = torch.tensor(ids[start : start + length])
        mask[row, :length] = 1
    labels = torch.where(mask.bool(), input_ids, IGNORE_INDEX)
    return Batch.of(input_ids, mask, labels).to(head.weight.device)


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
        deviation = head.product(rows_NH, min(head.vocab_size, 1000)).float().std().clamp_min(1e-6)
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
    scale = _exact(fitted, text)
    caps = dict.fromkeys(value for value in _numbers(text) if value > 0)
    tried: list[tuple[float, LogitShape]] = []
    for shape in (LogitShape(), LogitShape(scale), *(LogitShape(scale, cap) for cap in caps)):
        apart = _difference(shape.logits(product_NV), logits_NV)
        if apart <= tolerance:
            return shape
        tried.append((apart, shape))
    apart, shape = min(tried, key=lambda found: found[0])
    closest = f" with scale {shape.scale:g} and cap {shape.softcap}" if apart < 0.5 else ": a layer stands between them"
    raise ModelError(
        f"{type(base).__name__} makes other logits of its hidden states than its head's weight does, relative difference "
        f"{apart:.2g} at best{closest}; {_SUPPORTED}"
    )


def _exact(fitted: float, text: PreTrainedConfig) -> float:
    """The number that a configuration means by a scale that was measured: one of its own, its inverse, or a simple ratio."""
    width = getattr(text, "hidden_size", 1) or 1
    named = [value for value in _numbers(text) if value > 0]
    meant = [1.0, width**-0.5, *named, *(1 / value for value in named), *(value / width for value in named)]
    close = min(meant, key=lambda value: abs(value - fitted))
    return close if abs(close - fitted) <= 1e-3 * abs(fitted) else fitted


def _numbers(config: PreTrainedConfig, wanted: Callable[[str], bool] = lambda name: True) -> Iterable[float]:
    for name, value in config.to_dict().items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and wanted(name):
            yield value


def _difference(found_NX: Tensor, expected_NX: Tensor) -> float:
    """The largest relative difference of a row; infinite where something is not finite."""
    found_NX, expected_NX = found_NX.double(), expected_NX.double()
    apart_N = (found_NX - expected_NX).norm(dim=-1) / expected_NX.norm(dim=-1).clamp_min(1e-30)
    largest = float(apart_N.max())
    return largest if largest == largest else float("inf")
