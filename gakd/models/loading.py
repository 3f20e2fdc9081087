"""Models and tokenizers from what a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from gakd.machine import is_first_process
from gakd.models.chat_templates import check_template
from gakd.models.config import ModelConfig
from gakd.models.errors import ModelError
from gakd.models.files import lacks_tokenizer
from gakd.models.heads import check_taken, head_of
from gakd.models.lora import add_lora, lora_text
from gakd.models.names import existing_folder
from gakd.models.parts import idle_parameters
from gakd.models.precision import keep_stream_single
from gakd.models.pruning import prune_layers
from gakd.models.reading import read, read_weights
from gakd.models.reading_in_parts import Unreadable, read_in_parts
from gakd.models.rehearsal import prove_student
from gakd.types import LogitShape


def load_student(config: ModelConfig, frozen_dtype: torch.dtype = torch.float32, sharded: bool = False) -> nn.Module:
    """The student, pruned and with LoRA as configured, all of its text's part trainable without LoRA.

    What trains is in fp32; what LoRA leaves as it is, is in `frozen_dtype` (`Run.frozen_dtype`), and its hidden states under
    autocast stay in fp32. Proven before it is trained: its head (`head_of`), and that what is exported of it is what was
    trained (`prove_student`). Raises ModelError where either fails.

    One that is to be `sharded` (`Run.is_sharded`), all of whose weights train, is without them until each rank reads its part,
    as a teacher is (`load_model`). The first process alone has it whole for the proof, and lets go of it.
    """
    if sharded and not config.lora_rank and not config.student_layers:
        shape = _prove(_loaded(config, frozen_dtype), config) if is_first_process() else None
        student = _loaded(config, frozen_dtype, torch.device("meta"))
        head_of(student)
        if shape is not None:
            check_taken(student, shape)
    else:
        student = _loaded(config, frozen_dtype)
        _prove(student, config)
    return student


def _loaded(config: ModelConfig, frozen_dtype: torch.dtype, device: torch.device | None = None) -> nn.Module:
    dtype = frozen_dtype if config.lora_rank else torch.float32
    model = load_model(config.student, dtype, config.student_layers, config.trust_remote_code, device)
    for parameter in idle_parameters(model).values():
        parameter.requires_grad_(False)
    if config.activation_checkpointing:
        checkpoint_activations(model)
    student: nn.Module = model
    if config.lora_rank:
        if dtype != torch.float32:
            keep_stream_single(model)
        student = add_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
    return student


def _prove(student: nn.Module, config: ModelConfig) -> LogitShape:
    shape = head_of(student).shape
    if is_first_process():
        prove_student(student)
        if config.lora_rank:
            print(lora_text(student), flush=True)
    return shape


def checkpoint_activations(model: PreTrainedModel, preserve_rng_state: bool = True) -> None:
    """Keep the inputs of layers alone and recompute the rest; ModelError for a class that cannot."""
    try:
        # Non-reentrant: the embeddings of a LoRA student carry no gradient that reentrant checkpoints could start from.
        # transformers' name of it before 5.22.2 warns in later ones.
        newer = hasattr(model, "activation_checkpointing_enable")
        enable = model.activation_checkpointing_enable if newer else model.gradient_checkpointing_enable
        enable({"use_reentrant": False, "preserve_rng_state": preserve_rng_state})
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} cannot recompute its activations: leave out --activation-checkpointing"
        ) from error


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; a missing padding token becomes the end-of-text token (masks go by lengths, not by ids)."""
    if (folder := existing_folder(name)) is not None and lacks_tokenizer(folder):
        raise ModelError(
            f"{name} has a model and no tokenizer: copy tokenizer.json and tokenizer_config.json of the model that it was made "
            f"of into the folder"
        )
    tokenizer: Any = read(
        name,
        trust_remote_code,
        lambda source: AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code),
    )
    size, used = vocabulary_of(name, trust_remote_code), max(tokenizer.get_vocab().values(), default=0) + 1
    if size is not None and used > size:
        beyond = sorted(token for token, index in tokenizer.get_vocab().items() if index >= size)
        raise ModelError(
            f"the tokenizer of {name} has {used} tokens and its model embeds {size}: {', '.join(map(repr, beyond[:3]))} would "
            f"read beyond them; take these out of the tokenizer's files, or resize the model's embeddings"
        )
    check_template(tokenizer, name)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {name} has no end-of-text token: responses would never end; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def config_of(name: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """A model's configuration; ModelError where it has none that can be read."""
    return read(
        name, trust_remote_code, lambda source: AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    )


def window_of(name: str, trust_remote_code: bool = False) -> int | None:
    """Positions that a model's configuration names; None where it names none."""
    return window_of_config(config_of(name, trust_remote_code))


def window_of_config(config: PreTrainedConfig) -> int | None:
    """Positions that a configuration names; None where it names none."""
    text = config.get_text_config()
    windows = [getattr(text, own, None) for own in ("max_position_embeddings", "max_seq_len", "max_sequence_length")]
    return next((window for window in windows if isinstance(window, int) and window > 0), None)


def vocabulary_of(name: str, trust_remote_code: bool = False) -> int | None:
    """Tokens that a model's configuration names; None where it names none, and where there is none."""
    folder = existing_folder(name)
    if folder is not None and not (folder / "config.json").exists():
        return None  # a tokenizer by itself
    config = config_of(name, trust_remote_code)
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else None


def load_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    layers: Sequence[int] | None = None,
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode; `layers` as in `prune_layers`.

    A vision-language model is loaded whole, and reads text alone. ModelError for an encoder-decoder, and for weights that are
    not finite.

    To a `device` other than the CPU weights are read one by one, so that host memory never holds a model. On the meta device
    it is without its weights but for the head's, which is proven: each rank reads its part once it is cut (`shard_model`).
    Files that cannot be read so are read whole, with a line that says why; such a model is on the CPU in place of meta.
    """
    _refuse_adapter(name)
    kind = kind_of(config_of(name, trust_remote_code), name)
    device = device or torch.device("cpu")
    if device.type != "cpu" and not layers:
        try:
            return read_in_parts(kind, name, dtype, trust_remote_code, device)
        except Unreadable as error:
            if is_first_process():
                print(f"{name} is read whole into host memory first: {error}", flush=True)
    model = read_weights(kind, name, dtype, None, trust_remote_code)
    _refuse_broken_weights(model, name)
    model = (prune_layers(model, layers) if layers else model).eval()
    if device.type not in ("cpu", "meta"):
        nn.Module.to(model, device)
    return model


def kind_of(config: PreTrainedConfig, name: str) -> Any:
    """Which of transformers' families a model is loaded by: one that keeps all of its parts, towers included."""
    if config.is_encoder_decoder:
        raise ModelError(
            f"{name!r} is an encoder-decoder ({type(config).__name__}), whose decoder reads an encoder: give a model that is a "
            f"decoder alone, such as Qwen3-0.6B"
        )
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    of_text_alone = causal is None or (
        config.get_text_config() is not config and causal.config_class is not type(config)
    )
    if of_text_alone and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _refuse_broken_weights(model: PreTrainedModel, name: str) -> None:
    for own, weight in model.named_parameters():
        # A sum is finite where all are, nearly always; counting takes a tensor more.
        if not torch.isfinite(weight.detach().sum(dtype=torch.float32)):
            broken = int((~torch.isfinite(weight.detach())).sum())
            if broken:
                raise ModelError(
                    f"{name!r} has {broken} values that are not finite in {own}: its files are damaged, or its "
                    f"training diverged; give another checkpoint"
                )


def load_backbone(
    name: str, layers: Sequence[int] = (), attention: str = "eager", trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model without its head, in fp32: for a discriminator. Gradient penalties need attention with second derivatives."""
    _refuse_adapter(name)
    model = read_weights(AutoModel, name, torch.float32, attention, trust_remote_code, headless=True)
    return (prune_layers(model, layers) if layers else model).eval()


def _refuse_adapter(name: str) -> None:
    # An adapter on the head, which may be tied to the embeddings, would be left out wherever the head's weight is read.
    if read(name, True, find_adapter_config_file) is not None:
        raise ModelError(
            f"{name!r} is a LoRA adapter of another model: merge it into that model and give the merged folder"
        )


def check_tokenizers(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    """Token-level losses compare index with index: refuse vocabularies that differ, naming both.

    Their ends of text may differ: a turn ends as the student's template says, and generation stops at the ends of both.
    """
    if student.get_vocab() != teacher.get_vocab():
        raise ModelError(
            f"student {names[0]} ({len(student)} tokens) and teacher {names[1]} ({len(teacher)} tokens) have different "
            f"vocabularies: token-level losses need one tokenizer; choose a pair of one family, or distil with baselines/uld.py"
        )
