"""A trained student as a plain Hugging Face folder, loadable by transformers and vLLM without gakd."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase


def write_folder(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write weights (LoRA merged into a copy), config, generation config and tokenizer to `folder`, replacing it.

    Written beside its place and renamed, so that a crash leaves the old folder or the new one, never half of one.
    """
    folder = Path(folder)
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
    model.generation_config.eos_token_id = tokenizer.eos_token_id  # type: ignore[union-attr]
    model.generation_config.pad_token_id = tokenizer.pad_token_id  # type: ignore[union-attr]
    with _replacing(folder) as scratch:
        model.save_pretrained(scratch)  # type: ignore[operator]
        tokenizer.save_pretrained(scratch)
    return folder


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes the place of `folder` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    scratch.chmod(0o755)
    if folder.exists():
        old = scratch.with_suffix(".old")
        folder.rename(old)
        scratch.rename(folder)
        shutil.rmtree(old)
    else:
        os.replace(scratch, folder)
