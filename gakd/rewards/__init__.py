"""What sampled tokens are worth: sources of rewards and shapers that chain behind them, pure maths on tensors.

Imports nothing of gakd.
"""

from gakd.rewards.adaptive_skew import adaptive_skew
from gakd.rewards.shapers import (
    Clip,
    GroupNormalize,
    KLPenalty,
    LengthNormalize,
    RewardToGo,
    SingleStepDecomposition,
    Whiten,
)
from gakd.rewards.sources import DiscriminatorScore, Reward, Rollout, Shaper, TeacherLogRatio, tokens_to_go

__all__ = [
    "Clip",
    "DiscriminatorScore",
    "GroupNormalize",
    "KLPenalty",
    "LengthNormalize",
    "Reward",
    "RewardToGo",
    "Rollout",
    "Shaper",
    "SingleStepDecomposition",
    "TeacherLogRatio",
    "Whiten",
    "adaptive_skew",
    "tokens_to_go",
]
