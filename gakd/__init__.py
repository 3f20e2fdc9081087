"""gakd: distil a large language model into a small one, adversarially and token by token."""

from gakd.adversarial import Adversarial
from gakd.discriminators import MLPDiscriminator, TransformerDiscriminator
from gakd.distiller import Distiller
from gakd.divergences import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
)
from gakd.frozen_heads import FrozenHeadsReadout, logit_readout
from gakd.games import RelativisticGAN, WassersteinGAN
from gakd.log_prob_readout import LogProbReadout
from gakd.objective import Objective, Term, ramp
from gakd.readouts import CenteredLogitReadout, LogitReadout
from gakd.teachers import CachedTeacher, LocalTeacher
from gakd.types import IGNORE_INDEX, Batch, Head, StudentOutput, TeacherOutput, TokenChunk

__all__ = [
    "IGNORE_INDEX",
    "AdaptiveKL",
    "Adversarial",
    "AlphaBeta",
    "Batch",
    "CachedTeacher",
    "CenteredLogitReadout",
    "CrossEntropy",
    "Distiller",
    "Divergence",
    "ForwardKL",
    "FrozenHeadsReadout",
    "Head",
    "JensenShannon",
    "LocalTeacher",
    "LogProbReadout",
    "LogitReadout",
    "MLPDiscriminator",
    "Objective",
    "RelativisticGAN",
    "ReverseKL",
    "SkewForwardKL",
    "SkewReverseKL",
    "StudentOutput",
    "TeacherOutput",
    "Term",
    "TokenChunk",
    "TotalVariation",
    "TransformerDiscriminator",
    "WassersteinGAN",
    "logit_readout",
    "ramp",
]
