"""Memory and FLOPs of a run before it is started, from configurations alone.

Imports `losses`, `adversary`, `models` and what is below them.
"""

from gakd.planning.plan import Plan, PlanConfig
from gakd.planning.estimate import largest_micro_batch, plan

__all__ = [
    "Plan",
    "PlanConfig",
    "largest_micro_batch",
    "plan",
]
