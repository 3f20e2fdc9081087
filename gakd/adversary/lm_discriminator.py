"""A pretrained language model as a discriminator: it reads rows of a readout in place of token embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gakd.models.loading import load_backbone


class LMDiscriminator(nn.Module):
    """Any Hugging Face backbone on the readout, and a linear score of what it says at the last real token.

    A linear map brings the readout to the backbone's width where they differ. Padding stands behind the text and is masked, so
    it changes nothing, and the score is read at the last response token, never at padding (the release reads the last
    position, whatever stands there). Dropout stays off: a sequence is scored more than once. The backbone needs second
    derivatives, so its attention must be the eager one. Raises ValueError for any other.
    """

    def __init__(self, backbone: PreTrainedModel, readout_width: int) -> None:
        super().__init__()
        if (attention := backbone.config._attn_implementation) != "eager":
            raise ValueError(
                f"penalties need second derivatives, which {attention} attention lacks: call "
                f'backbone.set_attn_implementation("eager"), or load it with gakd.pretrained_discriminator'
            )
        width = backbone.config.hidden_size
        self.readout_width = readout_width
        self.backbone = backbone
        self.embed = nn.Identity() if readout_width == width else nn.Linear(readout_width, width, bias=False)
        self.score = nn.Linear(width, 1)
        backbone.get_input_embeddings().requires_grad_(False)  # never read
        self.train()

    def train(self, mode: bool = True) -> LMDiscriminator:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, readout_BTR: Tensor, mask_BT: Tensor) -> Tensor:
        seen_BT = mask_BT.to(torch.long, copy=True)
        seen_BT[:, 0] = 1  # a sequence without any real token attends to something: its score, unused, stays finite
        hidden_BTH = self.backbone(
            inputs_embeds=self.embed(readout_BTR), attention_mask=seen_BT, use_cache=False
        ).last_hidden_state
        last_B = (mask_BT.sum(1) - 1).clamp(min=0)  # packed: the real tokens come first
        last_BH = hidden_BTH[torch.arange(len(last_B), device=last_B.device), last_B]
        return self.score(last_BH).squeeze(-1)


def pretrained_discriminator(
    name: str, readout_width: int, layers: Sequence[int] = (), trust_remote_code: bool = False
) -> LMDiscriminator:
    """`LMDiscriminator` on a model by its folder, hub id or short name, in fp32; `layers` as in `models.prune_layers`."""
    return LMDiscriminator(load_backbone(name, layers, trust_remote_code=trust_remote_code), readout_width)
