"""One run around a recipe's loop: processes, windows, counts, updates, checkpoints, logs; alone in knowing Fabric.

Imports `distiller`, `planning` and what is below them.
"""

from typing import TYPE_CHECKING

from gakd.lazy import lazily

if TYPE_CHECKING:
    from gakd.run.config import RunConfig
    from gakd.run.training import Run

__getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "Run",
    "RunConfig",
]
