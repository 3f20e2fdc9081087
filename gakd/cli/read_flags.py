"""A command line to a dataclass of flags, by tyro; what is wrong with it, in one line."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from difflib import get_close_matches
from typing import Any, TextIO, TypeVar

from gakd.errors import InputError

Config = TypeVar("Config")

COMMAND = "GAKD_COMMAND"  # the variable by which `gakd run` tells the process that it becomes what was typed
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def command_line() -> str:
    """The command as it was typed, without its flags: `python recipes/gakd.py`, or what `gakd` was asked to run."""
    return os.environ.pop(COMMAND, None) or f"python {sys.argv[0]}"


def read_flags(
    kind: type[Config], arguments: Sequence[str], command: str, description: str | None, default: Config | None = None
) -> Config:
    """The flags of `arguments`, over those of `default`; groups are flat: `--steps`, not `--run.steps`.

    `--help` prints and ends with status 0. InputError for what is no flag, with the nearest one, and for what is no value.
    """
    import tyro

    shown, said = _Shown(sys.stdout), io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with redirect_stdout(shown), redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=command,
                args=arguments,
                description=description or "",
                config=(tyro.conf.OmitArgPrefixes,),
                **given,
            )
    except SystemExit as left:
        if left.code:
            raise InputError(_in_one_line(said.getvalue(), command)) from None
        # A terminal without the field's own signs shows question marks for them.
        print(_wrapped(shown.getvalue()).encode(shown.encoding, "replace").decode(shown.encoding), end="")
        raise


class _Shown(io.StringIO):
    """What stands for the output, and has colours and frames where that has."""

    def __init__(self, output: TextIO) -> None:
        super().__init__()
        self._output = output

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._output.encoding or "utf-8"

    def isatty(self) -> bool:
        return self._output.isatty()


def _wrapped(help_text: str) -> str:
    """Lines that are longer than the terminal is wide, which are those above the frames, are broken between words."""
    width = shutil.get_terminal_size().columns
    return "".join(
        f"{textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)}\n"
        if len(_COLOURS.sub("", line)) > width
        else f"{line}\n"
        for line in help_text.splitlines()
    )


def _in_one_line(frame: str, command: str) -> str:
    """What stands in tyro's frame: what is wrong above its first rule, what is meant or how a flag is used below it."""
    parts: list[list[str]] = [[]]
    for line in _COLOURS.sub("", frame).splitlines()[1:-1]:  # its title and its end apart
        row = line[1:-1].rstrip()
        if row.strip() and not row.strip("─- "):
            parts += [[]]
        elif row:
            parts[-1].append(row)
    first, *others = filter(None, parts)
    wrong = " ".join(map(str.strip, first)).partition(" Got errors:")[0].rstrip(". ")
    flags = [[row.split() for row in part if row.strip().startswith("--")] for part in others]
    if wrong.startswith("Unrecognized"):
        words = wrong.partition(": ")[2].split(", ")
        names = [word for word in words if word.startswith("-")] or words
        known = [row[0] for rows in flags for row in rows]  # in any order
        nearest = ", ".join(dict.fromkeys(best for name in names for best in get_close_matches(name, known, 1, 0)))
        what = f"{' '.join(names)} {'is no flag' if len(names) == 1 else 'are no flags'} of this command"
        return f"{what}{f', did you mean {nearest}?' if nearest else ':'} `{command} --help` lists them"
    if wrong.startswith("Missing from"):
        # Names stand further to the left than what explains them.
        left = min(len(row) - len(row.lstrip()) for row in first[1:])
        names = [row.strip() for row in first[1:] if not row[left].isspace()]
        return f"missing {', '.join(names)}: `{command} --help` explains"
    if found := re.match(r"Error parsing (\S+): (.*)", wrong):
        usage = next((" ".join(row) for rows in flags for row in rows if row[0] == found[1]), found[1])
        value = re.sub(r"no type matching .* could be instantiated from \['(.*)'\]$", r"got \1", found[2])
        return f"{usage}: {value}; `{command} --help` explains"
    return f"{wrong}; `{command} --help` explains"
