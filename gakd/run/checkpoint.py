"""Checkpoints: written atomically, verified when read, enough to resume bit for bit.

A checkpoint is a folder `step-N` that appears whole or not at all: it is written under another name, every file is synced,
and the folder is renamed. Its manifest names the size and hash of each file, and has a digest of its own. Weights are
safetensors, the rest is read with `weights_only`; nothing of unknown origin is ever unpickled. Where weights are sharded, each
rank writes its part. Only trainable weights are kept: frozen ones are reloaded from where they came from.
"""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gakd.errors import InputError, RunError
from gakd.files import file_digest, read_sealed, sync, write_sealed
from gakd.models.sharding import load_own_state, own_part, own_state

MANIFEST = "manifest.json"
_UNSEALED = frozenset({"step", "world_size", "score", "files"})  # of a manifest from before it had a digest


class Stateful(Protocol):
    """What has a state of its own on each rank, in types that `torch.load(weights_only=True)` reads."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def save(
    fabric: Fabric, folder: Path, step: int, modules: dict[str, nn.Module], optimizers: dict[str, Optimizer],
    states: dict[str, Stateful], keep: int, score: float | None = None, random_state: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write `folder/step-N`; keep it, the newest `keep` and the one of the highest score. Every rank calls it.

    `random_state` replaces the present one (`rng_state`). Raises RunError on every rank where one cannot write, with
    the checkpoints before as they were.
    """
    final, scratch = folder / f"step-{step}", folder / f"step-{step}.tmp"

    def begin() -> None:
        for left in [*folder.glob("step-*.tmp"), *folder.glob("step-*.old")]:  # by a run that was killed
            shutil.rmtree(left)
        scratch.mkdir(parents=True)

    def write() -> None:
        sharded = {name for name, module in modules.items() if _sharded(module)}
        torch.save(random_state or rng_state(), scratch / f"rng-{fabric.global_rank}.pt")
        for name, thing in states.items():
            torch.save(thing.state_dict(), scratch / f"{name}-{fabric.global_rank}.pt")
        for name, module in modules.items():
            if name in sharded or fabric.is_global_zero:
                save_file(_trainable(module), scratch / f"{_part(name, name in sharded, fabric)}.safetensors")
        for name, optimizer in optimizers.items():
            cut = name.removesuffix("_optimizer") in sharded
            if cut or fabric.is_global_zero:
                torch.save(own_state(optimizer), scratch / f"{_part(name, cut, fabric)}.pt")

    def finish() -> None:
        files = sorted(path for path in scratch.iterdir())
        manifest = {
            "step": step,
            "world_size": fabric.world_size,
            "score": score,
            "files": {path.name: _fingerprint(path) for path in files},
        }
        write_sealed(scratch / MANIFEST, manifest)
        for path in [*files, scratch]:
            sync(path)
        if final.exists() and damage(final):
            _remove(final)
        if final.exists():  # a good checkpoint is never replaced
            shutil.rmtree(scratch)
        else:
            scratch.rename(final)
        sync(folder)
        kept = {final, *_steps(folder)[:keep], best(folder)}
        for old in _steps(folder):
            if old not in kept:
                _remove(old)

    _together(fabric, final, begin if fabric.is_global_zero else None)
    _together(fabric, final, write)
    _together(fabric, final, finish if fabric.is_global_zero else None)
    return final


