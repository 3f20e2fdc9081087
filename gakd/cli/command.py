"""The command `gakd`: a table of subcommands, each with its flags from a dataclass, imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from gakd.pipes import leave_closed_pipes


class Subcommand(NamedTuple):
    """A module with `main(config)` and its dataclass of flags; without one, `main(arguments)`, which passes them on."""

    module: str
    config: str | None
    summary: str
    tool: str | None = None  # the tool that it runs, whose flags it has


_PASSED_ON = "gakd.cli.run_recipe"
SUBCOMMANDS = {
    "ls": Subcommand("gakd.cli.list_recipes", "ListConfig", "recipes with their papers, and tools"),
    "cp": Subcommand("gakd.cli.copy_recipe", "CopyConfig", "a recipe as a file of your own"),
    "run": Subcommand(_PASSED_ON, None, "a recipe: gakd run NAME [flags]"),
    "data": Subcommand(
        "gakd.cli.data",
        "DataPreviewConfig",
        "what a dataset becomes: counts, lengths, and examples with what is trained on in colour",
    ),
    "plan": Subcommand("gakd.cli.plan", "PlanConfig", "memory by part and FLOPs of a run, before it is started"),
    "cache": Subcommand(_PASSED_ON, None, "a teacher's hidden states on disk: --teacher-cache", "tools/cache_teacher"),
    "generate": Subcommand(_PASSED_ON, None, "a model's responses to a dataset, as JSONL", "tools/generate"),
    "evaluate": Subcommand(_PASSED_ON, None, "one table over students, and their teacher", "tools/evaluate"),
    "chat": Subcommand("gakd.cli.chat", "ChatConfig", "talk to a student, its teacher beside it"),
    "study": Subcommand(_PASSED_ON, None, "many methods, seeds and measures in a mini world", "tools/study"),
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
        _say(usage())
        return
    if name in {"-V", "--version"}:
        from gakd.version import __version__

        _say(f"gakd {__version__}")
        return
    if name not in SUBCOMMANDS:
        close = difflib.get_close_matches(name, SUBCOMMANDS, 1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        print(f"error: no subcommand {name!r}{hint}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    from gakd.cli.entry import run
    from gakd.cli.read_flags import read_flags
    from gakd.cli.run_recipe import become

    subcommand = SUBCOMMANDS[name]
    module = importlib.import_module(subcommand.module)

    def begin(flags: list[str]) -> None:
        if subcommand.tool is not None:
            become(subcommand.tool, flags, f"gakd {name}")
        elif subcommand.config is None:
            module.main(flags)
        else:
            module.main(read_flags(getattr(module, subcommand.config), flags, f"gakd {name}", module.__doc__))

    run(begin, list(rest))


def _say(text: str) -> None:
    """To whoever still reads it: `gakd --help | head -1` has had enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        leave_closed_pipes()


def usage() -> str:
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}  {subcommand.summary}" for name, subcommand in SUBCOMMANDS.items()]
    lines.append(f"  {'--version':<{width}}  which gakd this is")
    return "\n".join(["usage: gakd SUBCOMMAND [flags]   (gakd SUBCOMMAND --help explains them)", "", *lines])


if __name__ == "__main__":
    main()
