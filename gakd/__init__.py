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
from gakd.policy_gradient import KLToReference, PolicyGradient
from gakd.readouts import CenteredLogitReadout, LogitReadout
from gakd.reward_shapers import (
    Clip,
    GroupNormalize,
    KLPenalty,
    LengthNormalize,
    RewardToGo,
    SingleStepDecomposition,
    Whiten,
)
from gakd.rewards import DiscriminatorScore, Reward, Rollout, TeacherLogRatio
from gakd.teachers import CachedTeacher, LocalTeacher
from gakd.text_discriminator import TextDiscriminator
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
    "Clip",
    "CrossEntropy",
    "DiscriminatorScore",
    "Distiller",
    "Divergence",
    "ExpectedEmbedding",
    "ForwardKL",
    "FrozenHeadsReadout",
    "GroupNormalize",
    "Head",
    "HiddenReadout",
    "HingeGAN",
    "JensenShannon",
    "KLPenalty",
    "KLToReference",
    "LMDiscriminator",
    "LengthNormalize",
    "LocalTeacher",
    "LogProbReadout",
    "LogitReadout",
    "MLPDiscriminator",
    "NonSaturatingGAN",
    "Objective",
    "PolicyGradient",
    "RelativisticGAN",
    "ReverseKL",
    "Reward",
    "RewardToGo",
    "Rollout",
    "SingleStepDecomposition",
    "SkewForwardKL",
    "SkewReverseKL",
    "StudentOutput",
    "TeacherLogRatio",
    "TeacherOutput",
    "Term",
    "TextDiscriminator",
    "TokenChunk",
    "TotalVariation",
    "TransformerDiscriminator",
    "UniversalLogit",
    "WassersteinGAN",
    "Whiten",
    "balanced",
    "cosine",
    "from_torchtune",
    "logit_readout",
    "pretrained_discriminator",
    "ramp",
    "stepwise",
]
