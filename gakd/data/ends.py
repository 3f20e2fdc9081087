"""Where a turn is over: every token that a tokenizer, its chat template or a model's generation config knows as an end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from gakd.data.rows import DataError
from gakd.data.templates import ChatTemplate
from gakd.models.lora import base_of


def end_ids(tokenizer: PreTrainedTokenizerBase, *models: nn.Module) -> list[int]:
    """The tokens at which generation stops; the tokenizer's end of text first. ValueError where it has none.

    A model's generation config counts as far as its ends are control tokens of this tokenizer: what a configuration has by
    default may be a word of it.
    """
    end = end_of_text(tokenizer)
    found = set(template_ends(tokenizer))
    for model in models:
        config: Any = getattr(base_of(model), "generation_config", None)
        found.update(configured_ends(tokenizer, None if config is None else config.eos_token_id))
    return [end, *sorted(found - {end})]


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's end-of-text token. ValueError where it has none."""
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise ValueError(f"responses end with the end-of-text token, the tokenizer has none (got {end}): set eos_token")
    return end


def configured_ends(tokenizer: PreTrainedTokenizerBase, eos_token_id: int | Iterable[int] | None) -> list[int]:
    """What a generation config has as its ends, as far as the tokenizer has them as control tokens."""
    given = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or ())
    return [token for token in given if token in control_ids(tokenizer)]


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens beside those of plain text: what controls a conversation, and tags such as <think>."""
    return {*getattr(tokenizer, "all_special_ids", ()), *getattr(tokenizer, "added_tokens_decoder", {})}


def channel_header(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a template sets between the generation prompt and a response where it opens a channel there, as gpt-oss does.

    It is part of what a model writes, and no part of its answer. Empty for templates that open none.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return []
    try:
        chat = ChatTemplate(tokenizer)
        head = chat.frame().head
    except DataError:
        return []
    if not chat.special.search(head):
        return []
    return tokenizer(head, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


def template_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The control tokens that the chat template sets behind a response; none without a template that can be used."""
    if getattr(tokenizer, "chat_template", None) is None:
        return []
    try:
        names = ChatTemplate(tokenizer).ends
    except DataError:  # a template that is not used does no harm; one that is used has been refused with its reason
        return []
    ids = tokenizer.convert_tokens_to_ids(names)
    return [token for token in ids if isinstance(token, int)]  # type: ignore[union-attr]