def best(folder: Path) -> Path | None:
    """The checkpoint of the highest score, the earliest of several; None where none has a score."""
    scored = [(score, path) for path in reversed(_steps(folder)) if (score := score_of(path)) is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def score_of(path: Path) -> float | None:
    """The validation's ROUGE-L of a checkpoint; None where it has none, and where its manifest is damaged."""
    try:
        score = _manifest(path)["score"]
    except (OSError, ValueError, KeyError):
        return None
    return score if isinstance(score, (int, float)) else None


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose files are as its manifest says; damaged ones are passed over with a warning."""
    for path in _steps(folder):
        reason = damage(path)
        if reason is None:
            return path
        warnings.warn(f"checkpoint {path} is damaged ({reason}): trying the one before it", stacklevel=2)
    return None


def set_damaged_aside(folder: Path, good: Path | None) -> None:
    """Rename what is newer than `good`, the newest good checkpoint, to `step-N.damaged`.

    Under its name it would count as one of the newest that are kept, in the place of a good one that is saved after it.
    """
    for path in _steps(folder):
        if path == good:
            return
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def load(
    fabric: Fabric,
    path: Path,
    modules: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    states: dict[str, Stateful],
) -> int:
    """Restore modules, optimizers and this rank's states in place; returns the number of finished steps."""
    manifest = _manifest(path)
    if manifest["world_size"] != fabric.world_size:
        raise InputError(
            f"{path} was written by {manifest['world_size']} processes, this run has {fabric.world_size}: "
            f"resume with the same number of devices"
        )
    load_modules(fabric, path, modules)
    sharded = {name for name, module in modules.items() if _sharded(module)}
    for name, optimizer in optimizers.items():
        part = _part(name, name.removesuffix("_optimizer") in sharded, fabric)
        load_own_state(optimizer, torch.load(path / f"{part}.pt", weights_only=True, map_location="cpu"))
    for name, thing in states.items():
        thing.load_state_dict(torch.load(path / f"{name}-{fabric.global_rank}.pt", weights_only=True))
    set_rng_state(torch.load(path / f"rng-{fabric.global_rank}.pt", weights_only=True))
    return manifest["step"]


def load_modules(fabric: Fabric, path: Path, modules: dict[str, nn.Module]) -> None:
    """Restore weights alone, in place; InputError where the checkpoint holds other ones."""
    for name, module in modules.items():
        sharded = _sharded(module)
        file = path / f"{_part(name, sharded, fabric)}.safetensors"
        if not file.exists():
            raise InputError(
                f"{path} was written {'without' if sharded else 'with'} sharded weights: resume with the --strategy that "
                "it was trained with"
            )
        stored, own = load_file(file), _trainable(module)
        if stored.keys() != own.keys():
            differing = sorted(stored.keys() ^ own.keys())
            raise InputError(
                f"{path / name} holds other weights than this {name} trains, for example {differing[0]}: same config?"
            )
        for key, tensor in own.items():
            if (stored[key].shape, stored[key].dtype) != (tensor.shape, tensor.dtype):  # a copy would broadcast
                raise InputError(
                    f"{file} holds {key} as {list(stored[key].shape)} {stored[key].dtype}, this {name} has it as "
                    f"{list(tensor.shape)} {tensor.dtype}: resume with the --student and the flags that it was trained with"
                )
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(stored[key])


def rng_state() -> dict[str, Any]:
    """Python's, numpy's and torch's random state, in types that `weights_only` reads."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [algorithm, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters, each once (tied ones share a tensor), and buffers that belong to the state; this rank's parts."""
    parameters = {
        name: own_part(parameter.detach()) for name, parameter in module.named_parameters() if parameter.requires_grad
    }
    persistent = module.state_dict().keys()
    return parameters | {name: buffer for name, buffer in module.named_buffers() if name in persistent}


def _sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def _part(name: str, sharded: bool, fabric: Fabric) -> str:
    """A file's stem: each rank writes its own of what is cut, rank 0 what all have."""
    return f"{name}-{fabric.global_rank}" if sharded else name


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    paths = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(paths, key=_number, reverse=True)


def _together(fabric: Fabric, final: Path, part: Callable[[], None] | None) -> None:
    """Do this rank's part and wait for the others; RunError on all ranks where one has failed."""
    error: Exception | None = None
    try:
        if part is not None:
            part()
    except (OSError, RuntimeError, SafetensorError) as caught:  # a full disk, as Python, torch and safetensors put it
        error = caught
    failed = fabric.all_reduce(torch.tensor(float(error is not None), device=fabric.device), reduce_op="sum")
    if not failed:
        return
    if fabric.is_global_zero:  # gives back the space, and what is left of it may be room for the logs
        shutil.rmtree(final.with_name(f"{final.name}.tmp"), ignore_errors=True)
    reason = (
        "another process failed" if error is None else (str(error).strip().splitlines() or [type(error).__name__])[0]
    )
    good = next(iter(_steps(final.parent)), None)
    safe = "there is none before it" if good is None else f"{good} is intact"
    raise RunError(f"cannot write {final}: {reason}; {safe}. Make room, then run again with --resume") from error


def _remove(path: Path) -> None:
    """Delete a checkpoint so that a kill leaves no part of it under its name."""
    shutil.rmtree(path.rename(path.with_name(f"{path.name}.old")))


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where they are as its manifest says."""
    try:
        for name, expected in _manifest(path)["files"].items():
            if not (path / name).exists():
                return f"{name} is missing"
            if _fingerprint(path / name) != expected:
                return f"{name} is not as it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    return None


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_sealed(path / MANIFEST, _UNSEALED)
    if manifest["step"] != (of_folder := _number(path)):
        raise ValueError(f"it is of step {manifest['step']}, its folder of step {of_folder}")
    return manifest


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
