"""What tells one model, or one tokenizer, from another: sizes and SHA-256 of its files, sums of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from gakd.files import file_digest
from gakd.models.lora import base_of
from gakd.models.names import local_folder
from gakd.models.streaming import left_of

_BLOCK, _GOLDEN = (
    1 << 18,
    -1640531527,
)  # words; 2**32 over the golden ratio, so that the places' numbers differ in all bits


def text_digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`vocabulary` and `end_of_text` decide which token an index means, `chat_template` what text is made of a prompt."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))
    return {
        "tokens": len(tokenizer),
        "vocabulary": text_digest(vocabulary),
        "end_of_text": tokenizer.eos_token_id,
        "chat_template": text_digest(json.dumps(tokenizer.chat_template)),
    }


def model_files(model: str, known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`{name: {bytes, mtime_ns, sha256}}` of a model's weights and config; empty where this machine has no weights of it.

    A file of the size and modification time that `known` has for its name is taken to be the known one and not read.
    """
    folder = local_folder(model)
    if folder is None:
        return {}
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    found: dict[str, dict[str, Any]] = {}
    for path in [*weights, folder / "config.json"] if weights else []:
        if path.exists():
            status = path.stat()  # of the file itself: the hub's snapshots are links
            mark = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
            before = known.get(path.name, {})
            same = all(before.get(name) == value for name, value in mark.items())
            found[path.name] = mark | {"sha256": before["sha256"] if same else file_digest(path)}
    return found


def frozen_mark(model: nn.Module) -> str:
    """A hash of a model that is not trained: its weights and buffers, and what its configurations say.

    Buffers that no file holds follow from the configuration; a forward may leave them in another dtype.
    """
    kept = model.state_dict().keys()
    return _mark(
        model, [*model.named_parameters(), *((name, one) for name, one in model.named_buffers() if name in kept)]
    )


def untrained_mark(module: nn.Module) -> str:
    """A hash of what a checkpoint of a module leaves out, being neither trained nor part of its state.

    These are frozen weights, buffers that are made anew with each module, and what a model's configurations say.
    """
    frozen = [(name, weight) for name, weight in module.named_parameters() if not weight.requires_grad]
    kept = module.state_dict().keys()
    return _mark(module, [*frozen, *((name, buffer) for name, buffer in module.named_buffers() if name not in kept)])


def _mark(module: nn.Module, weights: Sequence[tuple[str, Tensor]]) -> str:
    left = left_of(base_of(module))
    known = ((name, left.read(weight) if left and weight.is_meta else weight) for name, weight in weights)
    return text_digest(json.dumps([_settings(module), weights_mark(known)], default=str))


def weights_mark(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names, shapes, dtypes and all bits of some tensors, the same on any device; it waits for the device once.

    Each block of 32-bit words gives the sum of words times odd numbers of their places, modulo 2**64: any single word that is
    another gives another sum, and of several that are, all but one case in some thousand millions.
    """
    about, sums = list[str](), list[Tensor]()
    for name, weight in weights:
        about.append(f"{name} {tuple(weight.shape)} {weight.dtype}")
        sums += _word_sums(weight.detach())
    found = torch.stack(sums).tolist() if sums else []
    return text_digest(json.dumps([about, found]))


def _settings(module: nn.Module) -> list[dict[str, Any]]:
    """What configurations say beside their class's defaults; where they came from and who wrote them has no effect."""
    model = base_of(module)
    told: list[Any] = [getattr(model, name, None) for name in ("config", "generation_config")]
    said = [one.to_diff_dict() for one in told if one is not None]
    return [
        {name: one[name] for name in sorted(one.keys() - {"_name_or_path", "transformers_version"})} for one in said
    ]


def _word_sums(weight: Tensor) -> list[Tensor]:
    flat = weight.contiguous().reshape(-1).view(torch.uint8)
    if flat.numel() % 4 or flat.storage_offset() % 4:
        flat = torch.cat([flat, flat.new_zeros(-flat.numel() % 4)])
    words = flat.view(torch.int32)
    odd = (torch.arange(min(words.numel(), _BLOCK), device=words.device) * _GOLDEN) | 1
    return [(block.long() * odd[: block.numel()]).sum() for block in words.split(_BLOCK)]
