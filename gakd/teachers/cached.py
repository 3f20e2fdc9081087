"""A teacher whose hidden states are on disk, and what makes its cache the wrong one for a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from gakd.data import Data
from gakd.data.encoded import keys_of
from gakd.models.config import ModelConfig
from gakd.models.fingerprints import model_files, text_digest, tokenizer_fingerprint
from gakd.models.loading import load_tokenizer
from gakd.models.names import local_folder
from gakd.teachers.cache import CacheError, TeacherCache
from gakd.types import Batch, TeacherOutput


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

    def mark(self) -> str:
        """A hash of the head and of all hidden states, as the cache's manifest has them."""
        files = {name: entry["sha256"] for name, entry in self.cache.manifest["files"].items()}
        return text_digest(json.dumps([self.cache.manifest["head"], files], sort_keys=True))

    def each(self, keys: Sequence[str]) -> list[TeacherOutput]:
        """One output a sequence."""
        return [self._read([key])[0] for key in keys]

    def _read(self, keys: Sequence[str]) -> tuple[TeacherOutput, list[int]]:
        # Pinned, so that the one copy to the device overlaps with the student's forward.
        hidden_NH, lengths = self.cache.rows(keys, pin_memory=self.device.type == "cuda")
        return TeacherOutput(hidden_NH.to(self.device, non_blocking=True), self.head), lengths


def refuse_stale(cache: TeacherCache, name: str | None) -> None:
    """CacheError where a cache was not made from the files of this teacher; without a name, from those it names itself."""
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


def refuse_missing(cache: TeacherCache, data: Data, config: ModelConfig) -> None:
    """CacheError where a cache lacks examples of the data, with the settings that may be why."""
    for split, name in (("train", "training"), ("valid", "validation"), ("test", "test")):
        examples = getattr(data, split)
        if missing := cache.missing(keys_of(examples)):
            reasons = "; ".join(_differences(cache.settings, data, split, config))
            raise CacheError(
                f"{missing:,} of {len(examples):,} {name} examples are not in the teacher cache {cache.folder}: "
                f"{reasons or 'its settings are the same, so the data has changed since'}. Give the settings it was made "
                f"with, or cache this run's data into another folder with `gakd cache`"
            )


def _differences(made: dict[str, Any], data: Data, split: str, config: ModelConfig) -> list[str]:
    """Settings of a cache that may be why it lacks examples of a run."""
    found = []
    if split not in made["splits"]:
        found.append(f"it was made of the splits {', '.join(made['splits'])} alone")
    for name, now in asdict(data.config).items() if data.config is not None else ():
        if name in made and made[name] != now and (name, now) != ("date", None):
            found.append(f"it was made with {name} {made[name]}, this run has {now}")
    ours = tokenizer_fingerprint(load_tokenizer(config.student, config.trust_remote_code))
    if made["template"] == "chat" and made["tokenizer"]["chat_template"] != ours["chat_template"]:
        found.append(
            f"it was made with another chat template than that of {config.student} (the tool's --tokenizer sets it)"
        )
    return found
