"""The mini world: complete texts, a tokenizer trained on them, a teacher and a student trained from scratch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gakd.data import Example, Row, Split, load_rows
from gakd.data.prompts import encode
from gakd.errors import InputError
from gakd.evaluation.generation import special_ids
from gakd.evaluation.held_out import spread
from gakd.export import write_folder
from gakd.study.settings import keep_to, write_json

END, PADDING, USER, ASSISTANT = "<|end|>", "<|padding|>", "<|user|>", "<|assistant|>"
SPECIAL = (END, PADDING, USER, ASSISTANT)
# One token a role: in a world of short texts the usual template would be half of what is read.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass
class WorldConfig:
    """Texts and models of the mini world; another world needs another folder."""

    dataset: str = "docstrings"
    """Text of the world, as --dataset of a recipe."""
    vocabulary: int = 2048
    """Tokens of the BPE that is trained on the world's training text."""
    longest_prompt: int = 64
    """Tokens of a prompt; rows with longer ones are left out."""
    longest_response: int = 160
    """Tokens of a response with its end; rows with longer ones are left out, so that every text is complete."""
    train_rows: int | None = None
    """Training rows at most; None for all."""
    held_out_rows: int = 224
    """Rows of the validation and of the test split, at most."""
    teacher_width: int = 128
    """Hidden width of the teacher."""
    teacher_layers: int = 4
    """Decoder layers of the teacher."""
    teacher_epochs: float = 8
    """Passes of the teacher over the training text."""
    student_width: int = 64
    """Hidden width of the students."""
    student_layers: int = 2
    """Decoder layers of the students."""
    student_epochs: float = 3
    """Passes of the SFT that all methods start from."""

    @property
    def max_length(self) -> int:
        return self.longest_prompt + self.longest_response


class World(NamedTuple):
    """Where its parts are."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher" / "student"

    @property
    def student(self) -> Path:
        """The SFT student that every method starts from."""
        return self.folder / "student" / "student"

    def untrained(self, name: str) -> Path:
        return self.folder / f"untrained-{name}"


def make_material(world: World, config: WorldConfig) -> None:
    """Texts, tokenizer and untrained models; nothing where they are. InputError for a folder of another world."""
    settings = world.folder / "world.json"
    if keep_to(settings, asdict(config)):
        return
    world.data.mkdir(parents=True, exist_ok=True)
    splits = {split: load_rows(config.dataset, split) for split in SPLITS}
    tokenizer = train_tokenizer(splits["train"], config.vocabulary)
    for split, rows in splits.items():
        limit = config.train_rows if split == "train" else config.held_out_rows
        chosen = complete(rows, tokenizer, config)
        if not chosen:
            raise InputError(
                f"no {split} row of {config.dataset} fits {config.longest_prompt} tokens of prompt and "
                f"{config.longest_response} of response: raise --longest-prompt or --longest-response"
            )
        _write_rows(world.data / f"{split}.jsonl", spread(chosen, limit or len(chosen)))
    for name in ("teacher", "student"):
        width, layers = getattr(config, f"{name}_width"), getattr(config, f"{name}_layers")
        write_folder(untrained(tokenizer, width, layers, config.max_length), tokenizer, world.untrained(name))
    write_json(settings, asdict(config))


def complete(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, config: WorldConfig) -> list[Example]:
    """Tokenized rows whose prompt and whole response fit."""
    roomy = 1 << 20  # nothing is cut before it is judged
    return [
        example
        for example in encode(rows, tokenizer, "chat", 2 * roomy, roomy)
        if len(example.prompt_ids) <= config.longest_prompt and len(example.response_ids) <= config.longest_response
    ]


def train_tokenizer(rows: Sequence[Row], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of prompts and responses, with an end, a padding and two role tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    texts = (text for row in rows for text in (row.instruction, row.input, *row.responses))
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=PADDING)
    tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def untrained(tokenizer: PreTrainedTokenizerFast, width: int, layers: int, max_length: int) -> Qwen3ForCausalLM:
    """A Qwen3 with heads of 32, one key-value head for two, tied embeddings; InputError for a width that these do not divide."""
    if width % 64:
        raise InputError(f"a model's width is a multiple of 64, two heads of 32, got {width}")
    end, padding = special_ids(tokenizer)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=5 * width // 2, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 64, head_dim=32, tie_word_embeddings=True,
        max_position_embeddings=max_length, eos_token_id=end, pad_token_id=padding,
        bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Qwen3ForCausalLM(config).eval()


def training_flags(world: World, config: WorldConfig, name: str, batch_size: int) -> tuple[str, ...]:
    """Flags of baselines/sft.py that make the teacher or the student that all methods start from."""
    rows = (world.data / "train.jsonl").read_bytes().count(b"\n")
    epochs = getattr(config, f"{name}_epochs")
    steps = max(int(epochs * rows / batch_size), 1)
    return (
        "--student", str(world.untrained(name)), "--output-dir", str(world.folder / name), "--steps", str(steps),
        "--learning-rate", "3e-3", "--warmup-steps", str(steps // 20),
    )  # fmt: skip


def _write_rows(path: Path, examples: Sequence[Example]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in (example.row for example in examples):
            record = {"instruction": row.instruction, "input": row.input, "output": list(row.responses)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
