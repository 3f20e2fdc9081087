"""Builds and loads `guard.cpp`, once for each torch; imports no torch, which must not be there yet."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from gakd.files import cache_dir

SOURCE = Path(__file__).with_name("guard.cpp")
COMPILERS = ("c++", "g++", "clang++")


def problem() -> str | None:
    """Why there can be no fake device here; None where there can."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return "torch is not installed"
    if next((Path(found.origin).parent / "lib").glob("*torch_cuda*"), None) is not None:
        return "this torch was built with CUDA, whose device cannot be replaced: the fake one is for a torch without"
    if sys.platform != "linux":
        return f"the fake device is built for Linux, this is {sys.platform}"
    if _compiler() is None and not _library().exists():
        return f"no C++ compiler ({', '.join(COMPILERS)}) to build the fake device with"
    return None


def load() -> None:
    """Make torch believe in one CUDA device, for the rest of the process; RuntimeError where that cannot be."""
    if (why := problem()) is not None:
        raise RuntimeError(f"no fake CUDA device: {why}")
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already, and has asked for CUDA: load the fake device before it")
    library = _library()
    if not library.exists():
        _build(library)
    ctypes.CDLL(str(library))


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def _library() -> Path:
    mark = hashlib.sha256(SOURCE.read_bytes() + metadata.version("torch").encode()).hexdigest()[:16]
    return cache_dir() / "fake_cuda" / f"guard-{mark}.so"


def _build(library: Path) -> None:
    found = importlib.util.find_spec("torch")
    compiler = _compiler()
    assert found is not None
    assert found.origin is not None
    assert compiler is not None
    torch = Path(found.origin).parent
    library.parent.mkdir(parents=True, exist_ok=True)
    scratch = library.with_name(f"{library.name}.{os.getpid()}")  # several processes of a test run may build at once
    made = subprocess.run(
        [compiler, "-O1", "-std=c++20", "-shared", "-fPIC", f"-I{torch}/include", str(SOURCE), "-o", str(scratch),
         f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        lines = made.stderr.strip().splitlines()
        raise RuntimeError(f"the fake CUDA device does not compile with this torch: {' '.join(lines[:3])}")
    os.replace(scratch, library)
