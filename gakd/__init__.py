"""gakd: distil a large language model into a small one, adversarially and token by token."""

from typing import TYPE_CHECKING

from gakd.lazy import lazily

if TYPE_CHECKING:
    from gakd.adversary.adversarial import Adversarial
    from gakd.adversary.discriminators import AttentionPoolDiscriminator, MLPDiscriminator, TransformerDiscriminator
    from gakd.adversary.games import HingeGAN, NonSaturatingGAN, RelativisticGAN, WassersteinGAN
    from gakd.adversary.lm_discriminator import LMDiscriminator, pretrained_discriminator
    from gakd.adversary.readouts.frozen_heads import FrozenHeadsReadout, logit_readout
    from gakd.adversary.readouts.hidden import HiddenReadout
    from gakd.adversary.readouts.log_probs import LogProbReadout
    from gakd.adversary.readouts.logits import CenteredLogitReadout, LogitReadout
    from gakd.adversary.readouts.probabilities import ExpectedEmbedding
    from gakd.adversary.readouts.soft_capped import SoftCappedLogitReadout
    from gakd.adversary.text_discriminator import TextDiscriminator
    from gakd.distiller import Distiller
    from gakd.logging.frame import metrics
    from gakd.losses.divergences import (
        AdaptiveKL,
        AlphaBeta,
        CrossEntropy,
        ForwardKL,
        JensenShannon,
        ReverseKL,
        SkewForwardKL,
        SkewReverseKL,
        TotalVariation,
        UniversalLogit,
    )
    from gakd.losses.policy_gradient import KLToReference, PolicyGradient
    from gakd.losses.router_balance import RouterBalance, router_balance
    from gakd.losses.sequence_term import SequenceRows
    from gakd.losses.term import TokenChunk
    from gakd.losses.token_loss import Divergence
    from gakd.losses.torchtune import from_torchtune
    from gakd.objective import Counts, Objective, Term
    from gakd.rewards.shapers import (
        Clip,
        GroupNormalize,
        KLPenalty,
        LengthNormalize,
        RewardToGo,
        SingleStepDecomposition,
        Whiten,
    )
    from gakd.rewards.sources import DiscriminatorScore, Reward, Rollout, TeacherLogRatio
    from gakd.teachers.aligned import AlignedTeacher
    from gakd.teachers.cached import CachedTeacher
    from gakd.teachers.local import LocalTeacher
    from gakd.types import IGNORE_INDEX, Batch, Head, StudentOutput, TeacherOutput
    from gakd.version import __version__
    from gakd.weights import balanced, cosine, ramp, stepwise

__getattr__, __dir__ = lazily(__name__, __file__)

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
    "Counts",
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
    "RouterBalance",
    "SequenceRows",
    "SingleStepDecomposition",
    "SkewForwardKL",
    "SkewReverseKL",
    "SoftCappedLogitReadout",
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
    "__version__",
    "balanced",
    "cosine",
    "from_torchtune",
    "logit_readout",
    "metrics",
    "pretrained_discriminator",
    "ramp",
    "router_balance",
    "stepwise",
]
