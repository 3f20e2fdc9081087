"""Models one optimizer step of recipes/gakd.py on an H100 that is not there, by part; see this package's docstring.

Prints tables as Markdown, writes roofline.json and roofline.png. `--draw before.json after.json` only draws.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tyro

from tests.benchmarks.roofline import DOLLY, FIXED, H100, HOSTS, PAGEABLE, SHORTEST, WAIT
from tests.fake_cuda import guard

ROOT = Path(__file__).parents[3]


@dataclass
class Config:
    settings: tuple[Literal["all", "lora", "cache"], ...] = ("all", "lora", "cache")
    """All weights; LoRA of rank 16; all weights with the teacher's hidden states from a cache."""
    lengths: tuple[Literal["fixed", "dolly"], ...] = ("fixed", "dolly")
    """32 sequences of 512 positions, 60% supervised; 32 of 150 as in a window of Dolly's, 80 supervised."""
    student: str = "Qwen3-0.6B"
    """Any name that `gakd plan` knows."""
    teacher: str = "Qwen3-8B"
    """Any name that `gakd plan` knows."""
    layers: int | None = None
    """Of each model, the first so many: quick, and no figure to quote. None: all."""
    micro_batch_size: int = 4
    """Sequences of a micro-batch."""
    micro_batch_tokens: int | None = None
    """Positions of a micro-batch instead, as the run's flag of this name."""
    shapes: tuple[str, ...] = ()
    """Micro-batches by their shapes instead, such as 4x512 8x150: sequences x positions, with the shares of `lengths`."""
    eager_layers: bool = False
    """Layers operation by operation, as without --compile."""
    output: Path = Path("runs/roofline")
    """Folder for roofline.json and roofline.png; cases of the same name in it are replaced."""
    draw: tuple[Path, ...] = ()
    """JSON files of earlier runs, before and after: draw them into --output, model nothing."""


def main(config: Config) -> None:
    config.output.mkdir(parents=True, exist_ok=True)
    if config.draw:
        _draw([(path.stem, json.loads(path.read_text())) for path in config.draw], config.output)
        return
    report = _model(config)
    path = config.output / "roofline.json"
    path.write_text(json.dumps(report, indent=1))
    _draw([("now", report)], config.output)
    print(f"modelled, not measured; written: {path}, {config.output / 'roofline.png'}")


def _draw(reports: list[tuple[str, dict[str, Any]]], folder: Path) -> None:
    from tests.benchmarks.roofline.picture import draw

    draw(reports, folder / "roofline.png")


def _model(config: Config) -> dict[str, Any]:
    guard.load()  # before anything that imports torch
    from tests.benchmarks.roofline import report
    from tests.benchmarks.roofline.compiled import with_compiled_layers, with_compiled_rows
    from tests.benchmarks.roofline.figures import figures
    from tests.fake_cuda import patches
    from tests.fake_cuda.settings import Setting
    from tests.fake_cuda.step import run_step

    patches.install()
    shapes = tuple((int(size), int(length)) for size, length in (shape.split("x") for shape in config.shapes))
    common = Setting(
        student=config.student, teacher=config.teacher, layers=config.layers, micro_batch_size=config.micro_batch_size,
        micro_batch_tokens=config.micro_batch_tokens, shapes=shapes,
    )  # fmt: skip
    settings = {"all": {}, "lora": {"lora_rank": 16}, "cache": {"teacher_cache": True}}
    titles = {"all": "all weights", "lora": "LoRA", "cache": "teacher cache"}
    lengths = {"fixed": ("4 x 512", FIXED), "dolly": ("Dolly's lengths", DOLLY)}
    kept = _kept(config.output / "roofline.json")
    for length in config.lengths:
        for setting in config.settings:
            name = f"{titles[setting]}, {lengths[length][0] if not shapes else ' '.join(config.shapes)}"
            step = run_step(replace(common, lengths=lengths[length][1], **settings[setting]), alike=True)
            events = with_compiled_rows(step.recorder.events)
            if not config.eager_layers:
                events = with_compiled_layers(step, events)
            about = {
                "name": name, "layers": "eager" if config.eager_layers else "compiled", "student": config.student,
                "teacher": config.teacher, "first_layers_only": config.layers,
            }  # fmt: skip
            case = about | figures(step, events)
            kept[name] = case
            print(report.text(case), flush=True)
    return {
        "what": "modelled: no figure here was measured on a card",
        "assumptions": asdict(H100) | {"shortest": SHORTEST, "wait": WAIT, "pageable": PAGEABLE, "hosts": HOSTS},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "lightning-fabric")},
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "cases": list(kept.values()),
    }


def _kept(path: Path) -> dict[str, Any]:
    """Cases that the folder holds, by name."""
    return {case["name"]: case for case in json.loads(path.read_text())["cases"]} if path.exists() else {}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
