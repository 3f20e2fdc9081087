"""A teacher's last hidden states on disk, read row by row: the format, and its reader.

A folder holds `head.safetensors` (weight, bias), shards `shard-00000.safetensors`, ... and `manifest.json`. A shard has
`hidden [rows, H]`, the supervised rows of its sequences one after the other, and for each sequence its key (`keys [n, 16]`
uint8, `gakd.data.Example.key`) and its number of rows (`lengths [n]` int64). The manifest has the settings that made the
cache, the teacher's files, scale and soft-cap of its head, and size and hash of each file. `cache_writer.py` writes it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from gakd.errors import InputError
from gakd.files import file_digest, read_sealed
from gakd.types import Head

FORMAT = 1
MANIFEST, HEAD = "manifest.json", "head.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Rows are copied as integers of their width: numpy has no bfloat16.
_STORED = {"F32": np.int32, "BF16": np.int16, "U8": np.uint8, "I64": np.int64}
_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_KEY = "S16"
# Of a manifest from before it had a digest.
_UNSEALED = frozenset(
    {"format", "complete", "settings", "teacher_files", "head", "width", "sequences", "rows", "files"}
)  # fmt: skip


class CacheError(InputError):
    """A teacher cache that cannot be used as asked; one line: what was got, what was expected, what to do."""


class _Shard(NamedTuple):
    hidden_NH: np.ndarray
    keys: np.ndarray
    lengths: np.ndarray


class TeacherCache:
    """A finished cache, opened for reading.

    Shards are memory-mapped: a read copies the rows asked for, so a step reads its supervised tokens times H times the
    width of the dtype from the disk or the page cache, and the process holds an index of 40 bytes a sequence. Opening
    checks every size and header; a file is hashed when it is first read from. Raises CacheError with the reason where
    the folder holds no cache, an unfinished or a damaged one, when that shows.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if not self.manifest["complete"]:
            raise CacheError(
                f"teacher cache {folder} is not finished: run the `gakd cache` command that began it "
                f"again, it goes on where it stopped"
            )
        self.dtype = DTYPES[self.manifest["settings"]["dtype"]]
        self.width: int = self.manifest["width"]
        for name, entry in self.manifest["files"].items():
            if reason := size_damage(self.folder / name, entry):
                raise self._damaged(name, reason)
        self._names = [name for name in self.manifest["files"] if name != HEAD]
        self._hashed: set[str] = set()
        shards = [self._open(name) for name in self._names]
        self._hidden = [shard.hidden_NH for shard in shards]
        keys = np.concatenate([shard.keys for shard in shards])
        order = np.argsort(keys)
        self._keys = keys[order]
        self._lengths = np.concatenate([shard.lengths for shard in shards])[order]
        self._starts = np.concatenate([np.cumsum(shard.lengths) - shard.lengths for shard in shards])[order]
        self._shards = np.repeat(np.arange(len(shards)), [len(shard.keys) for shard in shards])[order]

    @property
    def settings(self) -> dict[str, Any]:
        """What made the cache."""
        return self.manifest["settings"]

    def head(self) -> Head:
        """The teacher's output head, in its own dtype, on the CPU."""
        self._check(HEAD)
        tensors = load_file(self.folder / HEAD)
        made = self.manifest["head"]
        return Head(tensors["weight"], tensors.get("bias"), made["scale"], made["softcap"])

    def missing(self, keys: Sequence[str]) -> int:
        """How many of the sequences are not in the cache; where any is, first that the cache is as it was written."""
        missing = int((~self._find(keys)[1]).sum())
        for name in self._names if missing else ():
            self._check(name)
        return missing

    def rows(self, keys: Sequence[str], pin_memory: bool = False) -> tuple[Tensor, list[int]]:
        """Hidden states `[N, H]` of the sequences, one after the other, and how many rows each has; on the CPU."""
        places, found = self._find(keys)
        if not found.all():
            raise CacheError(
                f"{int((~found).sum())} of {len(keys)} sequences are not in the teacher cache {self.folder}: cache "
                f"their text with `gakd cache`; text written during training needs a live teacher"
            )
        for shard in np.unique(self._shards[places]):
            self._check(self._names[shard])
        lengths = self._lengths[places].tolist()
        hidden_NH = torch.empty(sum(lengths), self.width, dtype=self.dtype, pin_memory=pin_memory)
        target, row = hidden_NH.view(_INTEGERS[self.dtype]).numpy(), 0
        for shard, start, length in zip(self._shards[places], self._starts[places], lengths, strict=True):
            target[row : row + length] = self._hidden[shard][start : start + length]
            row += length
        return hidden_NH, lengths

    def _find(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        wanted = np.array([bytes.fromhex(key) for key in keys], dtype=_KEY)
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return places, self._keys[places] == wanted

    def _check(self, name: str) -> None:
        """CacheError where a file is not as it was written; hashes it once."""
        if name in self._hashed:
            return
        try:
            whole = file_digest(self.folder / name) == self.manifest["files"][name]["sha256"]
        except OSError as error:
            raise self._damaged(name, str(error.strerror)) from error
        if not whole:
            raise self._damaged(name, "it is not as it was written")
        self._hashed.add(name)

    def _open(self, name: str) -> _Shard:
        try:
            tensors = _mapped(self.folder / name)
            hidden_NH, lengths = tensors["hidden"], np.array(tensors["lengths"])
            keys = np.array(tensors["keys"]).reshape(-1).view(_KEY)
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise self._damaged(name, f"its header cannot be read ({error})") from error
        stored = _STORED["BF16" if self.dtype == torch.bfloat16 else "F32"]
        if hidden_NH.dtype != stored or hidden_NH.shape != (lengths.sum(), self.width) or len(keys) != len(lengths):
            raise self._damaged(name, f"it holds {hidden_NH.shape} rows of {len(keys)} sequences")
        return _Shard(hidden_NH, keys, lengths)

    def _damaged(self, name: str, reason: str) -> CacheError:
        return CacheError(
            f"teacher cache {self.folder} is damaged, {name}: {reason}. Run the `gakd cache` command "
            f"that made it again: it makes damaged files again"
        )


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a cache, finished or not; CacheError with the reason where there is none of this format."""
    path = Path(folder) / MANIFEST
    try:
        manifest = read_sealed(path, _UNSEALED)
        found = manifest["format"]
    except FileNotFoundError:
        raise CacheError(f"no teacher cache in {folder}, it has no {MANIFEST}: make one with `gakd cache`") from None
    except (OSError, ValueError, KeyError) as error:
        raise CacheError(f"{path} cannot be read ({error}): delete the folder and make the cache again") from error
    if found != FORMAT:
        raise CacheError(f"{path} has format {found}, this gakd reads format {FORMAT}: make the cache again")
    return manifest


def size_damage(path: Path, entry: dict[str, Any]) -> str | None:
    """What is wrong with a file's presence or size, if anything."""
    if not path.exists():
        return "it is missing"
    size = path.stat().st_size
    return None if size == entry["bytes"] else f"it has {size:,} bytes, the manifest says {entry['bytes']:,}"


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as views of one read-only memory map."""
    content = np.memmap(path, np.uint8, "r")
    (size,) = struct.unpack("<Q", content[:8].tobytes())
    header = json.loads(content[8 : 8 + size].tobytes())
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = content[begin:end].view(_STORED[entry["dtype"]]).reshape(entry["shape"])
    return tensors
