"""What a model writes and how far it is from its teacher: generation, metrics, tables and plots."""

from gakd.evaluation.checkpoints import evaluate_checkpoints
from gakd.evaluation.evaluate import Evaluation, decode, evaluate
from gakd.evaluation.generation import Generation, Sampling, generate
from gakd.evaluation.held_out import EvaluationConfig, HeldOut, conclude
from gakd.evaluation.plots import plot_metrics
from gakd.evaluation.report import checkpoints_table, comparison_table, completions_table, suite_table
from gakd.evaluation.resumable import ResumableRows, check_settings
from gakd.evaluation.suite_results import SuiteResults
from gakd.evaluation.suites import load_suite, parse_suite, suite_scores
from gakd.evaluation.teacher_metrics import divergence_sums, divergences_to_teacher, teacher_outputs
from gakd.evaluation.text_metrics import corpus_exact_match, corpus_rouge_l, exact_match, rouge_l

__all__ = [
    "Evaluation",
    "EvaluationConfig",
    "Generation",
    "HeldOut",
    "ResumableRows",
    "Sampling",
    "SuiteResults",
    "check_settings",
    "checkpoints_table",
    "comparison_table",
    "completions_table",
    "conclude",
    "corpus_exact_match",
    "corpus_rouge_l",
    "decode",
    "divergence_sums",
    "divergences_to_teacher",
    "evaluate",
    "evaluate_checkpoints",
    "exact_match",
    "generate",
    "load_suite",
    "parse_suite",
    "plot_metrics",
    "rouge_l",
    "suite_scores",
    "suite_table",
    "teacher_outputs",
]
