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
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.distributed_c10d import ProcessGroup
from torch.optim import Optimizer

from gakd.errors import InputError
from gakd.files import read_sealed, sync, write_sealed
from gakd.models.sharding import is_cut, load_own_state, own_part, own_state
from gakd.run.parts import files_of, stored_state, stored_weights
from gakd.run.writing import Write, Writing, fingerprint, snapshot, step_of, steps
from gakd.seeds import seed_of

MANIFEST = "manifest.json"
_UNSEALED = frozenset({"step", "world_size", "score", "files"})  # of a manifest from before it had a digest


class Stateful(Protocol):
    """What has a state of its own on each rank, in types that `torch.load(weights_only=True)` reads."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def save(
    fabric: Fabric, folder: Path, step: int, modules: dict[str, nn.Module], optimizers: dict[str, Optimizer],
    states: dict[str, Stateful], keep: int, score: float | None = None, random_state: dict[str, Any] | None = None,
    group: ProcessGroup | None = None,
) -> Writing:  # fmt: skip
    """Begin to write `folder/step-N`; keep it, the newest `keep` and the one of the highest score. Every rank calls it.

    What it holds is copied to the host's memory first, so training may go on; `finish` waits for the rest. `random_state`
    replaces the present one (`rng_state`). Raises RunError on every rank where one cannot write, as `finish` does.
    """
    final = folder / f"step-{step}"
    sharded = {name for name, module in modules.items() if is_cut(module)}
    files: dict[str, Write] = {f"rng-{fabric.global_rank}.pt": _saving(random_state or rng_state())}
    for name, thing in states.items():
        files[f"{name}-{fabric.global_rank}.pt"] = _saving(thing.state_dict())
    for name, module in modules.items():
        if name in sharded or fabric.is_global_zero:
            weights = snapshot(_trainable(module))
            files[f"{_part(name, name in sharded, fabric)}.safetensors"] = partial(save_file, weights)
    for name, optimizer in optimizers.items():
        cut = name.removesuffix("_optimizer") in sharded
        if cut or fabric.is_global_zero:
            files[f"{_part(name, cut, fabric)}.pt"] = _saving(own_state(optimizer))

    def begin(scratch: Path) -> None:
        for left in [*folder.glob("step-*.tmp"), *folder.glob("step-*.old")]:  # by a run that was killed
            shutil.rmtree(left)
        scratch.mkdir(parents=True)

    def seal(scratch: Path, found: dict[str, Any]) -> None:
        manifest = {"step": step, "world_size": fabric.world_size, "score": score, "files": found}
        write_sealed(scratch / MANIFEST, manifest)
        sync(scratch)
        if final.exists() and damage(final):
            _remove(final)
        if final.exists():  # a good checkpoint is never replaced
            shutil.rmtree(scratch)
        else:
            scratch.rename(final)
        sync(folder)
        kept = {final, *steps(folder)[:keep], best(folder)}
        for old in steps(folder):
            if old not in kept:
                _remove(old)

    return Writing(fabric, final, begin, files, seal, group)


def _saving(state: Any) -> Write:
    return partial(torch.save, snapshot(state))


def best(folder: Path) -> Path | None:
    """The checkpoint of the highest score, the earliest of several; None where none has a score."""
    scored = [(score, path) for path in reversed(steps(folder)) if (score := score_of(path)) is not None]
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
    for path in steps(folder):
        reason = damage(path)
        if reason is None:
            return path
        warnings.warn(f"checkpoint {path} is damaged ({reason}): trying the one before it", stacklevel=2)
    return None


def set_damaged_aside(folder: Path, good: Path | None) -> None:
    """Rename what is newer than `good`, the newest good checkpoint, to `step-N.damaged`.

    Under its name it would count as one of the newest that are kept, in the place of a good one that is saved after it.
    """
    for path in steps(folder):
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
    seed: int = 0,
) -> int:
    """Restore modules, optimizers and this rank's states in place; returns the number of finished steps.

    Weights and moments are those that were saved, however many processes have saved them and however they were cut. Where that
    were others than now, which a warning tells, each rank draws anew from `seed`; InputError where there are `states`, each of
    which belongs to one rank.
    """
    manifest = _manifest(path)
    before, now = manifest["world_size"], fabric.world_size
    if before != now and states:
        raise InputError(
            f"{path} holds the {' and the '.join(states)} of each of {before} processes, this run has {now}: "
            f"resume with {before}"
        )
    cut = {name for name, module in modules.items() if is_cut(module)}
    cut_before = load_modules(fabric, path, modules)
    for name, optimizer in optimizers.items():
        load_own_state(optimizer, stored_state(files_of(path, name, "pt", before), optimizer))
    for name, thing in states.items():
        thing.load_state_dict(torch.load(path / f"{name}-{fabric.global_rank}.pt", weights_only=True))
    if before == now:
        set_rng_state(torch.load(path / f"rng-{fabric.global_rank}.pt", weights_only=True))
    else:
        draw_anew(seed_of(seed, manifest["step"], fabric.global_rank))
    if fabric.is_global_zero and (before != now or cut != cut_before):
        were, are = (
            f"{count} process{'es' * (count > 1)}{' with weights cut over them' if names else ''}"
            for count, names in ((before, cut_before), (now, cut))
        )
        warnings.warn(
            f"{path} was written by {were}, this run has {are}: weights and moments are those that were saved, but sums are "
            f"added in another order{'' if before == now else ' and random numbers are drawn anew'}, so the run is not bit "
            f"for bit what it would have been",
            stacklevel=2,
        )
    return manifest["step"]


def load_modules(fabric: Fabric, path: Path, modules: dict[str, nn.Module]) -> set[str]:
    """Restore weights alone, in place; InputError where the checkpoint holds other ones. The names of those that were cut."""
    cut, world_size = set[str](), _manifest(path)["world_size"]
    for name, module in modules.items():
        files = files_of(path, name, "safetensors", world_size)
        if files[0].stem != name:
            cut.add(name)
        wanted = _wanted(module)
        stored = stored_weights(files, wanted)
        if stored.keys() != wanted.keys():
            differing = sorted(stored.keys() ^ wanted.keys())
            raise InputError(
                f"{path / name} holds other weights than this {name} trains, for example {differing[0]}: same config?"
            )
        for key, tensor in wanted.items():
            shape, rows = stored[key]
            if (shape, rows.dtype) != (tensor.shape, tensor.dtype):  # a copy would broadcast
                raise InputError(
                    f"{files[0]} holds {key} as {list(shape)} {rows.dtype}, this {name} has it as "
                    f"{list(tensor.shape)} {tensor.dtype}: resume with the --student and the flags that it was trained with"
                )
        with torch.no_grad():
            for key, tensor in wanted.items():
                own_part(tensor).copy_(stored[key].rows)
    return cut


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


def draw_anew(seed: int) -> None:
    """Give Python, numpy and torch the random state of a seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def _wanted(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters, each once (tied ones share a tensor), and buffers that belong to the state."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
    persistent = module.state_dict().keys()
    return parameters | {name: buffer for name, buffer in module.named_buffers() if name in persistent}


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    """This rank's parts of them."""
    return {name: own_part(tensor) for name, tensor in _wanted(module).items()}


def _part(name: str, sharded: bool, fabric: Fabric) -> str:
    """A file's stem: each rank writes its own of what is cut, rank 0 what all have."""
    return f"{name}-{fabric.global_rank}" if sharded else name


def _remove(path: Path) -> None:
    """Delete a checkpoint so that a kill leaves no part of it under its name."""
    shutil.rmtree(path.rename(path.with_name(f"{path.name}.old")))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where they are as its manifest says."""
    try:
        for name, expected in _manifest(path)["files"].items():
            if not (path / name).exists():
                return f"{name} is missing"
            if fingerprint(path / name) != expected:
                return f"{name} is not as it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    return None


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_sealed(path / MANIFEST, _UNSEALED)
    if manifest["step"] != (of_folder := step_of(path)):
        raise ValueError(f"it is of step {manifest['step']}, its folder of step {of_folder}")
    return manifest
