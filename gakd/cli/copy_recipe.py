"""Copy a recipe to a file of your own: it runs unchanged from where it lands, and is yours to change."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gakd.cli.recipe_files import find
from gakd.errors import InputError


@dataclass
class CopyConfig:
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """A recipe or tool as `gakd ls` names it: baselines/reverse_kl, or reverse_kl."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DESTINATION")]
    """A new file, or a folder to put it in."""


def main(config: CopyConfig) -> None:
    source, target = find(config.recipe), config.destination
    if target.is_dir():
        target = target / source.name
    if target.suffix != ".py":
        raise InputError(f"{target} is no Python file: give a name that ends with .py, or a folder that exists")
    if target.exists():
        raise InputError(f"{target} exists: give another name, or remove it first")
    # Python looks for modules beside the file that it runs; gakd.py alone takes care of that.
    if target.stem != source.stem and importlib.util.find_spec(target.stem) is not None:
        raise InputError(f"{target.name} would hide the module {target.stem} from the recipe: give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"{source} -> {target}\nrun it: python {target} --help")
