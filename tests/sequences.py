"""Every text of a tiny vocabulary, enumerated, and a game played on chosen logits: what `test_theory.py` checks against."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn

from gakd import Adversarial, Head, LogitReadout, ReverseKL, StudentOutput, TeacherOutput
from gakd.adversary import AdversarialOutput, Game
from gakd.losses.term import TokenChunk
from gakd.losses.token_loss import TokenLoss
from gakd.objective import Coefficients
from gakd.types import Batch, StudentRows

END = 0


class Texts:
    """All texts over `vocab_size` tokens, of which token 0 ends one, cut at `horizon` tokens.

    A model is a table of logits `[S, V]`, a row for each of the S prefixes that a token can follow. `N` runs over the
    tokens of all Y texts, one text after the other.
    """

    def __init__(self, vocab_size: int, horizon: int) -> None:
        self.vocab_size, self.horizon = vocab_size, horizon
        words = range(1, vocab_size)
        self.prefixes = [prefix for length in range(horizon) for prefix in product(words, repeat=length)]
        self.texts = [(*prefix, END) for prefix in self.prefixes] + list(product(words, repeat=horizon))
        number = {prefix: index for index, prefix in enumerate(self.prefixes)}
        steps = [
            (index, number[text[:step]], text[step])
            for index, text in enumerate(self.texts)
            for step in range(len(text))
        ]
        self.text_N, self.prefix_N, self.token_N = torch.tensor(steps).T
        self.lengths_Y = torch.bincount(self.text_N).double()
        same_text_NN = self.text_N[:, None] == self.text_N[None, :]
        self.earlier_NN = same_text_NN.double().tril(-1)  # times values [N]: their sum over a text's earlier tokens

    def table(self, seed: int, scale: float = 1.0) -> Tensor:
        """A random model."""
        generator = torch.Generator().manual_seed(seed)
        return scale * torch.randn(len(self.prefixes), self.vocab_size, dtype=torch.float64, generator=generator)

    def over_tokens(self, values_N: Tensor) -> Tensor:
        """Sums over the tokens of each text, `[Y]`."""
        return values_N.new_zeros(len(self.texts)).index_add(0, self.text_N, values_N)

    def log_probs(self, logits_SV: Tensor) -> Tensor:
        """log-probability of each text, `[Y]`."""
        return self.over_tokens(logits_SV.log_softmax(-1)[self.prefix_N, self.token_N])

    def reach(self, probs_Y: Tensor) -> Tensor:
        """Probability that a text runs through a prefix, `[S]`: the sum over the texts that do."""
        return probs_Y.new_zeros(len(self.prefixes)).index_add(0, self.prefix_N, probs_Y[self.text_N])

    def losses(self, term: TokenLoss, student_SV: Tensor, teacher_SV: Tensor) -> Tensor:
        """A token term of the package, summed over the tokens of each text, `[Y]`."""
        rows_NV, teacher_rows_NV = (table.log_softmax(-1)[self.prefix_N] for table in (student_SV, teacher_SV))
        return self.over_tokens(term.chunk_losses(TokenChunk(rows_NV, teacher_rows_NV, self.token_N)))


def models(texts: Texts, seed: int = 0, scale: float = 1.5) -> tuple[Tensor, Tensor]:
    """A student's table, with gradient, and a teacher's."""
    return texts.table(2 * seed + 1, scale).requires_grad_(), texts.table(2 * seed, scale)


def probs(texts: Texts, student_SV: Tensor, teacher_SV: Tensor) -> tuple[Tensor, Tensor]:
    """P and Q, `[Y]`."""
    return texts.log_probs(teacher_SV).exp(), texts.log_probs(student_SV).exp()


def token_loss(texts: Texts, student_SV: Tensor, teacher_SV: Tensor) -> Tensor:
    """L: the package's token-level reverse KL on the teacher's text."""
    return (texts.log_probs(teacher_SV).exp() * texts.losses(ReverseKL(), student_SV, teacher_SV)).sum()


def token_kl(student_SV: Tensor, teacher_SV: Tensor) -> Tensor:
    """KL(q‖p) after each prefix, `[S]`, by its formula."""
    return (student_SV.softmax(-1) * (student_SV.log_softmax(-1) - teacher_SV.log_softmax(-1))).sum(-1)


def kl(left: Tensor, right: Tensor) -> Tensor:
    return (left * (left.log() - right.log())).sum()


def total_variation(left: Tensor, right: Tensor) -> Tensor:
    return (left - right).abs().sum() / 2


def jensen_shannon(left: Tensor, right: Tensor) -> Tensor:
    middle = (left + right) / 2
    return (kl(left, middle) + kl(right, middle)) / 2


def gradient(value: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(value, of, retain_graph=True)[0]


def minimise(leaf: Tensor, loss: Callable[[], Tensor]) -> None:
    optimizer = torch.optim.LBFGS([leaf], max_iter=500, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> float:
        value = loss()
        leaf.grad = gradient(value, leaf)
        return value.item()

    optimizer.step(closure)


class LinearDiscriminator(nn.Module):
    """`<w, z>` over all positions and entries of what is read."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length, width))

    def forward(self, readout_BTR: Tensor, mask_BT: Tensor) -> Tensor:
        return (readout_BTR * self.weight * mask_BT.unsqueeze(-1)).sum((1, 2))


def identity_game(discriminator: nn.Module, game: Game, vocab_size: int, centered: bool = False) -> Adversarial:
    """An adversary that reads logits as they are: its map is the identity."""
    readout = LogitReadout(vocab_size, vocab_size, centered)
    readout.weight.data = torch.eye(vocab_size)
    return Adversarial(discriminator, game, readout)


def play(adversarial: Adversarial, student_BTV: Tensor, teacher_BTV: Tensor) -> AdversarialOutput:
    """One step on B texts of T tokens with these logits, losses averaged over texts; fresh gradients of the discriminator."""
    count, length, vocab_size = student_BTV.shape
    ids_BT = torch.zeros(count, length, dtype=torch.long)
    batch = Batch.of(ids_BT, ids_BT + 1, ids_BT)
    head, rows_NV = Head(torch.eye(vocab_size)), student_BTV.flatten(0, 1)
    adversarial.zero_grad()
    live_NR = adversarial.readout.live(rows_NV, head, step_rows=len(rows_NV))
    output = StudentOutput(torch.zeros(()), {}, StudentRows(live_NR, rows_NV.detach()))
    teacher = TeacherOutput(teacher_BTV.flatten(0, 1).detach(), head)
    played = adversarial(output, teacher, batch, Coefficients({"adversarial": 1 / count}, 1 / count, len(rows_NV)))
    adversarial.flush()
    return played
