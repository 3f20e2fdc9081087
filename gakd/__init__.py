"""gakd: distil a large language model into a small one, adversarially and token by token."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Module -> its public names, each imported when it is first asked for: most of them bring transformers along.
_HOMES = {
    "adversarial": ("Adversarial",),
    "aligned_teacher": ("AlignedTeacher",),
    "discriminators": ("AttentionPoolDiscriminator", "MLPDiscriminator", "TransformerDiscriminator"),
    "distiller": ("Distiller",),
    "divergences": (
        "AdaptiveKL",
        "AlphaBeta",
        "CrossEntropy",
        "Divergence",
        "ForwardKL",
        "JensenShannon",
        "ReverseKL",
        "SkewForwardKL",
        "SkewReverseKL",
        "TotalVariation",
        "UniversalLogit",
    ),
    "expected_embedding": ("ExpectedEmbedding",),
    "frozen_heads": ("FrozenHeadsReadout", "logit_readout"),
    "games": ("HingeGAN", "NonSaturatingGAN", "RelativisticGAN", "WassersteinGAN"),
    "hidden_readout": ("HiddenReadout",),
    "lm_discriminator": ("LMDiscriminator", "pretrained_discriminator"),
    "log_prob_readout": ("LogProbReadout",),
    "objective": ("Objective", "Term"),
    "policy_gradient": ("KLToReference", "PolicyGradient"),
    "readouts": ("CenteredLogitReadout", "LogitReadout"),
    "reward_shapers": (
        "Clip",
        "GroupNormalize",
        "KLPenalty",
        "LengthNormalize",
        "RewardToGo",
        "SingleStepDecomposition",
        "Whiten",
    ),
    "rewards": ("DiscriminatorScore", "Reward", "Rollout", "TeacherLogRatio"),
    "teachers": ("CachedTeacher", "LocalTeacher"),
    "text_discriminator": ("TextDiscriminator",),
    "torchtune_loss": ("from_torchtune",),
    "types": ("IGNORE_INDEX", "Batch", "Head", "StudentOutput", "TeacherOutput", "TokenChunk"),
    "weights": ("balanced", "cosine", "ramp", "stepwise"),
}

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


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"gakd.{module}"), name)
    raise AttributeError(f"module 'gakd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
