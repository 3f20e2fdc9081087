"""A teacher's last hidden states of a dataset, once, for runs that then need no teacher: --teacher-cache OUTPUT.

python recipes/tools/cache_teacher.py --teacher Qwen3-8B --dataset dolly --output caches/qwen3-8b-dolly

Killed at any moment, the same command goes on after the last whole shard and writes the same bytes; on a finished cache
it checks every byte, makes damaged files again, and leaves the rest alone. See docs/teacher-cache.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gakd.cli import DataConfig, Split, start_tool

if TYPE_CHECKING:
    from gakd.data import Example
    from gakd.teachers import CacheWriter, LocalTeacher


@dataclass
class Config:
    teacher: str
    """The model that is cached: a folder, a hub id or a name such as Qwen3-8B; LoRA weights merged."""
    output: Path
    """Folder of the cache; --teacher-cache of a recipe."""
    splits: tuple[Split, ...] = ("train", "valid", "test")
    """Splits that are cached; a recipe needs all three."""
    tokenizer: str | None = None
    """Whose tokenizer and chat template set the text, if not the teacher's: the student's, where its template differs."""
    batch_size: int = 16
    """Sequences of like length per forward: memory and speed."""
    shard_megabytes: int = 128
    """Hidden states per file, about; what an interruption costs at most."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The teacher's arithmetic and what is stored; auto as recipes run teachers: bfloat16 on a GPU, else float32."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model's files. It can do anything on this machine: read it first."""
    data: DataConfig = field(default_factory=DataConfig)


def main(config: Config) -> None:  # it imports what takes seconds, once the flags are read
    import torch

    from gakd.data import fixed_date, load_split
    from gakd.models import check_tokenizers, load_model, load_tokenizer, tokenizer_fingerprint
    from gakd.models.fingerprints import text_digest
    from gakd.samplers import padding_id
    from gakd.teachers import CacheWriter, LocalTeacher
    from gakd.teachers.cache import DTYPES, MANIFEST
    from gakd.teachers.cache_writer import batched

    config.data.date = fixed_date(config.data.date, (config.output / MANIFEST, ("settings", "date")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    tokenizer = load_tokenizer(config.tokenizer or config.teacher, config.trust_remote_code)
    if config.tokenizer is not None:
        own = load_tokenizer(config.teacher, config.trust_remote_code)
        check_tokenizers(tokenizer, own, (config.tokenizer, config.teacher))
    splits = {split: load_split(config.data, tokenizer, split) for split in config.splits}
    # A sequence that comes twice is read once, whatever split it is in.
    examples = list({example.key: example for split in splits.values() for example in split}.values())
    batches = batched(examples, config.batch_size)
    settings = asdict(config.data) | {
        "teacher": config.teacher, "tokenizer": tokenizer_fingerprint(tokenizer), "dtype": dtype, "device": device.type,
        "batch_size": config.batch_size, "shard_megabytes": config.shard_megabytes,
        "splits": {split: len(own) for split, own in splits.items()},
        "data": text_digest(" ".join(sorted(example.key for example in examples))),
    }  # fmt: skip
    writer = CacheWriter(config.output, settings, teacher_files(config))
    for name in writer.damaged:
        print(f"{config.output}: {name} is not as it was written, it is made again", flush=True)
    if writer.complete:
        print(f"{config.output} is complete, every byte as it was written")
    else:
        model = load_model(config.teacher, DTYPES[dtype], None, config.trust_remote_code, device)
        fill(writer, LocalTeacher(model), batches, config, padding_id(tokenizer))
    report(writer, config)


def teacher_files(config: Config) -> dict[str, dict[str, Any]]:
    """The teacher's files, with their hashes; fetched where only the tokenizer has been on this machine."""
    from gakd.models import ModelError, load_model, model_files
    from gakd.models.names import local_folder
    from gakd.teachers.cache import MANIFEST, read_manifest

    known = read_manifest(config.output)["teacher_files"] if (config.output / MANIFEST).exists() else {}
    files = model_files(config.teacher, known)
    if not files:
        load_model(config.teacher, trust_remote_code=config.trust_remote_code)
        files = model_files(config.teacher, known)
    folder = local_folder(config.teacher)
    if folder is None or not files or (folder / "adapter_config.json").exists():
        raise ModelError(f"{config.teacher} has no whole weights: merge its adapters and give the merged folder")
    return files


def fill(
    writer: CacheWriter, teacher: LocalTeacher, batches: Sequence[list[Example]], config: Config, pad_token_id: int
) -> None:
    """Everything that the cache still lacks."""
    import torch

    from gakd.data import collate
    from gakd.logging import ProgressView
    from gakd.teachers.cache_writer import sharded

    writer.write_head(teacher.head)
    weight = teacher.head.weight
    rows = (config.shard_megabytes << 20) // (weight.shape[1] * weight.element_size())
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


def report(writer: CacheWriter, config: Config) -> None:
    from gakd.teachers.cache import DTYPES

    manifest = writer.manifest
    row = manifest["width"] * DTYPES[manifest["settings"]["dtype"]].itemsize
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    print(
        f"{config.output}: {manifest['sequences']:,} sequences, {manifest['rows']:,} supervised tokens, {size / 1e9:.2f} GB\n"
        f"{config.teacher}: {row:,} bytes per token, exact; top-k schemes 114 to 300, truncated; "
        f"full bfloat16 logits {2 * manifest['head']['vocabulary']:,}"
    )


if __name__ == "__main__":
    start_tool(main, Config, __doc__)
