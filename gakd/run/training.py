"""The bookkeeping of a run, so that a recipe shows only its method: Fabric, seeds, windows, counts, updates, logs, resume."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.optim import Optimizer

from gakd.data import Data
from gakd.distiller import Distiller
from gakd.errors import InputError, RunError
from gakd.files import read_sealed, sealed_or_none, write_sealed
from gakd.models.compiling import compile_layers, compiles
from gakd.models.fingerprints import untrained_mark
from gakd.models.lora import base_of
from gakd.models.parts import tables_of
from gakd.models.sharding import whole
from gakd.objective import Counts, Objective, Term, as_objective
from gakd.run import checkpoint
from gakd.run.about import write_about
from gakd.run.checkpoints import RunCheckpoints
from gakd.run.config import RunConfig, learning_rate_at, total_steps
from gakd.run.exchange import sum_, sum_flat_, take_from_main_
from gakd.run.folder import claim, fix_date, lengthen
from gakd.run.guard import Guard
from gakd.run.interruptions import EXIT_STATUS, Interruptions
from gakd.run.known import check_data, check_models, marks_of
from gakd.run.launch import expect_gradients, hosts, launch, patient_barrier, use_tensor_cores, writers_group
from gakd.run.measuring import measuring
from gakd.run.micro_batches import MicroBatches
from gakd.run.optimizers import student_optimizer
from gakd.run.prefetch import Prefetch
from gakd.run.preflight import check_run, check_validation, objective_warnings
from gakd.run.step_log import StepLog
from gakd.run.step_record import StepRecord
from gakd.run.updates import Update, Updates, fuse
from gakd.seeds import seed_of
from gakd.teachers.local import LocalTeacher
from gakd.types import Batch

__all__ = ["Run", "RunConfig"]

MicroBatch = TypeVar("MicroBatch")


class Run:
    """One training run. `step` counts finished optimizer steps."""

    def __init__(self, config: RunConfig, recipe_config: Any) -> None:
        self.config = config
        check_run(config, recipe_config)
        self.fabric = launch(config)
        use_tensor_cores(self.fabric.device, config.precision)
        self._wait_for_evaluation = patient_barrier()
        self.teacher_dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        self.step = 0
        self.fabric.seed_everything(config.seed, verbose=False)
        self._checkpoints = RunCheckpoints(
            self.fabric, self.folder, config.keep_checkpoints, config.export, writers_group()
        )
        self._recipe_config, self._marks = recipe_config, dict[str, str]()
        self._objective = Objective(())
        self._record, self._planned_over_all = StepRecord(), False
        self._hosts = hosts()
        self._log = StepLog(self.fabric.world_size, self._hosts)
        self._updates = Updates(Guard(config.on_nonfinite, self._record, self._keep_step), self._record, self._log)
        self._recipe = Path(getattr(sys.modules.get(type(recipe_config).__module__), "__file__", None) or "").stem
        fix_date(self.fabric, self.folder, recipe_config, config.resume)
        self._lock = claim(self.fabric, self.folder, recipe_config, config.resume)  # open as long as the run is

    # ---- before the loop ----

    @property
    def folder(self) -> Path:
        return self.config.output_dir

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    @property
    def is_main(self) -> bool:
        return self.fabric.is_global_zero

    @property
    def is_sharded(self) -> bool:
        """Whether weights are cut over ranks (`--strategy fsdp2`)."""
        return self.config.strategy == "fsdp2"

    @property
    def loading_device(self) -> torch.device:
        """Where a teacher is loaded to: its device, or the meta device, without its weights, where it is yet to be cut."""
        return torch.device("meta") if self.is_sharded else self.device

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Of a student's weights that do not train: 16 bits where products round them to these anyway.

        Not on a CPU, whose autocast does not cast the weights of a layer norm.
        """
        half = str(getattr(self.fabric._precision, "precision", "")).startswith("bf16")
        return torch.bfloat16 if half and self.device.type == "cuda" else torch.float32

    @property
    def rank(self) -> int:
        """Of this process among all, from 0."""
        return self.fabric.global_rank

    @property
    def seed(self) -> int:
        """Of what this rank draws for itself: no other rank draws it, nor any rank of a run with another seed."""
        return seed_of(self.config.seed, self.rank)

    def main_first(self) -> Any:
        """A context in which rank 0 goes first: for what writes to a shared cache."""
        return self.fabric.rank_zero_first()

    def setup(self, distiller: nn.Module, teacher: object = None) -> Any:
        """Wrap the distiller for its devices and precision, with an optimizer of its trainable weights; cut the teacher too.

        InputError for what an earlier `setup` returned.
        """
        config = self.config
        if isinstance(distiller, _FabricModule):
            raise InputError(
                "run.setup got a distiller that is set up already, as in a second run of a cell: build it anew and pass that, "
                "run.setup(Distiller(student, objective))"
            )
        if isinstance(distiller, Distiller):
            expect_gradients(self.fabric, distiller.student)
        self._objective = distiller.objective if isinstance(distiller, Distiller) else Objective(())
        if self.is_main:  # before anything is cut over ranks
            self._marks |= marks_of(distiller, teacher)
            write_about(self.folder, config, self._recipe_config, self._recipe, str(self._objective) or None)
        student = distiller.student if isinstance(distiller, Distiller) else distiller
        if compiles(config.compile, self.device):
            for model in (student, getattr(teacher, "model", None)):
                if isinstance(model, nn.Module):
                    compile_layers(model)
        self._wrapped = self.fabric.setup_module(distiller)
        if isinstance(distiller, Distiller):
            self._wrapped.mark_forward_method(distiller.label_log_probs)
        if self.is_sharded and isinstance(teacher, LocalTeacher):
            teacher.shard(cast(ModelParallelStrategy, self.fabric.strategy).device_mesh["data_parallel"], self.device)
        # Sharding has put new parameters in place of the old ones.
        trainable = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
        optimizer = student_optimizer(
            config.optimizer, trainable, tables_of(base_of(student)), config.learning_rate, config.weight_decay
        )
        fuse(optimizer)
        self._student_optimizer = cast(Optimizer, self.fabric.setup_optimizers(optimizer))
        self._take_in("student", distiller, optimizer)
        return self._wrapped

    def setup_replicated(self, name: str, module: nn.Module, optimizer: Optimizer) -> None:
        """A module outside the wrapper: same on every rank, fp32, its gradients summed over ranks by `update_replicated`."""
        module.to(self.fabric.device)
        fuse(optimizer)
        take_from_main_([*module.parameters(), *module.buffers()])
        self._marks[name] = untrained_mark(module)
        self._take_in(name, module, optimizer)

    def _take_in(self, name: str, module: nn.Module, optimizer: Optimizer) -> None:
        self._checkpoints.modules[name], self._checkpoints.optimizers[f"{name}_optimizer"] = module, optimizer

    def keep(self, name: str, thing: checkpoint.Stateful) -> None:
        """Save a rank's own state beside the weights, and restore it: a sampler's buffer, a threshold."""
        self._checkpoints.states[name] = thing

    def restore(self) -> None:
        """Continue from the newest checkpoint if `--resume` asks for it; else give each rank its own dropout.

        InputError where the teacher, or what training leaves as it is in a module, is not what the run was begun with.
        """
        check_models(self.fabric, self.folder, self._marks)
        step = self._checkpoints.resume(self.config.seed) if self.config.resume else None
        if step is None:
            torch.manual_seed(self.seed)
        else:
            self.step = step

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A result that belongs to the start of the run: computed by all ranks, kept as rank 0's JSON, read back when resuming.

        The recipe's name is kept with it, since recipes may share all flags, and a report must not take them for one; so is the
        precision it was computed in, for what is compared with it (`gakd.run.measuring`).
        """
        path = self.folder / name
        # As rank 0 finds it: the others may look later. One that is damaged is computed again.
        kept = self.fabric.broadcast(sealed_or_none(path) if self.is_main else None)
        if kept is None:
            with measuring(self.fabric) as precision:
                result = {"recipe": self._recipe} | precision | compute()
            if self.is_main:
                write_sealed(path, result)
        self._wait_for_evaluation()
        return kept or read_sealed(path)

    def total_steps(self, data: Data) -> int:
        """Optimizer steps of the whole run: for schedules, which keep it at that length once it has begun."""
        self._planned_over_all = True
        return total_steps(self.config, len(data.train))

    # ---- the loop ----

    def steps(self, data: Data) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each optimizer step, from where the run stands to its end.

        What a step holds is a function of the seed and the step alone: not of its micro-batches, the ranks, or a resume.
        A thread makes those of the next step meanwhile: it reads `data.train` while the loop runs.
        """
        config = self.config
        check_validation(config.evaluate_every, data)
        check_data(self.fabric, self.folder, data)
        longer = lengthen(
            self.fabric, self.folder, config, self._recipe_config, self.step, len(data.train), self._planned_over_all
        )
        made = MicroBatches(config, self._recipe_config, data, self.rank, self.fabric.world_size, self.device)
        self.total = total_steps(config, len(data.train))
        log = self._log.open(
            self.folder, config.log_to, self.step, self.total, self.is_main, config.project, config.run_name
        )
        with log, Interruptions() as self._interruptions, Prefetch(made.at, self.total) as windows:
            for warning in filter(None, (longer, made.warning(), *objective_warnings(self._objective, self.total))):
                self._log.say(f"warning: {warning}")
            while self.step < self.total:
                batches, rows = windows.at(self.step)
                # From here and not from the thread: the copies stand in the stream before the step that reads them.
                window = [batch.to(self.device) for batch in batches]
                self._record.begin_step(window, rows)
                self._random_state = checkpoint.rng_state()
                yield window
        self._checkpoints.finish_run()

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Without gradient, in the precision of training: for what is measured on a step's text before it is trained on."""
        with torch.no_grad(), self.fabric.autocast():
            yield

    def counts(self, window: Sequence[Batch], *names: str) -> Counts:
        """Supervised tokens and sequences of the whole optimizer step, over all ranks.

        Where a step has several windows, `names` are the terms that this one is about (`Coefficients.only`); the window
        that is given without names stands for all other terms.
        """
        return self._log.counts(window, *names)

    def micro_batches(self, window: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
        """Each micro-batch of an update. Whole gradients are exchanged between ranks with the last one, cut ones with each.

        Under FSDP2 they would otherwise be whole on every rank until then.
        """
        for index, batch in enumerate(window):
            self._record.begin(batch)
            alone = not self.is_sharded and index < len(window) - 1
            with self.fabric.no_backward_sync(self._wrapped) if alone else nullcontext():
                yield batch

    def backward(self, loss: Tensor, losses: dict[str, Tensor]) -> None:
        """Backward through the wrapper, and keep the unreduced losses for the log, without a device sync."""
        self.fabric.backward(loss)
        self._record.add(losses)

    def note(self, name: str, value: float) -> None:
        """A number of this rank's step, for the log as the mean over ranks, each of which must call it."""
        self._log.own_notes[name] = value

    def update(self) -> None:
        """Clip, step and clear the student; where a loss or the gradient is not finite, what `--on-nonfinite` says."""
        rate = learning_rate_at(self.config, self.step, self.total)
        for group in self._student_optimizer.param_groups:
            group["lr"] = rate
        clipped = self.fabric.clip_gradients(
            self._wrapped, self._student_optimizer, max_norm=self.config.clip, error_if_nonfinite=False
        )
        norm = whole(cast(Tensor, clipped))
        broken = sum_(self._record.broken(self.device) + ~norm.isfinite())
        update = Update("student", "gradient_norm", norm, broken)
        optimizer = self._checkpoints.optimizers["student_optimizer"]
        self._updates.make(update, self.step, optimizer, self._student_optimizer.step)
        self._student_optimizer.zero_grad()
        self._log.notes["learning_rate"] = rate

    def update_replicated(self, name: str, clip: float | None = None) -> None:
        """Sum a replicated module's gradients over ranks, clip, step and clear it; nothing where it has no gradient."""
        module = self._checkpoints.modules[name]
        optimizer = self._checkpoints.optimizers[f"{name}_optimizer"]
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if not gradients:
            return
        broken = sum_flat_(gradients, self._record.broken(self.device))
        norm = torch.nn.utils.get_total_norm(gradients)

        def apply() -> None:
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(module.parameters(), clip, norm)
            optimizer.step()

        update = Update(name, "discriminator_gradient_norm", norm, broken + ~norm.isfinite())
        self._updates.make(update, self.step, optimizer, apply)
        optimizer.zero_grad()

    def validate(self, compute: Callable[[], dict[str, float]]) -> dict[str, float] | None:
        """When it is time, `compute` on all ranks, in training's precision; rank 0's scores are logged as `valid/...` columns.

        The scores, on every rank, or None when it is not time. Before `finish_step`, so that a checkpoint holds what they
        change. However long one rank takes, the others wait for it afterwards.
        """
        step, every = self.step + 1, self.config.evaluate_every
        if not every or (step % every and step != self.total):
            return None
        started = time.perf_counter()
        with measuring(self.fabric):
            scores = compute()
        self._log.validation(step, scores, time.perf_counter() - started)
        self._wait_for_evaluation()
        scores = self.fabric.broadcast(scores)
        self._checkpoints.observe(scores)
        return scores

    def finish_step(self, objective: Objective | Term) -> None:
        """Count the step, log its means, save when it is time.

        Leaves after saving where a signal asks for it (exit status 75), and where the log cannot be written (RunError).
        """
        losses, known = self._log.read(self._record.sums(), self._updates.unknown())
        self._updates.learn(known, self.step)
        self.step += 1
        self._log.finish_step(self.step, losses, as_objective(objective))
        best = self._checkpoints.is_best()
        (asked, writing), last = self._asked_to_leave(), self.step == self.total
        every = self.config.save_every
        if not writing:
            self._checkpoints.finish_writing()
        if asked or best or last or (every and self.step % every == 0):
            self._checkpoints.save(self.step)
        if asked or last:
            self._checkpoints.finish_writing()
        self._checkpoints.finish_step()
        if asked:
            left = f"{asked}: saved step {self.step}, leaving; the same command with --resume goes on from there"
            self.close()
            if self._log.trouble is not None:
                raise RunError(left)
            self._log.say(left)
            raise SystemExit(EXIT_STATUS)

    def _keep_step(self) -> Path:
        return self._checkpoints.keep_step(self.step, self._record, self._random_state)

    def _asked_to_leave(self) -> tuple[str | None, bool]:
        """The signal that any rank was sent, or what keeps one from logging; and whether any is writing a checkpoint."""
        received = self._interruptions.received or self._log.trouble
        asked, writing = self._hosts.sum([received is not None, self._checkpoints.writes])
        return (received or "another process was asked to") if asked else None, writing > 0

    def close(self) -> None:
        """Leave the process group in order, and the folder to others."""
        self._wait_for_evaluation()
        if self._lock is not None:
            self._lock.close()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def over_ranks(self, own: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        return sum_(own.clone())
