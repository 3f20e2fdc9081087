"""Teachers: a batch in, the teacher's last hidden states of the supervised rows and its head out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from gakd.data import Data
from gakd.fingerprints import model_files, tokenizer_fingerprint
from gakd.model_names import ModelError, local_folder
from gakd.models import (
    ModelConfig,
    head_of,
    hidden_rows,
    load_model,
    load_tokenizer,
    shard_model,
)
from gakd.teacher_cache import CacheError, TeacherCache
from gakd.types import Batch, Head, TeacherOutput


class LocalTeacher:
    """A frozen model in this process, run once a batch, without gradient and without logits."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self._whole_head: Head | None = None

    @property
    def head(self) -> Head:
        return self._whole_head or head_of(self.model)

    def shard(self, mesh: DeviceMesh, device: torch.device) -> None:
        """Cut the weights over the ranks of a mesh; each keeps the head whole, which losses read outside the model."""
        head = head_of(self.model)
        bias = None if head.bias is None else head.bias.detach().to(device)
        self._whole_head = head._replace(weight=head.weight.detach().to(device), bias=bias)
        shard_model(self.model, mesh)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        return TeacherOutput(hidden_rows(self.model, batch), self.head)


class CachedTeacher:
    """A teacher whose hidden states are read from a cache: its head is in memory, its backbone never is.

    Rows are read for the batch's keys, so a batch must be one that `gakd.data.collate` made of cached examples.
    """

    model = None

    def __init__(self, cache: TeacherCache, device: torch.device | str = "cpu") -> None:
        self.cache, self.device = cache, torch.device(device)
        head = cache.head()
        bias = None if head.bias is None else head.bias.to(device)
        self.head = head._replace(weight=head.weight.to(device), bias=bias)

    def __call__(self, batch: Batch) -> TeacherOutput:
        output, lengths = self._read(batch.keys)
        if tuple(lengths) != batch.lengths:
            raise CacheError(
                f"the batch supervises {list(batch.lengths)} tokens, the teacher cache has {lengths} for its keys: "
                f"build the batch with gakd.data.collate"
            )
        return output

    def each(self, keys: Sequence[str]) -> list[TeacherOutput]:
        """One output a sequence."""
        return [self._read([key])[0] for key in keys]

    def _read(self, keys: Sequence[str]) -> tuple[TeacherOutput, list[int]]:
        # Pinned, so that the one copy to the device overlaps with the student's forward.
        hidden_NH, lengths = self.cache.rows(keys, pin_memory=self.device.type == "cuda")
        return TeacherOutput(hidden_NH.to(self.device, non_blocking=True), self.head), lengths


def load_teacher(
    config: ModelConfig, data: Data, dtype: torch.dtype, device: torch.device
) -> LocalTeacher | CachedTeacher:
    """The teacher on its device, in `dtype`; or the cache of it, in the dtype it was cached in.

    A cache is refused (CacheError, with the reason) where it is damaged, where it lacks an example of the data, and where
    it is not the configured teacher's: if that model is on this machine, its files must be those the cache was made
    from (same sizes and modification times are trusted, anything else is hashed); if not, its name must be the
    cached one. Without a name the cache's own counts.
    """
    if config.teacher_cache is not None:
        cache = TeacherCache(config.teacher_cache)
        _refuse_stale(cache, config.teacher)
        _refuse_missing(cache, data, config)
        return CachedTeacher(cache, device)
    return load_reader(config, dtype, device)


def load_reader(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> LocalTeacher:
    """A teacher that reads what a student writes; ModelError for a cached one, which has read its texts already."""
    if config.teacher_cache is not None:
        raise ModelError("the teacher reads what the student writes, a teacher cache cannot: leave out --teacher-cache")
    if config.teacher is None:
        raise ModelError("this recipe learns from a teacher: give --teacher, for example Qwen3-8B")
    model = load_model(config.teacher, dtype, trust_remote_code=config.trust_remote_code)
    return LocalTeacher(nn.Module.to(model, device))


def _refuse_stale(cache: TeacherCache, name: str | None) -> None:
    cached_name, made_from = cache.settings["teacher"], cache.manifest["teacher_files"]
    model = name or cached_name
    found = model_files(model, made_from)
    if not found:
        if name not in (None, cached_name):
            raise CacheError(
                f"teacher cache {cache.folder} was made from {cached_name}, this run's teacher is {name}, which is not on "
                f"this machine to compare: give --teacher {cached_name}, or a cache of {name}"
            )
        return
    for file in sorted(found.keys() | made_from.keys()):
        was, now = (_file_mark(files.get(file)) for files in (made_from, found))
        if was != now:
            raise CacheError(
                f"teacher cache {cache.folder} is stale: {file} in {local_folder(model)} is {now}, but was {was} when "
                f"{cached_name} was cached. Cache the teacher again into another folder, or name the one that was cached"
            )


def _file_mark(entry: dict[str, Any] | None) -> str:
    return "absent" if entry is None else f"{entry['bytes']:,} bytes with SHA-256 {entry['sha256'][:12]}"


def _refuse_missing(cache: TeacherCache, data: Data, config: ModelConfig) -> None:
    for split, name in (("train", "training"), ("valid", "validation"), ("test", "test")):
        examples = getattr(data, split)
        if missing := cache.missing([example.key for example in examples]):
            reasons = "; ".join(_differences(cache.settings, data, split, config))
            raise CacheError(
                f"{missing:,} of {len(examples):,} {name} examples are not in the teacher cache {cache.folder}: "
                f"{reasons or 'its settings are the same, so the data has changed since'}. Give the settings it was made "
                f"with, or cache this run's data into another folder with recipes/tools/cache_teacher.py"
            )


def _differences(made: dict[str, Any], data: Data, split: str, config: ModelConfig) -> list[str]:
    """Settings of a cache that may be why it lacks examples of a run."""
    found = []
    if split not in made["splits"]:
        found.append(f"it was made of the splits {', '.join(made['splits'])} alone")
    for name, now in asdict(data.config).items() if data.config is not None else ():
        if name in made and made[name] != now:
            found.append(f"it was made with {name} {made[name]}, this run has {now}")
    ours = tokenizer_fingerprint(load_tokenizer(config.student, config.trust_remote_code))
    if made["template"] == "chat" and made["tokenizer"]["chat_template"] != ours["chat_template"]:
        found.append(
            f"it was made with another chat template than that of {config.student} (the tool's --tokenizer sets it)"
        )
    return found
