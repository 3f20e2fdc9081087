"""gakd: distil a large language model into a small one, adversarially and token by token."""

from gakd.adversarial import Adversarial
from gakd.aligned_teacher import AlignedTeacher
from gakd.discriminators import AttentionPoolDiscriminator, MLPDiscriminator, TransformerDiscriminator
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
    UniversalLogit,
)
from gakd.expected_embedding import ExpectedEmbedding
from gakd.frozen_heads import FrozenHeadsReadout, logit_readout
from gakd.games import HingeGAN, NonSaturatingGAN, RelativisticGAN, WassersteinGAN
from gakd.hidden_readout import HiddenReadout
from gakd.lm_discriminator import LMDiscriminator, pretrained_discriminator
from gakd.log_prob_readout import LogProbReadout
from gakd.objective import Objective, Term
from gakd.readouts import CenteredLogitReadout, LogitReadout
from gakd.teachers import CachedTeacher, LocalTeacher
from gakd.torchtune_loss import from_torchtune
from gakd.types import IGNORE_INDEX, Batch, Head, StudentOutput, TeacherOutput, TokenChunk
from gakd.weights import balanced, cosine, ramp, stepwise

__all__ = [
    "IGNORE_INDEX",
    "AdaptiveKL",
    "Adversarial",
    "AlignedTeacher",
    "AlphaBeta",
    "AttentionPoolDiscriminator",
    "Batch",
    "CachedTeacher",
    "CenteredLogitReadout",
    "CrossEntropy",
    "Distiller",
    "Divergence",
    "ExpectedEmbedding",
    "ForwardKL",
    "FrozenHeadsReadout",
    "Head",
    "HiddenReadout",
    "HingeGAN",
    "JensenShannon",
    "LMDiscriminator",
    "LocalTeacher",
    "LogProbReadout",
    "LogitReadout",
    "MLPDiscriminator",
    "NonSaturatingGAN",
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
    "UniversalLogit",
    "WassersteinGAN",
    "balanced",
    "cosine",
    "from_torchtune",
    "logit_readout",
    "pretrained_discriminator",
    "ramp",
    "stepwise",
]
