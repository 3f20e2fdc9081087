"""Run a recipe as `python recipes/NAME.py` would: same flags, same processes, same signals."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gakd.cli.read_flags import COMMAND
from gakd.cli.recipe_files import find
from gakd.errors import InputError

HELP = """\
usage: gakd run NAME [flags]

Runs a recipe or tool, as `python recipes/NAME.py [flags]` would.

  gakd ls               lists the names: gakd, baselines/reverse_kl or reverse_kl
  gakd run NAME --help  explains its flags
  gakd run gakd         without --student: the demo, minutes on two CPU cores"""


def main(arguments: Sequence[str]) -> None:
    """The first of the arguments is the recipe's name, the others are its flags. This process becomes the recipe's."""
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print(HELP)
        return
    if not arguments or arguments[0].startswith("-"):
        raise InputError("gakd run NAME [flags]: `gakd ls` lists the names, `gakd run NAME --help` a recipe's flags")
    become(arguments[0], arguments[1:], f"gakd run {arguments[0]}")


def become(name: str, flags: Sequence[str], typed: str) -> None:
    """This process becomes the recipe's or tool's, which calls itself by what was typed."""
    path = find(name)
    os.environ[COMMAND] = typed
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(path), *flags])
