"""Writes a teacher cache (`gakd.teachers.cache`) shard by shard, and goes on after any interruption with the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gakd.files import file_digest, follow_umask, hold, sync, write_sealed
from gakd.models.disk import room_for
from gakd.teachers.cache import FORMAT, HEAD, MANIFEST, CacheError, read_manifest, size_damage
from gakd.types import Head

_AGAIN = "the files before it are whole: make room, then run the same command again"
# Names: what they stood for is compared by hash, so a moved teacher or data file goes on.
_FREE_TO_CHANGE = {"teacher", "dataset", "valid_dataset", "test_dataset"}


class CacheWriter:
    """A cache in the making, or a finished one.

    Every file is written under another name, synced and renamed, and then listed in the manifest, so that the manifest
    lists whole files at any moment. Opening hashes the listed files; those that are missing or damaged are no longer
    `finished`, and are written again. Raises CacheError, naming what differs, where the folder was begun with other
    settings, where it holds something else, and where another process writes it.
    """

    def __init__(
        self, folder: str | Path, settings: Mapping[str, Any], teacher_files: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.folder = Path(folder)
        self.damaged: list[str] = []
        """Listed files that were not as they were written."""
        wanted = json.loads(json.dumps(settings, default=str))
        wanted["weights"] = {name: entry["sha256"] for name, entry in teacher_files.items()}
        self._lock = hold(self.folder / ".lock")  # open as long as the writer is
        if self._lock is None:
            raise CacheError(f"another process writes {folder}: wait for it or end it, or give another folder")
        if (self.folder / MANIFEST).exists():
            self.manifest = read_manifest(self.folder)
            self._refuse_other(wanted)
            self._verify()
            return
        # What a kill within the first save has left is named `.NAME.tmp`.
        if any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise CacheError(f"{folder} holds files but no {MANIFEST}: give an empty or a new folder")
        files = {name: dict(entry) for name, entry in teacher_files.items()}
        self.manifest = {
            "format": FORMAT, "complete": False, "settings": wanted, "teacher_files": files, "head": {}, "width": 0,
            "sequences": 0, "rows": 0, "files": {},
        }  # fmt: skip
        self._save()

    @property
    def complete(self) -> bool:
        return self.manifest["complete"]

    def finished(self, name: str) -> bool:
        return name in self.manifest["files"]

    def write_head(self, head: Head) -> None:
        self.manifest["head"] = {"scale": head.scale, "softcap": head.softcap, "vocabulary": head.vocab_size}
        self.manifest["width"] = head.weight.shape[1]
        tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
        if not self.finished(HEAD):
            self._write(HEAD, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})

    def write_shard(self, name: str, keys: Sequence[str], lengths: Sequence[int], hidden_NH: Tensor) -> None:
        """The hidden states of some sequences, one after the other."""
        packed = torch.frombuffer(bytearray.fromhex("".join(keys)), dtype=torch.uint8).view(len(keys), -1)
        self._write(name, {"hidden": hidden_NH, "keys": packed, "lengths": torch.tensor(lengths)})

    def finish(self, sequences: int, rows: int) -> None:
        """Every file is there."""
        # A file that was made again was listed last; shards stand in their order.
        files = {name: self.manifest["files"][name] for name in sorted(self.manifest["files"])}
        self.manifest |= {"complete": True, "sequences": sequences, "rows": rows, "files": files}
        self._save()

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        path = self.folder / name

        def save(scratch: Path) -> None:
            save_file(tensors, scratch)
            follow_umask(scratch)  # safetensors writes for its owner alone

        digest = _replace(path, save)
        self.manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": digest}
        self._save()

    def _save(self) -> None:
        with room_for(self.folder / MANIFEST, _AGAIN):
            write_sealed(self.folder / MANIFEST, self.manifest)

    def _refuse_other(self, wanted: dict[str, Any]) -> None:
        before, now = _flat(self.manifest["settings"]), _flat(wanted)
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if set(changed) - _FREE_TO_CHANGE:
            differences = "; ".join(
                f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in changed
            )
            raise CacheError(
                f"{self.folder} was begun with other settings: {differences}. Use the same, or another folder"
            )

    def _verify(self) -> None:
        files = self.manifest["files"]
        for name, entry in list(files.items()):
            path = self.folder / name
            if size_damage(path, entry) or file_digest(path) != entry["sha256"]:
                self.damaged.append(name)
                del files[name]
        if self.damaged:
            self.manifest["complete"] = False
            self._save()


def _replace(path: Path, save: Callable[[Path], Any]) -> str:
    """Whole or not at all, whenever the process or the machine stops; returns the hash."""
    scratch = path.with_name(f".{path.name}.tmp")
    with room_for(path, _AGAIN):
        save(scratch)
        sync(scratch)
        digest = file_digest(scratch)
        os.replace(scratch, path)
        sync(path.parent)
    return digest


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text  # a hash
