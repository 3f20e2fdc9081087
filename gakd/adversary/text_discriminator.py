"""A language model that scores whole texts, prompt and response, by their tokens: GAD's discriminator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from gakd.adversary.games import Game
from gakd.types import IGNORE_INDEX, Batch


class TextDiscriminator(nn.Module):
    """A backbone and a scalar head at the last token of the response, its end-of-text token where it has one.

    Reads the tokens that were drawn: nothing flows through them to a student, which learns from the score as a reward.
    Padding stands behind a text, where causal attention does not look. Starts at 0 for every text. Dropout stays off.
    GAD, arXiv 2511.10643, section 2: the backbone is the student's.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = nn.Linear(backbone.config.hidden_size, 1, bias=False)  # games see differences alone
        nn.init.zeros_(self.score.weight)
        self.train()

    def train(self, mode: bool = True) -> TextDiscriminator:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, batch: Batch) -> Tensor:
        """Scores `[B]`; of a sequence without response tokens, that of its first token."""
        ids_BT, last_B = whole_texts(batch)
        hidden_BTH = self.backbone(input_ids=ids_BT, use_cache=False).last_hidden_state
        return self.score(hidden_BTH[torch.arange(len(last_B), device=last_B.device), last_B]).squeeze(-1)


@torch.no_grad()
def scores_of(discriminator: nn.Module, window: Sequence[Batch]) -> Tensor:
    """Scores of all sequences of a step, `[B]`, in the window's order."""
    return torch.cat([discriminator(batch) for batch in window])


def compare(
    discriminator: nn.Module, game: Game, real: Sequence[Batch], fake: Sequence[Batch], pairs: int
) -> dict[str, float]:
    """Adds the gradient of the game's mean over `pairs`, those of all ranks, to the discriminator's parameters.

    Micro-batch by micro-batch, the i-th text of `real`, the teacher's, against the i-th of `fake`; with
    `RelativisticGAN(0, 0)` the Bradley-Terry loss, `-log sigmoid(real - fake)`. Returns this rank's means: the loss, the
    margin, and how often real is above fake, ties counting half. Games with penalties need more than tokens: ValueError.
    """
    if game.penalties:
        raise ValueError(f"drawn tokens have no gradient to penalise: give a game without penalties, got {game}")
    losses, margins = [], []
    for real_batch, fake_batch in zip(real, fake, strict=True):
        real_B, fake_B = discriminator(real_batch), discriminator(fake_batch)
        losses_B = game.discriminator(fake_B, real_B)
        (losses_B.sum() / pairs).backward()
        losses.append(losses_B.detach())
        margins.append((real_B - fake_B).detach())
    margin_B = torch.cat(margins)
    return {
        "discriminator": float(torch.cat(losses).mean()),
        "discriminator_margin": float(margin_B.mean()),
        "discriminator_accuracy": float((margin_B.sign() + 1).mean() / 2),
    }


def whole_texts(batch: Batch) -> tuple[Tensor, Tensor]:
    """Token ids `[B, T + 1]` with the last label, which a batch's inputs leave out, and where each text ends, `[B]`."""
    supervised_BT = batch.labels != IGNORE_INDEX
    positions_T = torch.arange(batch.labels.shape[1], device=batch.labels.device)
    at_B = (supervised_BT * positions_T).amax(1)
    label_B1 = batch.labels.gather(1, at_B.unsqueeze(1))
    last_B = torch.where(supervised_BT.any(1), at_B + 1, 0)
    ids_BT = pad(batch.input_ids, (0, 1))
    first_B1 = ids_BT[:, :1]
    return ids_BT.scatter(
        1, last_B.unsqueeze(1), torch.where(supervised_BT.any(1, keepdim=True), label_B1, first_B1)
    ), last_B
