"""The checkpoints of one run: what belongs to its state, when one is the best, and the one of a step that broke."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.distributed.distributed_c10d import ProcessGroup
from torch.optim import Optimizer

from gakd.errors import RunError
from gakd.models.sharding import own_part
from gakd.run import checkpoint
from gakd.run.exchange import sum_
from gakd.run.step_record import StepRecord
from gakd.run.writing import Writing


class RunCheckpoints:
    """Everything a run's state consists of, and its folder of checkpoints. Every rank calls every method."""

    def __init__(
        self, fabric: Fabric, run_folder: Path, keep: int, export: Literal["last", "best"],
        writers: ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        self.fabric, self.folder, self.keep, self.export = fabric, run_folder / "checkpoints", keep, export
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Optimizer] = {}
        self.states: dict[str, checkpoint.Stateful] = {}
        self._score: float | None = None  # the validation's in this step
        self._writing: Writing | None = None
        self._writers = writers

    def save(self, step: int) -> None:
        """Begin to write a checkpoint, once the one before is on the disk.

        RunError, with the checkpoints before as they were, where that one could not be written, and where the last update has
        left weights that are not finite.
        """
        self.finish_writing()
        for name, module in self.modules.items():
            weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
            finite = torch.stack([own_part(weight.detach()).isfinite().all() for weight in weights]).all()
            if sum_((~finite).float()):
                raise RunError(
                    f"step {step} left weights of the {name} that are not finite, and is not saved; earlier checkpoints are "
                    f"intact: lower --learning-rate or --weight-decay, then --resume"
                )
        self._writing = self._write(self.folder, step, self.states, self.keep, self._score)

    @property
    def writes(self) -> bool:
        """Whether this rank is still writing a checkpoint."""
        return self._writing is not None and not self._writing.is_done

    def finish_writing(self) -> None:
        """Wait for the checkpoint that is being written; RunError where it cannot be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.finish()

    def resume(self, seed: int) -> int | None:
        """Restore the newest good checkpoint and return its step; None where there is none. `seed` as in `checkpoint.load`."""
        path = checkpoint.newest(self.folder)
        self.fabric.barrier()  # until all ranks have looked
        if self.fabric.is_global_zero:
            checkpoint.set_damaged_aside(self.folder, path)
        if path is None:
            return None
        return checkpoint.load(self.fabric, path, self.modules, self.optimizers, self.states, seed)

    def observe(self, scores: dict[str, float]) -> None:
        """Take in what the validation found in this step."""
        self._score = scores.get("rouge_l")

    def is_best(self) -> bool:
        """Whether the step's score is above those of all checkpoints, as rank 0 finds them: it is the one that removes some."""
        if self._score is None:
            return False
        self.finish_writing()
        path = checkpoint.best(self.folder)
        before = None if path is None else checkpoint.score_of(path)
        return self.fabric.broadcast(before is None or self._score > before)

    def finish_step(self) -> None:
        self._score = None

    def keep_step(self, step: int, record: StepRecord, random_state: dict[str, Any]) -> Path:
        """What is needed to run a step again, as a checkpoint; apart from those that a run resumes from.

        It replaces what an earlier break has left: of several, only this one is what the error tells of.
        """
        self.finish_writing()
        folder = self.folder.with_name("nonfinite")
        if self.fabric.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)
        states = self.states | {"micro_batches": record}
        return self._write(folder, step, states, keep=1, random_state=random_state).finish()

    def finish_run(self) -> None:
        """Bring back the best student where that is the one to export."""
        if self.export == "last":
            return
        path = self.fabric.broadcast(checkpoint.best(self.folder))
        if path is None:
            raise RunError("no checkpoint has a validation's ROUGE-L: export the last with --resume --export last")
        if reason := checkpoint.damage(path):
            raise RunError(f"the best checkpoint {path} is damaged ({reason}): remove it and resume, or --export last")
        checkpoint.load_modules(self.fabric, path, {"student": self.modules["student"]})

    def _write(
        self, folder: Path, step: int, states: dict[str, checkpoint.Stateful], keep: int, score: float | None = None,
        random_state: dict[str, Any] | None = None,
    ) -> Writing:  # fmt: skip
        return checkpoint.save(
            self.fabric, folder, step, self.modules, self.optimizers, states, keep, score, random_state, self._writers
        )
