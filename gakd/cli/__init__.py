"""Command lines: a recipe's flags, the command `gakd` and what it runs, the demo's settings.

Imports every room but `study`.
"""

from typing import TYPE_CHECKING

from gakd.lazy import lazily

if TYPE_CHECKING:
    from gakd.cli.entry import parse, run, start, start_tool
    from gakd.data.config import DataConfig
    from gakd.data.splits import Split
    from gakd.evaluation.config import EvaluationConfig
    from gakd.models.config import ModelConfig
    from gakd.run.config import RunConfig
    from gakd.samplers.config import Sampling, TeacherTextConfig
    from gakd.samplers.endpoint_config import EndpointConfig

__getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "DataConfig",
    "EndpointConfig",
    "EvaluationConfig",
    "ModelConfig",
    "RunConfig",
    "Sampling",
    "Split",
    "TeacherTextConfig",
    "parse",
    "run",
    "start",
    "start_tool",
]
