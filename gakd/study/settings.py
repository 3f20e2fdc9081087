"""Small JSON files of a study: written whole or not at all, and settings that a folder keeps to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gakd.errors import InputError
from gakd.files import write_whole


def write_json(path: Path, content: Any) -> None:
    """All of it, or nothing."""
    write_whole(path, json.dumps(content))


def keep_to(path: Path, settings: dict[str, Any]) -> bool:
    """Whether `path` holds these settings; False where it is yet to be written, InputError where it holds other ones."""
    if not path.exists():
        return False
    before, now = json.loads(path.read_text()), json.loads(json.dumps(settings, default=str))
    if changed := [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]:
        raise InputError(
            f"{path.parent} was made with other settings: {'; '.join(changed)}. Use the same, or another --output-dir"
        )
    return True
