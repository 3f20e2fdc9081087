"""A trained student as a plain Hugging Face folder, loadable by transformers and vLLM without gakd."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from gakd.files import follow_umask, read_json, write_json
from gakd.machine import version_of
from gakd.models.disk import room_for
from gakd.models.errors import ModelError
from gakd.models.precision import single_copy
from gakd.models.read_back import prove_folder, prove_values, text_logits

_AGAIN = "make room there, or make it writable, then run again; a training run with --resume"


def write_folder(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    ends: Sequence[int] = (),
    prove: bool = True,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write weights (LoRA merged into a copy, in fp32), config, generation config and tokenizer to `folder`, replacing it.

    Its generation config has these `ends` (`gakd.data.end_ids`), or the tokenizer's end of text where none are given; the
    rest of it is passed on as it came, valid to transformers or not.

    Written beside its place and renamed, so that a crash leaves the old folder or the new one, never half of one. A model that
    is sharded over ranks is gathered on the CPU of rank 0, which writes it; every rank calls this.

    Its weights are in `dtype`, or in the model's own where none is given. Its config.json names the versions that wrote it.

    What is written is loaded again and compared with the model (`prove_folder`), unless `prove` is False; what is then rounded
    to another `dtype` must come back with the bits that rounding gave it (`prove_values`). Where they differ,
    the new folder is kept as `NAME-unproven` and ModelError says what is wrong; an old folder stays. It stays as well where the
    disk is full or cannot be written, which is a RunError.
    """
    folder = Path(folder)
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        gathered = _gathered(model)
        if gathered is None:
            return folder
        model = gathered
    adapted = hasattr(model, "merge_and_unload")
    if adapted:
        model = single_copy(model)
    expected_NV = text_logits(model) if prove else None
    merged: Any = model.merge_and_unload() if adapted else model  # type: ignore[operator]
    every: Any = list(ends) or [tokenizer.eos_token_id]
    end = every if len(every) > 1 else every[0]
    before = "what was there before is intact. " if folder.exists() else ""
    with room_for(folder, f"{before}{_AGAIN}"), _replacing(folder) as scratch:
        _save(merged, scratch, end, cast(Any, tokenizer.pad_token_id))
        tokenizer.save_pretrained(scratch)
        try:
            if expected_NV is not None:
                prove_folder(type(merged), merged.dtype, expected_NV, scratch)
            if dtype not in (None, merged.dtype):
                _round(type(merged), dtype, scratch, end, cast(Any, tokenizer.pad_token_id))
        except ModelError as error:
            kept = folder.with_name(f"{folder.name}-unproven")
            shutil.rmtree(kept, ignore_errors=True)
            scratch.rename(kept)
            raise ModelError(f"{error}; it is kept as {kept}") from error
        _sign(scratch)
    return folder


def _round(kind: Any, dtype: Any, folder: Path, end: int | list[int] | None, padding: int | None) -> None:
    """Weights of a folder in another dtype, as transformers rounds them when it loads: what a class keeps in fp32 stays so."""
    with torch.random.fork_rng(devices=[]):
        rounded = kind.from_pretrained(folder, dtype=dtype)
    for file in folder.glob("*.safetensors*"):  # which the loaded weights may still be a view of, so never written over
        file.unlink()
    _save(rounded, folder, end, padding)
    prove_values(rounded, dtype, folder)


def _sign(folder: Path) -> None:
    """Into config.json, beside transformers' own version, those of what has trained and written the weights."""
    config = read_json(folder / "config.json") or {}
    write_json(
        folder / "config.json",
        config | {"gakd_version": version_of("gakd"), "torch_version": version_of("torch")},
        indent=2,
    )


def clear_killed(folder: Path) -> None:
    """Remove what an export that was killed has left beside its folder; an old folder that it had put aside comes back."""
    for left in folder.parent.glob(f".{folder.name}-????????*"):
        if left.suffix == ".old" and not folder.exists():  # between its two renames
            left.rename(folder)
        shutil.rmtree(left, ignore_errors=True)


def save_model(model: Any, folder: Path, ends: int | list[int] | None, padding: int | None) -> None:
    """`save_pretrained`, which refuses generation settings that transformers has no use for: those are written as they came.

    RunError where the disk is full or cannot be written.
    """
    with room_for(folder, _AGAIN):
        _save(model, folder, ends, padding)


def _save(model: Any, folder: Path, ends: int | list[int] | None, padding: int | None) -> None:
    own = getattr(model, "generation_config", None)
    if own is None:  # a class that cannot generate
        model.save_pretrained(folder)
        return
    own.eos_token_id, own.pad_token_id = ends, padding
    try:
        own.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=padding)
        try:
            model.save_pretrained(folder)
        finally:
            model.generation_config = own
        own.to_json_file(folder / "generation_config.json", use_diff=True)
    else:
        model.save_pretrained(folder)


def _gathered(model: nn.Module) -> nn.Module | None:
    """A whole copy of a sharded model on the CPU of rank 0, adapters included; None on the other ranks."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if distributed.get_rank() != 0:
        return None
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    copied: Any = type(base)(copy.deepcopy(base.config)).to(next(base.parameters()).dtype)
    if base is not model:
        from peft import get_peft_model

        copied = get_peft_model(copied, model.peft_config["default"])  # type: ignore[index]
    missing, unexpected = copied.load_state_dict(weights, strict=False)
    tied = {name for name in missing if name.endswith("lm_head.weight") and base.config.tie_word_embeddings}
    if unexpected or set(missing) - tied:
        raise RuntimeError(f"a gathered model lacks {sorted(set(missing) - tied)} and has {unexpected} too many")
    copied.tie_weights()
    copied.generation_config = base.generation_config
    return copied.eval()


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes the place of `folder` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_killed(folder)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    follow_umask(scratch)
    if folder.exists():
        old = scratch.with_suffix(".old")
        folder.rename(old)
        try:
            scratch.rename(folder)
        except OSError:
            old.rename(folder)
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)  # what stays of it goes at the next export
    else:
        os.replace(scratch, folder)
