"""A teacher goes through a dataset, and its hidden states into a cache: which batches and shards, and what is still missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from gakd.data import Example, collate
from gakd.logging import ProgressView
from gakd.models import ModelError, load_model, model_files
from gakd.models.names import local_folder
from gakd.teachers.cache import MANIFEST, read_manifest
from gakd.teachers.cache_writer import CacheWriter
from gakd.teachers.local import LocalTeacher


def teacher_files(teacher: str, cache: Path, trust_remote_code: bool = False) -> dict[str, dict[str, Any]]:
    """The teacher's files, with their hashes; fetched where only the tokenizer has been on this machine.

    Hashes that `cache` has of files that have not changed since are taken from there. ModelError without whole weights.
    """
    known = read_manifest(cache)["teacher_files"] if (cache / MANIFEST).exists() else {}
    files = model_files(teacher, known)
    if not files:
        load_model(teacher, trust_remote_code=trust_remote_code)
        files = model_files(teacher, known)
    folder = local_folder(teacher)
    if folder is None or not files or (folder / "adapter_config.json").exists():
        raise ModelError(f"{teacher} has no whole weights: merge its adapters and give the merged folder")
    return files


def fill(
    writer: CacheWriter,
    teacher: LocalTeacher,
    batches: Sequence[list[Example]],
    shard_megabytes: int,
    pad_token_id: int,
) -> None:
    """Write everything that the cache still lacks, in shards of about so many megabytes of hidden states; shows a bar."""
    writer.write_head(teacher.head)
    weight = teacher.head.weight
    rows = (shard_megabytes << 20) // (weight.shape[1] * weight.element_size())
    shards = {f"shard-{index:05d}.safetensors": shard for index, shard in enumerate(sharded(batches, rows))}
    missing = {name: shard for name, shard in shards.items() if not writer.finished(name)}
    done = len(batches) - sum(map(len, missing.values()))
    view = ProgressView(len(batches), done, shown=True)
    for name, shard in missing.items():
        hidden = []
        for examples in shard:
            batch = collate(examples, pad_token_id)
            hidden.append(teacher(batch.to(weight.device)).hidden_NH.cpu())
            view.update(done := done + 1, batch.tokens, {})
        of_shard = [example for examples in shard for example in examples]
        lengths = [example.supervised for example in of_shard]
        writer.write_shard(name, [example.key for example in of_shard], lengths, torch.cat(hidden))
    view.close()
    writer.finish(sum(map(len, batches)), sum(example.supervised for batch in batches for example in batch))


def batched(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """Batches of like lengths. The longest comes first, so that what does not fit in memory fails at once; the others in
    an order of chance that is the same every time, so that the time left is told right."""
    ordered = sorted(examples, key=lambda example: (-example.length, example.key))
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return [*batches[:1], *sorted(batches[1:], key=lambda batch: batch[0].key)]


def sharded(batches: Sequence[list[Example]], rows: int) -> Iterator[list[list[Example]]]:
    """Whole batches that reach so many rows together."""
    shard: list[list[Example]] = []
    held = 0
    for batch in batches:
        shard.append(batch)
        held += sum(example.supervised for example in batch)
        if held >= rows:
            yield shard
            shard, held = [], 0
    if shard:
        yield shard
