"""Memory of a run by part, FLOPs per token and the largest micro-batch that fits, from configurations alone.

No weights are read. Names such as Qwen3-8B are known; a folder needs its config.json only. GB are 10^9 bytes.
"""

from __future__ import annotations

from rich.console import Console

from gakd.planning.config import PlanConfig

__all__ = ["PlanConfig", "main"]


def main(config: PlanConfig) -> None:
    """Prints the plan."""
    from gakd.planning.estimate import largest_micro_batch, plan
    from gakd.planning.tables import tables
    from gakd.run.optimizers import check_cut

    check_cut(config.optimizer, config.strategy)
    planned = plan(config)
    console = Console()
    for table in tables(planned, largest_micro_batch(config)):
        console.print(table)
