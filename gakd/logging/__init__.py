"""What a run says: its CSV of metrics, its progress lines, and the loggers of others.

Imports the leaves.
"""

from gakd.logging.loggers import Logger, LoggerName, Loggers, check_installed
from gakd.logging.metrics import MetricsLog
from gakd.logging.progress import Pace, ProgressView

__all__ = [
    "Logger",
    "LoggerName",
    "Loggers",
    "MetricsLog",
    "Pace",
    "ProgressView",
    "check_installed",
]
