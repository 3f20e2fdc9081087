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
from torch.nn.functional import softplus

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
        weights: dict[Point, float] = {"real": self.r1, "fake": self.r2}
        return {point: partial(torch.mul, weight / 2) for point, weight in weights.items() if weight != 0}


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
