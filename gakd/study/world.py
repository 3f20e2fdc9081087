"""The world of a study: complete texts, a teacher and a student; mini ones trained from scratch, or given ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gakd.data import Example, Row, load_rows
from gakd.data.ends import end_of_text
from gakd.data.examples import encode
from gakd.data.load import spread
from gakd.data.rows import record_of
from gakd.data.splits import SPLITS
from gakd.errors import InputError
from gakd.files import write_json, write_whole
from gakd.models.config import ModelConfig
from gakd.models.export import write_folder
from gakd.models.loading import load_student
from gakd.samplers.generation import padding_id
from gakd.study.config import WorldConfig
from gakd.study.settings import keep_to
from gakd.teachers.loading import load_shared_tokenizer

END, PADDING, USER, ASSISTANT = "<|end|>", "<|padding|>", "<|user|>", "<|assistant|>"
SPECIAL = (END, PADDING, USER, ASSISTANT)
# One token a role: in a world of short texts the usual template would be half of what is read.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class World(NamedTuple):
    """Where its parts are."""

    folder: Path
    given_teacher: str | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def teacher(self) -> str:
        """Folder or name of the model."""
        return self.given_teacher or str(self.folder / "teacher" / "student")

    @property
    def teacher_cache(self) -> Path | None:
        """Of a given teacher: a mini one costs less to run than to read."""
        return self.folder / "teacher-cache" if self.given_teacher else None

    @property
    def student(self) -> Path:
        """The student that every method starts from."""
        return self.folder / "student" / "student"

    def untrained(self, name: str) -> Path:
        return self.folder / f"untrained-{name}"


def make_material(world: World, config: WorldConfig) -> None:
    """Texts, tokenizer and models before training; nothing where they are. InputError for a folder of another world."""
    if (config.teacher is None) != (config.student is None):
        raise InputError(
            f"a given teacher and a given student go together, got --teacher {config.teacher} and --student {config.student}"
        )
    if config.student is None and config.student_epochs <= 0:
        raise InputError(f"a mini student must be trained first, got --student-epochs {config.student_epochs:g}")
    settings = world.folder / "world.json"
    if keep_to(settings, asdict(config)):
        return
    splits = {split: load_rows(config.dataset, split) for split in SPLITS}
    if config.teacher is not None and config.student is not None:
        tokenizer = _write_given(world, config, ModelConfig(config.student, config.teacher, lora_rank=0))
    else:
        tokenizer = _write_untrained(world, config, train_tokenizer(splits["train"], config.vocabulary))
    world.data.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        limit = config.train_rows if split == "train" else config.held_out_rows
        chosen = complete(rows, tokenizer, config)
        if not chosen:
            raise InputError(
                f"no {split} row of {config.dataset} fits {config.longest_prompt} tokens of prompt and "
                f"{config.longest_response} of response: raise --longest-prompt or --longest-response"
            )
        _write_rows(world.data / f"{split}.jsonl", spread(chosen, limit or len(chosen)))
    write_json(settings, asdict(config))


def _write_given(world: World, config: WorldConfig, models: ModelConfig) -> PreTrainedTokenizerBase:
    """The student as it is given, but for layers that are dropped; before its SFT where there is one."""
    models.student_layers = () if config.keep_layers is None else (config.keep_layers,)
    tokenizer = load_shared_tokenizer(models)
    folder = world.untrained("student") if config.student_epochs > 0 else world.student
    write_folder(load_student(models), tokenizer, folder)
    return tokenizer


def _write_untrained(world: World, config: WorldConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerBase:
    for name in ("teacher", "student"):
        width, layers = getattr(config, f"{name}_width"), getattr(config, f"{name}_layers")
        write_folder(untrained(tokenizer, width, layers, config.max_length), tokenizer, world.untrained(name))
    return tokenizer


def complete(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, config: WorldConfig) -> list[Example]:
    """Tokenized rows whose prompt and whole response fit, of which none was cut before."""
    roomy = 1 << 20  # nothing is cut before it is judged
    return [
        example
        for example in encode(rows, tokenizer, "chat", 2 * roomy, roomy)
        if len(example.prompt_ids) <= config.longest_prompt
        and len(example.response_ids) <= config.longest_response
        and example.row.finished
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
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=5 * width // 2, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 64, head_dim=32, tie_word_embeddings=True,
        max_position_embeddings=max_length, eos_token_id=end_of_text(tokenizer), pad_token_id=padding_id(tokenizer),
        bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Qwen3ForCausalLM(config).eval()


def training_steps(world: World, config: WorldConfig, name: str, batch_size: int) -> int:
    """Updates of the teacher or of the student that all methods start from."""
    rows = (world.data / "train.jsonl").read_bytes().count(b"\n")
    return max(int(getattr(config, f"{name}_epochs") * rows / batch_size), 1)


def training_flags(world: World, name: str, steps: int) -> tuple[str, ...]:
    """Flags of baselines/sft.py that make it."""
    # A given student is not at the start: its rate is the recipe's.
    rate = () if world.given_teacher else ("--learning-rate", "3e-3")
    return (
        "--student", str(world.untrained(name)), "--output-dir", str(world.folder / name), "--steps", str(steps), *rate,
        "--warmup-steps", str(steps // 20),
    )  # fmt: skip


def _write_rows(path: Path, examples: Sequence[Example]) -> None:
    rows = (record_of(example.row) for example in examples)
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
