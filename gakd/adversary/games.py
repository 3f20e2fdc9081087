"""Two-player games on sequence scores, and the gradient penalties that keep their discriminators in bounds.

Real is the teacher, fake the student. Penalties see gradients with respect to what is read of a model (logits), through
the Gram matrix of the readout's map; they are differentiated twice, so a discriminator needs second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

# Where a discriminator's gradient may be penalised: at the teacher's rows, at the student's, at interpolates of both.
Point = Literal["real", "fake", "between"]
Penalty = Callable[[Tensor], Tensor]


class Game(Protocol):
    """A two-player game on scores; everything is unreduced, `[B]`."""

    def student(self, fake_B: Tensor, real_B: Tensor) -> Tensor: ...

    def discriminator(self, fake_B: Tensor, real_B: Tensor) -> Tensor: ...

    @property
    def penalties(self) -> dict[Point, Penalty]:
        """What is added to the discriminator's loss for `||d score / d logits||^2` `[B]` at a point; absent: nothing."""
        ...


@dataclass(frozen=True)
class RelativisticGAN:
    """RpGAN + R1 + R2: `softplus(-(real - fake))` against `softplus(-(fake - real))`.

    The penalties are `r1/2 ||d real / d teacher logits||^2 + r2/2 ||d fake / d student logits||^2`, with gradient
    (R3GAN, arXiv 2501.05441). GAKD's setting is r1 = r2 = 10; its release computes them as constants.
    """

    r1: float = 10.0
    r2: float = 10.0

    def student(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        return softplus(real_B - fake_B)

    def discriminator(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        return softplus(fake_B - real_B)

    @property
    def penalties(self) -> dict[Point, Penalty]:
        return zero_centered(self.r1, self.r2)


@dataclass(frozen=True)
class NonSaturatingGAN:
    """The classical game: `softplus(-real) + softplus(fake)` against `softplus(-fake)`, scores being logits of "real".

    At the discriminator's optimum, `score = log(density of real / density of fake)`, its loss is log 4 less twice the
    Jensen-Shannon divergence (Goodfellow et al., arXiv 1406.2661, section 4.1; the student's loss is that of section 3).
    R1 and R2 as in `RelativisticGAN` (Mescheder et al., arXiv 1801.04406); the GAN of GAKD's release has neither.
    """

    r1: float = 10.0
    r2: float = 10.0

    def student(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        return softplus(-fake_B)

    def discriminator(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        return softplus(-real_B) + softplus(fake_B)

    @property
    def penalties(self) -> dict[Point, Penalty]:
        return zero_centered(self.r1, self.r2)


@dataclass(frozen=True)
class HingeGAN:
    """`max(0, 1 - real) + max(0, 1 + fake)` against `-fake`: the discriminator lets pairs beyond the margin alone.

    At its optimum, `score = sign(density of real - density of fake)`, its loss is 2 less twice the total variation (Lim
    and Ye, arXiv 1705.02894). R1 and R2 as in `RelativisticGAN`.
    """

    r1: float = 10.0
    r2: float = 10.0

    def student(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        return -fake_B

    def discriminator(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        return relu(1 - real_B) + relu(1 + fake_B)

    @property
    def penalties(self) -> dict[Point, Penalty]:
        return zero_centered(self.r1, self.r2)


@dataclass(frozen=True)
class WassersteinGAN:
    """WGAN-GP: the critic maximises `real - fake` less `penalty_weight (||d score/d logits|| - 1)^2`, the student `fake`.

    The penalty is taken at interpolates `u real + (1 - u) fake`, u uniform in [0, 1], one a sequence (Gulrajani et al.,
    arXiv 1704.00028; the release's penalty is a constant).
    """

    penalty_weight: float = 10.0

    def student(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        return -fake_B

    def discriminator(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        return fake_B - real_B

    @property
    def penalties(self) -> dict[Point, Penalty]:
        return {"between": self._distance_to_slope_one} if self.penalty_weight != 0 else {}

    def _distance_to_slope_one(self, squared_norm_B: Tensor) -> Tensor:
        # The root has no slope at 0, where a sequence without supervised tokens stands.
        return self.penalty_weight * (squared_norm_B.clamp(min=1e-12).sqrt() - 1).square()


def zero_centered(r1: float, r2: float) -> dict[Point, Penalty]:
    """R1 and R2: `r1/2 ||d real / d what is read||^2` and the same at fake; a weight of 0 leaves its penalty out."""
    weights: dict[Point, float] = {"real": r1, "fake": r2}
    return {point: partial(torch.mul, weight / 2) for point, weight in weights.items() if weight != 0}
