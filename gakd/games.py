"""Two-player games on sequence scores, and the gradient penalties that keep their discriminators in bounds.

Real is the teacher, fake the student. Penalties see gradients with respect to what is read of a model (logits), through
the Gram matrix of the readout's map; they are differentiated twice, so a discriminator needs second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Scored(NamedTuple):
    """One discriminator pass, as penalties see it: the inputs, their scores, and how to differentiate and score anew."""

    real_BTR: Tensor
    fake_BTR: Tensor
    real_B: Tensor
    fake_B: Tensor
    score: Callable[[Tensor], Tensor]  # readout [B, T, R] -> [B]
    squared_norm: Callable[[Tensor], Tensor]  # gradient at the readout [B, T, R] -> ||d score / d logits||^2 [B]


class Game(Protocol):
    """A two-player game on scores; every method is unreduced, `[B]`."""

    def student(self, fake_B: Tensor, real_B: Tensor) -> Tensor: ...

    def discriminator(self, fake_B: Tensor, real_B: Tensor) -> Tensor: ...

    def penalty(self, scored: Scored) -> Tensor: ...


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

    def penalty(self, scored: Scored) -> Tensor:
        if self.r1 == 0 and self.r2 == 0:
            return torch.zeros_like(scored.real_B)
        gradients = torch.autograd.grad(
            scored.real_B.sum() + scored.fake_B.sum(), (scored.real_BTR, scored.fake_BTR), create_graph=True
        )
        real_B, fake_B = (scored.squared_norm(gradient_BTR) for gradient_BTR in gradients)
        return self.r1 / 2 * real_B + self.r2 / 2 * fake_B


@dataclass(frozen=True)
class WassersteinGAN:
    """WGAN-GP: the critic maximises `real - fake` less `penalty_weight (||d score/d logits|| - 1)^2`, the student `fake`.

    The penalty is taken at interpolates `u real + (1 - u) fake`, u uniform in [0, 1], one a sequence; readouts are linear, so
    what they give is interpolated (Gulrajani et al., arXiv 1704.00028; the release's penalty is a constant).
    """

    penalty_weight: float = 10.0

    def student(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        return -fake_B

    def discriminator(self, fake_B: Tensor, real_B: Tensor) -> Tensor:
        return fake_B - real_B

    def penalty(self, scored: Scored) -> Tensor:
        if self.penalty_weight == 0:
            return torch.zeros_like(scored.real_B)
        share_B11 = torch.rand_like(scored.real_B).view(-1, 1, 1)
        between_BTR = torch.lerp(scored.fake_BTR, scored.real_BTR, share_B11)
        (gradient_BTR,) = torch.autograd.grad(scored.score(between_BTR).sum(), between_BTR, create_graph=True)
        # The root has no slope at 0, where a sequence without supervised tokens stands.
        norm_B = scored.squared_norm(gradient_BTR).clamp(min=1e-12).sqrt()
        return self.penalty_weight * (norm_B - 1).square()
