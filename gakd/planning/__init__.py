"""Memory and FLOPs of a run before it is started, from configurations alone.

Imports `losses`, `adversary`, `models` and what is below them.
"""

from typing import TYPE_CHECKING

from gakd.lazy import lazily

if TYPE_CHECKING:
    from gakd.planning.config import Plan, PlanConfig
    from gakd.planning.estimate import largest_micro_batch, plan

__getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "Plan",
    "PlanConfig",
    "largest_micro_batch",
    "plan",
]
