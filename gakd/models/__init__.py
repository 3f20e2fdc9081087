"""Causal language models: names, loading, pruning, LoRA, heads and rows, sharding, export.

Imports the leaves and `types`; knows neither Fabric nor data.
"""

from typing import TYPE_CHECKING

from gakd.lazy import lazily

if TYPE_CHECKING:
    from gakd.models.config import ModelConfig
    from gakd.models.errors import ModelError
    from gakd.models.export import write_folder
    from gakd.models.fingerprints import model_files, tokenizer_fingerprint
    from gakd.models.heads import head_of, hidden_rows
    from gakd.models.loading import (
        check_tokenizers,
        load_backbone,
        load_model,
        load_student,
        load_tokenizer,
        window_of,
    )
    from gakd.models.lora import add_lora, base_of
    from gakd.models.names import resolve
    from gakd.models.pruning import prune_layers
    from gakd.models.sharding import shard_model

__getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "ModelConfig",
    "ModelError",
    "add_lora",
    "base_of",
    "check_tokenizers",
    "head_of",
    "hidden_rows",
    "load_backbone",
    "load_model",
    "load_student",
    "load_tokenizer",
    "model_files",
    "prune_layers",
    "resolve",
    "shard_model",
    "tokenizer_fingerprint",
    "window_of",
    "write_folder",
]
