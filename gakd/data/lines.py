"""Text files as JSON lines: JSON Lines as they are, JSON arrays and CSV with one line a record."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from gakd.data.rows import DataError

_CHUNK = 8 << 20  # bytes of lines that are in memory at a time, or one line where it is longer
_ROWS = {
    "instruction",
    "prompt",
    "messages",
    "conversations",
    "conversation",
}  # an object with one of them is a row itself


class Chunk(NamedTuple):
    lines: list[bytes]
    problems: list[str | None] | None = None  # of each line, why it is no record; none of a chunk without any


def record_chunks(path: Path, kind: str) -> Iterator[Chunk]:
    """The lines of a file of a kind (`tables.kind_of`); the first chunk may be empty.

    DataError where the file as a whole cannot be read; a line of its own that is no JSON is left for who reads it.
    """
    yield Chunk([])
    if kind in ("csv", "tsv"):
        yield from _csv_chunks(path, "," if kind == "csv" else "\t")
    elif kind == "json" and (records := _whole(path)) is not None:
        yield from _grouped((json.dumps(record).encode(), None) for record in records)
    else:
        with opened(path) as file:
            while lines := file.readlines(_CHUNK):
                yield Chunk([line.rstrip(b"\n") for line in lines])


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked where its name ends with .gz or .zst."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".gz":
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file))
        elif path.suffix.lower() == ".zst":
            import pyarrow as pa

            packed = pa.CompressedInputStream(pa.PythonFile(file), "zstd")
            yield cast(BinaryIO, io.BufferedReader(cast(Any, packed)))
        else:
            yield file


def _whole(path: Path) -> list[Any] | None:
    """The records of a .json file that is one value: an array, or an object with one list; None where it is JSON lines."""
    with opened(path) as file:
        first = next((line for line in file if line.strip(b"\xef\xbb\xbf \t\r\n")), b"").lstrip(b"\xef\xbb\xbf \t\r\n")
        if first[:1] not in (b"[", b"{"):
            return None
        array = first[:1] == b"["
        if not array and (_listed(_parsed(first)) is None) and (_parsed(first) is not None or not _spread(first)):
            return None  # a row by itself
        rest = file.read()
    try:
        value = json.loads((first + rest).decode("utf-8"))
    except UnicodeDecodeError as error:
        if not array:
            return None
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        if not array:
            return None
        raise DataError(
            f"{path}: not JSON ({error}); expected an array of objects, or one JSON object a line"
        ) from None
    return value if array else [value] if _listed(value) is None else _listed(value)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _spread(line: bytes) -> bool:
    """Whether a first line that is no JSON may begin an object over several lines."""
    return line.rstrip().endswith((b"{", b"[", b",", b":"))


def _listed(value: Any) -> list[Any] | None:
    """The list of an object that holds one, such as {"data": [...]}."""
    lists = [entry for entry in value.values() if isinstance(entry, list)] if isinstance(value, dict) else []
    return lists[0] if len(lists) == 1 and not _ROWS & value.keys() else None


def _csv_chunks(path: Path, delimiter: str) -> Iterator[Chunk]:
    """All cells as text: a number may be a name, and NA a word."""
    csv.field_size_limit(2**31 - 1)  # of the process; a cell may well be longer than the 128 kB it begins with
    with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise DataError(
                    f"{path}: a column's name stands twice in the header, {', '.join(header)[:200]!r}: rename one"
                )
            yield from _grouped(_csv_line(cells, header) for cells in reader)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
        except csv.Error as error:
            kind = "comma" if delimiter == "," else "tab"
            raise DataError(
                f"{path}:{reader.line_num}: not {kind}-separated text ({error}); write a quote inside a cell twice"
            ) from None


def _csv_line(cells: list[str], header: list[str]) -> tuple[bytes, str | None]:
    if cells and len(cells) != len(header):
        return (
            b"-",
            f"{len(cells)} cells in a row, but {len(header)} in the header; quote cells that hold the separator",
        )
    return json.dumps(dict(zip(header, cells, strict=True))).encode() if cells else b"", None


def _grouped(lines: Iterable[tuple[bytes, str | None]]) -> Iterator[Chunk]:
    group: list[tuple[bytes, str | None]] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line[0]) + 1
        if size > _CHUNK:
            yield Chunk([text for text, _ in group], [problem for _, problem in group])
            group, size = [], 0
    yield Chunk([text for text, _ in group], [problem for _, problem in group])
