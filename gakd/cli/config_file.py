"""`--config FILE`: flags from YAML or JSON, before those of the command line."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gakd.errors import InputError
from gakd.flags import RENAMED, flags_of

FLAG = "--config"
HELP = "--config FILE sets flags from YAML, or from a run's config.json; those of the command line override it."


def expand(arguments: Sequence[str], config: Any) -> list[str]:
    """The command line with `--config FILE` replaced by the flags that the file sets, before all others: the last one counts.

    `config` is a recipe's dataclass of flags. The file is a mapping of their names, grouped as in a run's config.json or
    flat, and may have a flag's former name. InputError for a file that cannot be read as one, for a name that is no flag's, and
    for a former name on the command line.
    """
    rest, files = [], []
    pending = iter(arguments)
    for argument in pending:
        if argument == FLAG:
            files.append(next(pending, ""))
        elif argument.startswith(f"{FLAG}="):
            files.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    _refuse_former(rest, {name for name, _ in flags_of(config)})
    return [flag for file in files for flag in _flags(_read(Path(file)), config, config, file)] + rest


def _refuse_former(arguments: Sequence[str], known: set[str]) -> None:
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        new = RENAMED.get(name) if argument.startswith("--") and name not in known else None
        if new in known:
            raise InputError(f"--{name.replace('_', '-')} is now called --{new.replace('_', '-')}: give that")


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{FLAG} {path}: cannot be read ({reason}); give a YAML file, or a run's config.json"
        ) from error
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise InputError(f"{FLAG} {path}: expected `flag: value` lines, got {type(values).__name__}")
    return values


def _flags(values: Mapping[str, Any], group: Any, config: Any, file: str) -> list[str]:
    found: list[str] = []
    groups = {field.name for field in dataclasses.fields(group) if dataclasses.is_dataclass(getattr(group, field.name))}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        known = [name for name, _ in flags_of(config)]
        name = name if name in known else RENAMED.get(name, name)
        if name in groups and isinstance(value, Mapping):
            found += _flags(value, getattr(group, name), config, file)
        elif name in known:
            found += _as_flag(f"--{name.replace('_', '-')}", value)
        else:
            close = difflib.get_close_matches(name, known, 1)
            hint = f", did you mean {close[0]}?" if close else ": --help lists them"
            raise InputError(f"{FLAG} {file}: {key} is no flag of this command{hint}")
    return found


def _as_flag(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, (list, tuple)):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]
