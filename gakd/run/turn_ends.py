"""Whether the teacher of a run can end a turn: as the student's tokenizer and template end it."""

from __future__ import annotations

from transformers import GenerationConfig, PreTrainedTokenizerBase

from gakd.data.config import Template
from gakd.data.ends import configured_ends, end_of_text, template_ends
from gakd.models.config import ModelConfig
from gakd.models.loading import vocabulary_of
from gakd.models.names import resolve


def end_warnings(
    config: ModelConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    teachers: PreTrainedTokenizerBase | None,
) -> list[str]:
    """Of a teacher that has no token for the end of a turn, or that knows only other ends.

    `tokenizer` is the student's, which has its own (`load_tokenizer`), `teachers` that of a teacher which is another model
    and in memory.
    """
    if config.teacher is None or config.teacher_cache is not None:
        return []
    taught = template_ends(tokenizer) if template == "chat" else []
    taught = taught or [end_of_text(tokenizer)]
    size = vocabulary_of(config.teacher, config.trust_remote_code)
    if size is not None and not any(token < size for token in taught):
        return [
            f"teacher {config.teacher} cannot end a turn: {_named(tokenizer, taught)} is not in its vocabulary of {size} tokens, "
            f"so what it writes never stops; give a model of this tokenizer"
        ]
    if teachers is None or teachers.get_vocab() != tokenizer.get_vocab():
        return []
    known = {end_of_text(teachers), *_configured(config.teacher, teachers)}
    if known & set(taught):
        return []
    return [
        f"teacher {config.teacher} ends its texts with {_named(teachers, sorted(known))}, and a turn here ends with "
        f"{_named(tokenizer, taught)}: it may never have seen the end of a turn; take one that follows this template"
    ]


def _configured(name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    try:
        return configured_ends(tokenizer, GenerationConfig.from_pretrained(resolve(name)).eos_token_id)
    except OSError:  # it has none
        return []


def _named(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(ids))
