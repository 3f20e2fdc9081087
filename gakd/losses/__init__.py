"""Token terms, pure functions of log-probabilities, and the engine that gives each of them chunks, masks and one backward.

Imports the spine below the distiller, `models` never.
"""

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
from gakd.losses.fused import TokenPass, token_pass, token_values
from gakd.losses.policy_gradient import KLToReference, PolicyGradient, SampledTokenLoss
from gakd.losses.router_balance import RouterBalance, router_balance
from gakd.losses.token_loss import Divergence
from gakd.losses.torchtune import from_torchtune

__all__ = [
    "AdaptiveKL",
    "AlphaBeta",
    "CrossEntropy",
    "Divergence",
    "ForwardKL",
    "JensenShannon",
    "KLToReference",
    "PolicyGradient",
    "ReverseKL",
    "RouterBalance",
    "SampledTokenLoss",
    "SkewForwardKL",
    "SkewReverseKL",
    "TokenPass",
    "TotalVariation",
    "UniversalLogit",
    "from_torchtune",
    "router_balance",
    "token_pass",
    "token_values",
]
