"""What tells one model's files, or one tokenizer, from another: sizes and SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from gakd.files import file_digest
from gakd.models.names import local_folder


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
