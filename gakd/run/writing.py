"""A checkpoint on its way to the disk, beside training: each rank writes, syncs and hashes its own files, rank 0 seals them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.distributed_c10d import ProcessGroup

from gakd.errors import RunError
from gakd.files import file_digest, sync
from gakd.run.exchange import everyones, sum_

Write = Callable[[Path], object]


class Writing:
    """Files of `folder/NAME` that appear together or not at all; every rank calls every method.

    `files` are this rank's, by name, and `seal` is what rank 0 does once all are on the disk, with the size and hash of each:
    it gives the folder its name. Both happen in a thread, so what they read must not change meanwhile. Its exchange
    with other ranks is over `group`, which nothing else may use until `finish`.
    """

    def __init__(
        self, fabric: Fabric, final: Path, begin: Callable[[Path], None], files: Mapping[str, Write],
        seal: Callable[[Path, dict[str, Any]], None], group: ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        self._fabric, self.final, self._error = fabric, final, None
        scratch = scratch_of(final)
        self._together(lambda: begin(scratch) if fabric.is_global_zero else None)

        def write() -> dict[str, Any]:
            for name, into in files.items():
                into(scratch / name)
                sync(scratch / name)
            return {name: fingerprint(scratch / name) for name in files}

        def run() -> None:
            own = self._noting(write)
            found = self._noting(lambda: everyones(own, group))
            if fabric.is_global_zero and found is not None and None not in found:
                self._noting(lambda: seal(scratch, dict(sorted(item for part in found for item in part.items()))))

        # No daemon: a run that ends by an error still leaves a whole checkpoint.
        self._thread = Thread(target=run, name=f"writes {final.name}")
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether this rank has nothing left to do."""
        return not self._thread.is_alive()

    def finish(self) -> Path:
        """Wait for it; RunError on all ranks where one could not write, with the checkpoints before as they were."""
        self._thread.join()
        self._together(lambda: None)
        return self.final

    def _noting(self, do: Callable[[], Any]) -> Any:
        """What it gives; None where it fails for want of room, which `finish` tells of."""
        try:
            return do()
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # a full disk, as Python, torch and safetensors put it
            self._error = self._error or error
            return None

    def _together(self, part: Callable[[], None]) -> None:
        """Do this rank's part and wait for the others; RunError on all ranks where one has failed."""
        self._noting(part)
        error = self._error
        if not sum_(torch.tensor(float(error is not None), device=self._fabric.device)):
            return
        if self._fabric.is_global_zero:  # gives back the space, and what is left of it may be room for the logs
            shutil.rmtree(scratch_of(self.final), ignore_errors=True)
        reason = (
            "another process failed"
            if error is None
            else (str(error).strip().splitlines() or [type(error).__name__])[0]
        )
        good = next(iter(steps(self.final.parent)), None)
        safe = "there is none before it" if good is None else f"{good} is intact"
        raise RunError(
            f"cannot write {self.final}: {reason}; {safe}. Make room, then run again with --resume"
        ) from error


def snapshot(value: Any) -> Any:
    """A copy in the host's memory, which stays as it is while training goes on."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="cpu", memory_format=torch.contiguous_format).copy_(value.detach())
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(item) for item in value)
    return value


def scratch_of(final: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return final.with_name(f"{final.name}.tmp")


def fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def steps(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    paths = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(paths, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
