"""How good a student is: metrics of its text, its distance to the teacher, tables and plots.

Imports `samplers`, `teachers` and what is below them.
"""

from typing import TYPE_CHECKING

from gakd.lazy import lazily

if TYPE_CHECKING:
    from gakd.evaluation.checkpoints import evaluate_checkpoints
    from gakd.evaluation.config import EvaluationConfig
    from gakd.evaluation.evaluation import Evaluation, evaluate
    from gakd.evaluation.held_out import Conclusion, HeldOut, conclude
    from gakd.evaluation.plots import plot_metrics
    from gakd.evaluation.report import checkpoints_table, comparison_table, completions_table, suite_table
    from gakd.evaluation.suite_results import SuiteResults
    from gakd.evaluation.suites import load_suite, parse_suite, suite_scores
    from gakd.evaluation.teacher_metrics import divergence_sums, divergences_to_teacher, teacher_outputs
    from gakd.evaluation.text_metrics import corpus_exact_match, corpus_rouge_l, exact_match, rouge_l

__getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "Conclusion",
    "Evaluation",
    "EvaluationConfig",
    "HeldOut",
    "SuiteResults",
    "checkpoints_table",
    "comparison_table",
    "completions_table",
    "conclude",
    "corpus_exact_match",
    "corpus_rouge_l",
    "divergence_sums",
    "divergences_to_teacher",
    "evaluate",
    "evaluate_checkpoints",
    "exact_match",
    "load_suite",
    "parse_suite",
    "plot_metrics",
    "rouge_l",
    "suite_scores",
    "suite_table",
    "teacher_outputs",
]
