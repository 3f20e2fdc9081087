"""Where gakd keeps what it can rebuild: converted checkpoints and harvested data."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$GAKD_CACHE`, or `gakd` in `$XDG_CACHE_HOME`, or `~/.cache/gakd`; created on first use."""
    root = os.environ.get("GAKD_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gakd"
    base.mkdir(parents=True, exist_ok=True)
    return base
