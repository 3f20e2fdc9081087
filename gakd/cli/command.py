"""The command `gakd`: a table of subcommands, each with its flags from a dataclass, imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import tyro

from gakd.cli.entry import run


class Subcommand(NamedTuple):
    """A module with `main(config)` and its dataclass of flags; without one, `main(arguments)`, which reads them itself."""

    module: str
    config: str | None
    summary: str


SUBCOMMANDS = {
    "ls": Subcommand("gakd.cli.list_recipes", "ListConfig", "recipes with their papers, and tools"),
    "cp": Subcommand("gakd.cli.copy_recipe", "CopyConfig", "a recipe as a file of your own"),
    "run": Subcommand("gakd.cli.run_recipe", None, "a recipe: gakd run NAME [flags]"),
    "data": Subcommand(
        "gakd.cli.data",
        "DataPreviewConfig",
        "what a dataset becomes: counts, lengths, and examples with what is trained on in colour",
    ),
    "plan": Subcommand("gakd.cli.plan", "PlanConfig", "memory by part and FLOPs of a run, before it is started"),
    "report": Subcommand(
        "gakd.cli.report", "ReportConfig", "runs compared: one HTML file of curves, tables, completions"
    ),
    "doctor": Subcommand("gakd.cli.doctor", "DoctorConfig", "environment, devices, versions, known incompatibilities"),
    "completion": Subcommand("gakd.cli.completion", "CompletionConfig", "what completes all of this in bash or zsh"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand; without one, or for an unknown one, list them."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in {"-h", "--help"}:
        print(usage())
        return
    if name not in SUBCOMMANDS:
        close = difflib.get_close_matches(name, SUBCOMMANDS, 1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        print(f"error: no subcommand {name!r}{hint}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    subcommand = SUBCOMMANDS[name]
    module = importlib.import_module(subcommand.module)
    if subcommand.config is None:
        run(module.main, rest)
        return
    config = tyro.cli(
        getattr(module, subcommand.config),
        prog=f"gakd {name}",
        args=rest,
        description=module.__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    run(module.main, config)


def usage() -> str:
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {subcommand.summary}" for name, subcommand in SUBCOMMANDS.items()]
    return "\n".join(["usage: gakd SUBCOMMAND [flags]   (gakd SUBCOMMAND --help explains them)", "", *lines])


if __name__ == "__main__":
    main()
