"""Settings that a folder of a study keeps to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gakd.samplers.resumable import check_settings


def keep_to(path: Path, settings: dict[str, Any]) -> bool:
    """Whether `path` holds these settings; False where it is yet to be written, InputError where it holds other ones."""
    if not path.exists():
        return False
    check_settings(path.parent, json.loads(path.read_text()), json.loads(json.dumps(settings, default=str)))
    return True
