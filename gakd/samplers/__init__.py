"""Whose text is trained on, and what writes text at all: the student, the teacher, both, a server.

Imports `run` and what is below it.
"""

from typing import TYPE_CHECKING

from gakd.lazy import lazily

if TYPE_CHECKING:
    from gakd.samplers.config import Sampling, TeacherTextConfig
    from gakd.samplers.endpoint import EndpointTeacher, response_records
    from gakd.samplers.endpoint_config import EndpointConfig
    from gakd.samplers.generation import Generation, decode, generate, padding_id
    from gakd.samplers.mixture import Mixture
    from gakd.samplers.model import ModelSampler
    from gakd.samplers.protocol import Sample, Sampler, UntilEnd, dataset_sampler, resample, samples_of
    from gakd.samplers.replay import AdaptiveThreshold, ReplaySampler
    from gakd.samplers.resumable import ResumableRows
    from gakd.samplers.rollouts import (
        model_log_probs,
        policy_log_probs,
        rollout_of,
        teacher_log_probs,
        with_advantages,
        with_rows,
    )
    from gakd.samplers.teacher_text import teacher_examples, write_responses
    from gakd.samplers.two_models import SpeculativeSampler, TeacherMixedSampler
    from gakd.samplers.vllm import VllmSampler, VllmServer

__getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "AdaptiveThreshold",
    "EndpointConfig",
    "EndpointTeacher",
    "Generation",
    "Mixture",
    "ModelSampler",
    "ReplaySampler",
    "ResumableRows",
    "Sample",
    "Sampler",
    "Sampling",
    "SpeculativeSampler",
    "TeacherMixedSampler",
    "TeacherTextConfig",
    "UntilEnd",
    "VllmSampler",
    "VllmServer",
    "dataset_sampler",
    "decode",
    "generate",
    "model_log_probs",
    "padding_id",
    "policy_log_probs",
    "resample",
    "response_records",
    "rollout_of",
    "samples_of",
    "teacher_examples",
    "teacher_log_probs",
    "with_advantages",
    "with_rows",
    "write_responses",
]
