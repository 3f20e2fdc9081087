"""Rows to token ids: the tokenizer's chat template, or the paper's Alpaca-style one."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from gakd.data.rows import DataError, Message, Row

Template = Literal["chat", "alpaca"]

# MiniLLM's text, which the paper's release takes over.
ALPACA = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)
ALPACA_PAIRED = ", paired with an input that provides further context"


class Example(NamedTuple):
    """A tokenized row."""

    prompt_ids: list[int]
    response_ids: list[int]  # ends with the end-of-text token unless it was cut
    row: Row

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def key(self) -> str:
        """A fingerprint of exactly what a model reads and where its response begins: what a teacher cache goes by."""
        ids = np.asarray([len(self.prompt_ids), *self.prompt_ids, *self.response_ids], dtype="<i8")
        return hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest()


def encode(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    template: Template = "chat",
    max_length: int = 512,
    max_prompt_length: int = 256,
) -> list[Example]:
    """Tokenize; prompts longer than `max_prompt_length` are left out with a warning that counts them.

    Prompt and response are tokenized apart, so that a prompt's ids never depend on its response. A response longer than
    `max_length` leaves room for is cut, and then does not end; nor does one whose row is not `finished`. DataError where a
    window leaves no room for a response, where no row is left, where a prompt or a response has no tokens, or where a chat
    template is asked of a tokenizer that has none.
    """
    if max_prompt_length >= max_length:
        raise DataError(
            f"max_prompt_length {max_prompt_length} leaves no room for a response in max_length {max_length}"
        )
    if tokenizer.eos_token_id is None:
        raise DataError("this tokenizer has no end-of-text token, so no response would end: set its eos_token")
    if not rows:
        return []
    for row in rows:
        if not row.responses:
            raise DataError(f"{row.where or row.instruction[:40]!r}: the row has no response; give it one")
    prompt_ids = encode_prompts(rows, tokenizer, template)
    # A control token spelled out in a response is text there: it must not end the response in its middle.
    responses = [row.responses[0] for row in rows]
    response_ids = tokenizer(responses, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    examples = []
    for row, prompt, response in zip(rows, prompt_ids, response_ids, strict=True):
        if not (prompt and response):
            part = "response" if prompt else "prompt"
            raise DataError(
                f"{row.where or row.instruction[:40]!r}: its {part} has no token in this tokenizer; change or remove the row"
            )
        if len(prompt) <= max_prompt_length:
            ids = [*response, tokenizer.eos_token_id] if row.finished else response
            examples.append(Example(prompt, ids[: max_length - len(prompt)], row))
    if len(examples) < len(rows):
        dropped = next(row for row, prompt in zip(rows, prompt_ids, strict=True) if len(prompt) > max_prompt_length)
        left_out = f"left out {len(rows) - len(examples)} of {len(rows)} rows"
        message = f"{left_out} whose prompt is longer than {max_prompt_length} tokens"
        if not examples:
            raise DataError(f"{message}: none is left; raise --max-prompt-length")
        warnings.warn(f"{message}, the first at {dropped.where or dropped.instruction[:40]!r}", stacklevel=2)
    return examples


def encode_prompts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, template: Template) -> list[list[int]]:
    """Token ids of each row's prompt, up to where the response begins."""
    prompts = [render(row, tokenizer, template) for row in rows]
    # A chat template writes its own special tokens; the Alpaca text takes those the tokenizer begins a text with.
    prompt_ids = tokenizer(prompts, add_special_tokens=template == "alpaca", verbose=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [ids[:-1] if template == "alpaca" and ids[-1:] == end else ids for ids in prompt_ids]


def render(row: Row, tokenizer: PreTrainedTokenizerBase, template: Template = "chat") -> str:
    """The prompt's text up to where the response begins; Qwen3's thinking is off."""
    if template == "alpaca":
        if row.history:
            raise DataError(
                f"{row.where}: the alpaca template holds one instruction, not a conversation; use --template chat"
            )
        given = f"### Input:\n{row.input}\n\n" if row.input else ""
        return ALPACA.format(paired=ALPACA_PAIRED if row.input else "", instruction=row.instruction, input=given)
    if tokenizer.chat_template is None:
        raise DataError("this tokenizer has no chat template: use --template alpaca, or an instruction-tuned model")
    messages: Any = conversation(row)  # transformers asks for plain dictionaries
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
    except (TemplateError, TypeError) as error:  # templates refuse, say, system prompts or two user messages in a row
        reason = " ".join(str(error).split())
        raise DataError(
            f"{row.where or row.instruction[:40]!r}: the chat template refuses this conversation ({reason}); change its roles"
        ) from error


def conversation(row: Row) -> list[Message]:
    """The messages up to the response; an input follows its instruction after an empty line."""
    content = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    return [*row.history, {"role": "user", "content": content}]
