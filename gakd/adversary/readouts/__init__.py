"""What a discriminator sees of a model: linear maps of its logits, log-probabilities, probabilities or hidden states.

Imports `losses` and what is below it.
"""

from gakd.adversary.readouts.frozen_heads import FrozenHeadsReadout, logit_readout
from gakd.adversary.readouts.hidden import HiddenReadout
from gakd.adversary.readouts.log_probs import LogProbReadout
from gakd.adversary.readouts.logits import CenteredLogitReadout, LogitReadout
from gakd.adversary.readouts.probabilities import ExpectedEmbedding
from gakd.adversary.readouts.protocol import Readout
from gakd.adversary.readouts.soft_capped import SoftCappedLogitReadout

__all__ = [
    "CenteredLogitReadout",
    "ExpectedEmbedding",
    "FrozenHeadsReadout",
    "HiddenReadout",
    "LogProbReadout",
    "LogitReadout",
    "Readout",
    "SoftCappedLogitReadout",
    "logit_readout",
]
