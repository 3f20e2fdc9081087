"""A run's folder as plain values. What is missing or damaged becomes a line of `warnings`, never an error."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from gakd.evaluation.evaluation import Evaluation
from gakd.evaluation.plots import VALID, Series, read_series

_HOUSEKEEPING = {
    "padding",
    "gradient_norm",
    "discriminator_gradient_norm",
    "learning_rate",
    "tokens",
    "tokens_read",
    "tokens_per_second",
}


class Prompt(NamedTuple):
    """A test example."""

    instruction: str
    input: str
    reference: str


@dataclass(frozen=True)
class RunData:
    folder: Path
    config: dict[str, Any]  # flat: "run.seed" -> 42; empty where it could not be read
    recipe: str | None  # None: the run did not say
    metrics: dict[str, Series]
    before: Evaluation | None
    after: Evaluation | None
    teacher: Evaluation | None
    prompts: list[Prompt]  # of the predictions, in their order; empty where the run did not keep them
    wall_seconds: float | None  # from the first file to the last; None where the times of the files cannot be the run's
    warnings: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)  # counts of its splits; empty where the run did not keep them
    objective: str | None = None  # its formula; None where the run did not keep it
    card: Path | None = None  # of its exported student, where there is one

    @property
    def seed(self) -> Any:
        return self.config.get("run.seed")

    @property
    def step(self) -> int:
        """Of the last row of the metrics."""
        return max((int(steps[-1]) for steps, _ in self.metrics.values()), default=0)

    @property
    def planned_steps(self) -> int | None:
        """None where --epochs set them."""
        steps = self.config.get("run.steps")
        return steps if isinstance(steps, int) else None

    @property
    def finished(self) -> bool:
        return self.after is not None

    @property
    def losses(self) -> list[str]:
        """Columns of training that are the method's: by them recipes differ that did not say their names."""
        return sorted(name for name in self.metrics if not name.startswith(VALID) and name not in _HOUSEKEEPING)


def read_run(folder: Path) -> RunData:
    warnings: list[str] = []
    config = _flat(_json(folder / "config.json", warnings) or {})
    metrics = _metrics(folder / "metrics.csv", warnings)
    start = _json(folder / "before.json", warnings) or {}
    before = _evaluation(start, "student", "before.json", warnings)
    teacher = _evaluation(start, "teacher", "before.json", warnings) if "teacher" in start else None
    after = None
    if (folder / "after.json").exists():
        after = _evaluation(_json(folder / "after.json", warnings) or {}, "student", "after.json", warnings)
    prompts, recipe = _prompts(start), start.get("recipe")
    run = RunData(
        folder, config, recipe if isinstance(recipe, str) and recipe else None, metrics, before, after, teacher,
        prompts, _wall_seconds(folder, metrics), warnings,
        (_json(folder / "data_summary.json", warnings) or {}) if (folder / "data_summary.json").exists() else {},
        _objective(folder / "about.json", warnings), card if (card := folder / "student" / "README.md").exists() else None,
    )  # fmt: skip
    if not (folder / "after.json").exists():
        of = "" if run.planned_steps is None else f" of {run.planned_steps}"
        warnings.append(f"unfinished, at step {run.step}{of}: it has no after.json")
    return run


def _json(path: Path, warnings: list[str]) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        warnings.append(f"{path.name} is missing")
        return None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: neither UTF-8 nor JSON
        warnings.append(f"{path.name} cannot be read ({_line(error)})")
        return None
    if not isinstance(value, dict):
        warnings.append(f"{path.name} holds no JSON object but a {type(value).__name__}")
        return None
    return value


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _evaluation(scores: Mapping[str, Any], whose: str, file: str, warnings: list[str]) -> Evaluation | None:
    if not scores:  # said already
        return None
    found = scores.get(whose)
    if not isinstance(found, dict) or not _is_number(found.get("cross_entropy")):
        warnings.append(f"{file} has no scores of the {whose}")
        return None
    numbers = {f.name: found[f.name] for f in fields(Evaluation) if f.name in found and _is_number(found[f.name])}
    predictions = found.get("predictions")
    texts = [text for text in predictions if isinstance(text, str)] if isinstance(predictions, list) else []
    return Evaluation(**numbers, predictions=texts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _prompts(start: Mapping[str, Any]) -> list[Prompt]:
    examples = start.get("examples")
    prompts: list[Prompt] = []
    for example in examples if isinstance(examples, list) else []:
        row = example if isinstance(example, dict) else {}
        responses = row.get("responses")
        reference = responses[0] if isinstance(responses, list) and responses else ""
        prompts.append(Prompt(str(row.get("instruction", "")), str(row.get("input", "")), str(reference)))
    return prompts


def _metrics(path: Path, warnings: list[str]) -> dict[str, Series]:
    try:
        series = read_series(path)
        broken = len(re.findall(r"(?m)^.*,-?(?:nan|inf)(?:,|$)", path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        warnings.append("metrics.csv is missing: it has no curves")
        return {}
    except (OSError, ValueError, csv.Error) as error:
        warnings.append(f"metrics.csv cannot be read ({_line(error)})")
        return {}
    if broken:
        warnings.append(f"metrics.csv has {broken} row{'s' * (broken > 1)} with a number that is not finite")
    return series


def _objective(path: Path, warnings: list[str]) -> str | None:
    """What a run keeps of itself (`gakd.run.about`); older ones keep nothing."""
    formula = (_json(path, warnings) or {}).get("objective") if path.exists() else None
    return formula if isinstance(formula, str) and formula else None


def _wall_seconds(folder: Path, metrics: Mapping[str, Series]) -> float | None:
    """From config.json to the last result, by the files' times: evaluations and pauses before a --resume count.

    A copy may have lost them; then they leave less time than the supervised tokens alone must have taken.
    """
    files = [folder / name for name in ("config.json", "before.json", "metrics.csv", "after.json")]
    times = [path.stat().st_mtime for path in files if path.exists()]
    if len(times) < 2 or times != sorted(times):
        return None
    seconds = times[-1] - times[0]
    pace = metrics.get("tokens_per_second", ([], []))[1]
    least = sum(metrics.get("tokens", ([], []))[1]) / pace[-1] if pace and pace[-1] > 0 else 0.0
    return seconds if seconds >= least else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
