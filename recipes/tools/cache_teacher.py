"""A teacher's last hidden states of a dataset, once, for runs that then need no teacher: --teacher-cache OUTPUT.

python recipes/tools/cache_teacher.py --teacher Qwen3-8B --dataset dolly --output caches/qwen3-8b-dolly

Killed at any moment, the same command goes on after the last whole shard and writes the same bytes; on a finished cache
it checks every byte, makes damaged files again, and leaves the rest alone. See docs/teacher-cache.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gakd.cli import DataConfig, Split, start_tool

if TYPE_CHECKING:
    from gakd.teachers import CacheWriter


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
    from gakd.teachers.cache_filling import batched, fill, teacher_files

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
    writer = CacheWriter(
        config.output, settings, teacher_files(config.teacher, config.output, config.trust_remote_code)
    )
    for name in writer.damaged:
        print(f"{config.output}: {name} is not as it was written, it is made again", flush=True)
    if writer.complete:
        print(f"{config.output} is complete, every byte as it was written")
    else:
        model = load_model(config.teacher, DTYPES[dtype], None, config.trust_remote_code, device)
        fill(writer, LocalTeacher(model), batches, config.shard_megabytes, padding_id(tokenizer))
    report(writer, config)


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
