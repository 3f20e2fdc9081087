"""What decides which ids a text becomes, each as a hash: by it examples are found again, and a resumed run knows its data."""

from __future__ import annotations

import json
from typing import Any

from gakd.data.examples import Encoder
from gakd.models.fingerprints import text_digest


def template_mark(encoder: Encoder) -> str:
    """Of the text that a conversation becomes, its date left out."""
    template: Any = encoder.tokenizer.chat_template if encoder.template == "chat" else encoder.template
    return text_digest(json.dumps([template, encoder.thinking, encoder.train_on]))


def date_mark(encoder: Encoder) -> str:
    """The date, where the template sets one."""
    if encoder.template != "chat" or "strftime_now" not in json.dumps(encoder.tokenizer.chat_template):
        return ""
    return encoder.chat.date


def encoder_marks(encoder: Encoder) -> dict[str, str]:
    lengths = f"{encoder.max_length}, prompts {encoder.max_prompt_length}"
    return {
        "tokenizer": encoder.tokenizer_mark, "template": template_mark(encoder), "date": date_mark(encoder),
        "lengths": lengths, "prompts alone": str(encoder.may_be_prompt),
    }  # fmt: skip
