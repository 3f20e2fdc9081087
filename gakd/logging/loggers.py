"""Where metrics go beside metrics.csv: TensorBoard, Weights & Biases, trackio, MLflow."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from rich.markup import escape

from gakd.extras import Need, check_needs
from gakd.files import write_whole

LoggerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
PROJECT = "gakd"


class Logger(Protocol):
    """What takes a step's numbers; a step may come twice, for training and for its validation."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class Loggers:
    """One of each name, for the run in `folder`, whose config.json they show. One that raises is switched off, and `say` says so.

    They show it as `run_name` of `project`; None: by the folder's name. InputError where a package is missing.
    """

    def __init__(
        self,
        names: Sequence[LoggerName],
        folder: Path,
        resume_at: int,
        say: Callable[[str], None],
        project: str = PROJECT,
        run_name: str | None = None,
    ) -> None:
        for name in names:
            check_installed(name)
        kinds = {"tensorboard": _TensorBoard, "wandb": _WandB, "trackio": _Trackio, "mlflow": _MLflow}
        title = _Title(project, run_name or folder.resolve().name)
        self._say = say
        self._on: dict[str, Logger] = {}
        for name in names:
            with self._switching_off(name):
                self._on[name] = kinds[name](folder, resume_at, title)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, logger in list(self._on.items()):
            with self._switching_off(name):
                logger.log(step, values)

    def close(self) -> None:
        for name, logger in list(self._on.items()):
            with self._switching_off(name):
                logger.close()

    @contextmanager
    def _switching_off(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a server, a network, a library: none of it is a reason to lose a run
            self._on.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self._say(f"warning: --log-to {name} is switched off ({escape(reason)}); metrics.csv has all numbers")


def logger_need(name: LoggerName) -> Need:
    return Need(f"--log-to {name}", (name,), name)


def check_installed(name: LoggerName) -> None:
    check_needs([logger_need(name)])


class _Title(NamedTuple):
    project: str
    name: str


class _TensorBoard:
    """Event files in `folder/tensorboard`; those of steps that a resumed run takes again are purged."""

    def __init__(self, folder: Path, resume_at: int, title: _Title) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard", purge_step=resume_at + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of the project, which a resumed run continues.

    The step is a metric, and the axis of the others: wandb's own step cannot go back to where a resumed run begins.
    """

    def __init__(self, folder: Path, resume_at: int, title: _Title) -> None:
        import wandb  # type: ignore[import-not-found]

        self._run: Any = wandb.init(
            project=title.project,
            name=title.name,
            id=_identity(folder),
            resume="allow",
            dir=folder,
            config=_config(folder),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of the project on this machine, which a resumed run continues."""

    def __init__(self, folder: Path, resume_at: int, title: _Title) -> None:
        import trackio  # type: ignore[import-not-found]

        name = f"{title.name}-{_identity(folder)}"  # it knows runs by their names alone
        self._run: Any = trackio.init(
            project=title.project, name=name, resume="allow", config=_config(folder), embed=False
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of the experiment that is called as the project, at MLFLOW_TRACKING_URI; a resumed run continues it."""

    def __init__(self, folder: Path, resume_at: int, title: _Title) -> None:
        from mlflow import MlflowClient  # type: ignore[import-not-found]

        self._client: Any = MlflowClient()
        identity, known = _identity(folder), self._client.get_experiment_by_name(title.project)
        experiment = self._client.create_experiment(title.project) if known is None else known.experiment_id
        found = self._client.search_runs([experiment], f"tags.gakd_run = '{identity}'")
        run = (
            found[0] if found else self._client.create_run(experiment, run_name=title.name, tags={"gakd_run": identity})
        )
        self._run: str = run.info.run_id
        if found:
            self._client.update_run(self._run, status="RUNNING")
            return
        for name, value in _flat(_config(folder)):
            self._client.log_param(self._run, name, str(value)[:500])

    def log(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric  # type: ignore[import-not-found]

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def _identity(folder: Path) -> str:
    """An id that is the same for each start of this run and no other's: kept in the folder."""
    path = folder / "run-id"
    if not path.exists():
        write_whole(path, secrets.token_hex(4))
    return path.read_text()
