"""What makes a written file trustworthy (whole, on the disk, its hash, one writer at a time), and where kept files are."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Set
from io import TextIOWrapper
from pathlib import Path
from typing import Any

# What is no path: a name, a hub id, one of its configurations.
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?")
_DIGEST = "digest"


def write_whole(path: Path, content: str | bytes) -> None:
    """The whole content, or the file that was there before, whenever the process ends or the machine does; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(scratch)
    os.replace(scratch, path)
    sync(path.parent)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """`write_whole` of a value; paths and the like become their text."""
    write_whole(path, json.dumps(value, indent=indent, ensure_ascii=False, default=str))


def read_json(path: Path) -> dict[str, Any] | None:
    """What a file holds, or None where there is none and where it holds no object that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def last_name(text: str) -> str:
    """A path by its last name, for what others read; a name or a hub id as it is."""
    if "/" not in text or (_NAME.fullmatch(text) and not os.path.exists(text)):
        return text
    return Path(text).name or text


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """`write_json` of an object, with a digest over all of it: `read_sealed` notices any damage."""
    value = json.loads(json.dumps(value, default=str))
    write_json(path, value | {_DIGEST: _digest_of(value)}, indent=1)


def read_sealed(path: Path, unsealed: Set[str] = frozenset()) -> dict[str, Any]:
    """What `write_sealed` wrote. ValueError where it is anything else, OSError where it cannot be read.

    A file of exactly the names `unsealed`, from before there were digests, is taken as it is.
    """
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no object")
    if unsealed and value.keys() == unsealed:
        return value
    digest = value.pop(_DIGEST, None)
    if digest != _digest_of(value):
        raise ValueError("it is not as it was written")
    return value


def sealed_or_none(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, or None where there is none of it as it was written."""
    try:
        return read_sealed(path)
    except (OSError, ValueError):
        return None


def _digest_of(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hold(path: Path) -> TextIOWrapper | None:
    """A file that keeps other processes out as long as it is open, to the end of the process at most; None where one is in.

    Where the file system knows no locks, nobody is kept out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            lock.close()
            return None
    return lock


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def follow_umask(folder: Path) -> None:
    """Gives a folder and all in it the permissions that the umask leaves; libraries write some files for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def cache_dir() -> Path:
    """`$GAKD_CACHE`, or `gakd` in `$XDG_CACHE_HOME`, or `~/.cache/gakd`; created on first use."""
    root = os.environ.get("GAKD_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gakd"
    base.mkdir(parents=True, exist_ok=True)
    return base
