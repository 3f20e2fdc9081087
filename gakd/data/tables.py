"""Data files as memory-mapped tables, each written once into the cache under what the file is.

A file of lines, JSON or CSV becomes a table of JSON lines; Parquet keeps its own columns.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gakd.data.lines import Chunk, opened, record_chunks
from gakd.data.rows import DataError
from gakd.files import cache_dir, file_digest

FORMAT = 1
_LINES = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "tsv"}
_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_COMPRESSED = (".gz", ".zst")
SUFFIXES = (*_LINES, *_TABLES, *(f"{inner}{outer}" for inner in _LINES for outer in _COMPRESSED))
_SMALL = (
    1 << 20
)  # bytes of a file that is known by its content: a test may write another one in the same tick of the clock
_CHUNK = 16 << 20  # bytes of Parquet's rows that are in memory at a time


class Part(NamedTuple):
    """Rows as they are stored."""

    table: Any  # datasets.Dataset
    files: tuple[tuple[str, int], ...]  # (name, index of its first row), ascending
    lines: bool  # JSON lines in the column "text", else columns of their own
    fingerprint: str


def kind_of(path: Path) -> str:
    """lines, json, csv, tsv, parquet or arrow; a name that says none of them is of lines."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        if len(suffixes) > 1 and suffixes[-2] in _TABLES:
            raise DataError(f"{path}: a {suffixes[-2]} file inside {suffixes[-1]} cannot be mapped; unpack it first")
        suffixes.pop()
    return (_LINES | _TABLES).get(suffixes[-1] if suffixes else "", "lines")


def table_of(paths: Sequence[Path]) -> Part:
    """Files of one kind, one behind the other."""
    kinds = {kind_of(path): path for path in paths}
    if len(kinds) > 1:
        names = ", ".join(str(path) for path in kinds.values())
        raise DataError(f"{names} are files of different kinds, {', '.join(kinds)}: give files of one kind")
    (kind,) = kinds
    import datasets

    tables, files, rows = [], [], 0
    for path in paths:
        with refusing(str(path)):
            table = _mapped(path) if kind == "arrow" else datasets.Dataset.from_file(str(_stored(path, kind)))
        tables.append(table)
        files.append((str(path), rows))
        rows += len(table)
    with refusing(str(paths[0].parent)):
        table = datasets.concatenate_datasets(tables) if len(tables) > 1 else tables[0]
    return Part(table, tuple(files), kind in _LINES.values(), digest([[str(p), _identity(p)] for p in paths]))


def first_rows(part: Part, count: int | None) -> Part:
    """The first `count` rows, all where it is None."""
    if count is None or count >= len(part.table):
        return part
    return part._replace(table=part.table.select(range(count)), fingerprint=digest([part.fingerprint, count]))


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps([FORMAT, value]).encode("utf-8", "surrogatepass")).hexdigest()[:32]


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Errors of readers, which are of dozens of kinds, as one line; what the system says of a file stays an OSError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"cannot read {name}: {reason}; give a file that can be read") from error


def _identity(path: Path) -> list[Any]:
    about = path.stat()
    return [about.st_size, file_digest(path) if about.st_size <= _SMALL else about.st_mtime_ns]


def _stored(path: Path, kind: str) -> Path:
    """The Arrow file of a data file, from the cache where the same file has been read before."""
    import pyarrow as pa

    folder = cache_dir() / "tables"
    folder.mkdir(exist_ok=True)
    own = digest([str(path.resolve()), kind])
    target = folder / f"{own}-{digest(_identity(path))}.arrow"
    if target.exists():
        return target
    handle, scratch = tempfile.mkstemp(".tmp", f"{own}-", folder)
    try:
        batches = _columns(path) if kind in _TABLES.values() else map(_batch, record_chunks(path, kind))
        first = next(batches)
        with os.fdopen(handle, "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
        for old in folder.glob(f"{own}-*.arrow"):  # of the file as it was before
            old.unlink(missing_ok=True)
        os.replace(scratch, target)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return target


def _batch(chunk: Chunk) -> Any:
    import pyarrow as pa

    return pa.record_batch(
        [pa.array(chunk.lines, pa.binary()), pa.array(chunk.problems or [None] * len(chunk.lines), pa.string())],
        ["text", "problem"],
    )


def _columns(path: Path) -> Iterator[Any]:
    """A Parquet file's rows, a few at a time: one may be of megabytes. An Arrow file that cannot be mapped likewise."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".arrow":
        with pa.ipc.open_file(str(path)) as reader:
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        return
    with pq.ParquetFile(str(path)) as file:
        about = file.metadata
        size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
        yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
        yield from file.iter_batches(batch_size=min(1000, max(1, _CHUNK * about.num_rows // max(size, 1))))


def _mapped(path: Path) -> Any:
    import datasets
    import pyarrow as pa

    with opened(path):  # says in the system's words where it cannot be read
        pass
    try:
        return datasets.Dataset.from_file(str(path))
    except pa.ArrowInvalid:  # not the streaming format that `datasets` maps
        return datasets.Dataset.from_file(str(_stored(path, "arrow")))
