"""Sequence discriminators: what a readout says of each response token, `[B, T, R]` and a mask, to a score a sequence `[B]`.

All ignore padding exactly and see response tokens only. Attention is written out, because fused attention has no double
backward and gradient penalties need one.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn


def masked_mean(values_BTW: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the real positions `[B, W]`; 0 for a sequence without any."""
    weights_BT1 = mask_BT.unsqueeze(-1).to(values_BTW.dtype)
    return (values_BTW * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)


def token_mlp(readout_width: int, width: int, layers: int) -> nn.Sequential:
    """`layers` linear maps with SiLU, on each token by itself; smooth, since penalties take second derivatives."""
    blocks: list[nn.Module] = []
    for index in range(layers):
        blocks += [nn.Linear(readout_width if index == 0 else width, width), nn.SiLU()]
    return nn.Sequential(*blocks)


class MLPDiscriminator(nn.Module):
    """An MLP on each token's readout, the mean over tokens, a linear score: order-blind and cheap."""

    def __init__(self, readout_width: int, width: int = 256, layers: int = 2) -> None:
        super().__init__()
        self.readout_width = readout_width
        self.body = token_mlp(readout_width, width, layers)
        self.score = nn.Linear(width, 1)

    def forward(self, readout_BTR: Tensor, mask_BT: Tensor) -> Tensor:
        return self.score(masked_mean(self.body(readout_BTR), mask_BT)).squeeze(-1)


class AttentionPoolDiscriminator(nn.Module):
    """An MLP on each token's readout, a learned weight for each token, a linear score: order-blind, but it may pick tokens.

    As the release's SimpleMLPDiscriminator pools, without its batch normalisation, which lets sequences of a batch see each
    other, and its dropout, which makes two scores of one sequence differ.
    """

    def __init__(self, readout_width: int, width: int = 256, layers: int = 2) -> None:
        super().__init__()
        self.readout_width = readout_width
        self.body = token_mlp(readout_width, width, layers)
        self.attention = nn.Linear(width, 1)
        self.score = nn.Linear(width, 1)

    def forward(self, readout_BTR: Tensor, mask_BT: Tensor) -> Tensor:
        hidden_BTW = self.body(readout_BTR)
        # A large finite number, not -inf: a sequence without any real position must stay finite, its score unused.
        attention_BT = self.attention(hidden_BTW).squeeze(-1)
        attention_BT = attention_BT.masked_fill(~mask_BT, torch.finfo(attention_BT.dtype).min).softmax(-1)
        return self.score((attention_BT.unsqueeze(-1) * hidden_BTW).sum(1)).squeeze(-1)


class TransformerDiscriminator(nn.Module):
    """A small bidirectional Transformer over the response, mean-pooled, with a linear score.

    Sinusoidal positions count from the first response token, so a prompt's length leaks nothing and any length works.
    """

    def __init__(self, readout_width: int, width: int = 256, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"width must be even and a multiple of heads, got width={width}, heads={heads}")
        self.readout_width, self.width = readout_width, width
        self.embed = nn.Linear(readout_width, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)

    def forward(self, readout_BTR: Tensor, mask_BT: Tensor) -> Tensor:
        hidden_BTW = self.embed(readout_BTR) + sinusoids(readout_BTR.shape[1], self.width, readout_BTR)
        for block in self.blocks:
            hidden_BTW = block(hidden_BTW, mask_BT)
        return self.score(masked_mean(self.norm(hidden_BTW), mask_BT)).squeeze(-1)


class _Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden_BTW: Tensor, mask_BT: Tensor) -> Tensor:
        hidden_BTW = hidden_BTW + self.attend(self.attention_norm(hidden_BTW), mask_BT)
        return hidden_BTW + self.mlp(self.mlp_norm(hidden_BTW))

    def attend(self, hidden_BTW: Tensor, mask_BT: Tensor) -> Tensor:
        query, key, value = rearrange(
            self.query_key_value(hidden_BTW), "b t (three h d) -> three b h t d", three=3, h=self.heads
        )
        scores_BhTT = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        # A large finite number, not -inf: a sequence without any real position must stay finite, its score unused.
        scores_BhTT = scores_BhTT.masked_fill(~mask_BT[:, None, None, :], torch.finfo(scores_BhTT.dtype).min)
        return self.out(rearrange(scores_BhTT.softmax(-1) @ value, "b h t d -> b t (h d)"))


def sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """Fixed positions `[length, width]` (Vaswani et al., arXiv 1706.03762, section 3.5), formed where they are used."""
    device = like.device  # a table of the CPU's would be waited for, in every forward
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angles = torch.arange(length, device=device).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)
