"""The game: discriminators, what they read, the losses of both players, and the term that plays it.

Imports `losses`, `models` and what is below them.
"""

from typing import TYPE_CHECKING

from gakd.lazy import lazily

if TYPE_CHECKING:
    from gakd.adversary.adversarial import Adversarial, AdversarialOutput
    from gakd.adversary.discriminators import AttentionPoolDiscriminator, MLPDiscriminator, TransformerDiscriminator
    from gakd.adversary.games import Game, HingeGAN, NonSaturatingGAN, RelativisticGAN, WassersteinGAN
    from gakd.adversary.lm_discriminator import LMDiscriminator, pretrained_discriminator
    from gakd.adversary.text_discriminator import TextDiscriminator, compare, scores_of
    from gakd.adversary.watch import GameWatch

__getattr__, __dir__ = lazily(__name__, __file__)

__all__ = [
    "Adversarial",
    "AdversarialOutput",
    "AttentionPoolDiscriminator",
    "Game",
    "GameWatch",
    "HingeGAN",
    "LMDiscriminator",
    "MLPDiscriminator",
    "NonSaturatingGAN",
    "RelativisticGAN",
    "TextDiscriminator",
    "TransformerDiscriminator",
    "WassersteinGAN",
    "compare",
    "pretrained_discriminator",
    "scores_of",
]
