"""gakd: distil a large language model into a small one, adversarially and token by token."""

from gakd.adversarial import Adversarial, RelativisticGAN
from gakd.discriminators import MLPDiscriminator, TransformerDiscriminator
from gakd.distiller import Distiller
from gakd.divergences import CrossEntropy, Divergence, ForwardKL, JensenShannon, ReverseKL
from gakd.objective import Objective, Term, ramp
from gakd.readouts import CenteredLogitReadout, LogitReadout
from gakd.teachers import LocalTeacher
from gakd.types import IGNORE_INDEX, Batch, Head, StudentOutput, TeacherOutput, TokenChunk

__all__ = [
    "IGNORE_INDEX",
    "Adversarial",
    "Batch",
    "CenteredLogitReadout",
    "CrossEntropy",
    "Distiller",
    "Divergence",
    "ForwardKL",
    "Head",
    "JensenShannon",
    "LocalTeacher",
    "LogitReadout",
    "MLPDiscriminator",
    "Objective",
    "RelativisticGAN",
    "ReverseKL",
    "StudentOutput",
    "TeacherOutput",
    "Term",
    "TokenChunk",
    "TransformerDiscriminator",
    "ramp",
]
