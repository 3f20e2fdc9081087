"""Whether the models of a run can end a turn: as the student's tokenizer and template end it."""

from __future__ import annotations

from transformers import GenerationConfig, PreTrainedTokenizerBase

from gakd.data.ends import configured_ends, end_of_text, template_ends
from gakd.data.templates import Template
from gakd.models.loading import ModelConfig, vocabulary_of
from gakd.models.names import resolve


def end_warnings(
    config: ModelConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    teachers: PreTrainedTokenizerBase | None,
) -> list[str]:
    """One for each model that has no token for the end of a turn, or a teacher that knows only other ends.

    `tokenizer` is the student's, `teachers` that of a teacher which is another model and in memory.
    """
    taught = template_ends(tokenizer) if template == "chat" else []
    taught = taught or [end_of_text(tokenizer)]
    names = {"student": config.student, "teacher": config.teacher if config.teacher_cache is None else None}
    found = []
    for role, name in names.items():
        if name is None:
            continue
        size = vocabulary_of(name, config.trust_remote_code)
        if isinstance(size, int) and not any(token < size for token in taught):
            found.append(
                f"{role} {name} cannot end a turn: {_named(tokenizer, taught)} is not in its vocabulary of {size} tokens, so "
                f"what it writes never stops; give a model of this tokenizer"
            )
        elif role == "teacher" and teachers is not None:
            known = {end_of_text(teachers), *_configured(name, teachers)}
            if teachers.get_vocab() == tokenizer.get_vocab() and not known & set(taught):
                found.append(
                    f"teacher {name} ends its texts with {_named(teachers, sorted(known))}, and a turn here ends with "
                    f"{_named(tokenizer, taught)}: it may never have seen the end of a turn; take one that follows this "
                    f"template"
                )
    return found


def _configured(name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    try:
        return configured_ends(tokenizer, GenerationConfig.from_pretrained(resolve(name)).eos_token_id)
    except OSError:  # it has none
        return []


def _named(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(ids))
