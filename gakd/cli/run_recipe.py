"""Run a recipe as `python recipes/NAME.py` would: same flags, same processes, same signals."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gakd.cli.recipe_files import find
from gakd.errors import InputError


def main(arguments: Sequence[str]) -> None:
    """The first of the arguments is the recipe's name, the others are its flags. This process becomes the recipe's."""
    if not arguments or arguments[0].startswith("-"):
        raise InputError("gakd run NAME [flags]: `gakd ls` lists the names, `gakd run NAME --help` a recipe's flags")
    command = [sys.executable, str(find(arguments[0])), *arguments[1:]]
    sys.stdout.flush()
    os.execv(sys.executable, command)
