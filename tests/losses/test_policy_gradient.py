"""Terms of sampled tokens: against a float64 loop, and as gradients of expectations over all texts of a tiny vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from gakd import CrossEntropy, ForwardKL, Head, ReverseKL, TeacherOutput
from gakd.losses import KLToReference, PolicyGradient, token_pass
from gakd.objective import Term
from gakd.rewards import RewardToGo, Rollout, SingleStepDecomposition, TeacherLogRatio
from gakd.types import RowValues
from tests.sequences import Texts, gradient, kl

DOUBLE = torch.float64
ROWS, VOCABULARY, WIDTH = 23, 11, 5


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def drawn(temperature: float, weighed: bool) -> tuple[Tensor, Head, Tensor, dict[str, Tensor]]:
    """Hidden states, a head, tokens, and row values whose ratios lie on all sides of the clip."""
    hidden_NH, weight_VH = (
        normal(ROWS, WIDTH, seed=1).requires_grad_(),
        normal(VOCABULARY, WIDTH, seed=2).requires_grad_(),
    )
    labels_N = torch.randint(VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(3))
    log_probs_N = (hidden_NH @ weight_VH.T / temperature).log_softmax(-1)[torch.arange(ROWS), labels_N].detach()
    values = {
        "advantages": normal(ROWS, seed=4),
        "old_log_probs": log_probs_N + 0.4 * normal(ROWS, seed=5),
        "reference_log_probs": log_probs_N + normal(ROWS, seed=6),
    }
    if weighed:
        values["importance_weights"] = normal(ROWS, seed=7).exp()
    return hidden_NH, Head(weight_VH), labels_N, values


def surrogate(log_prob: Tensor, row: dict[str, float], clip: float | None) -> Tensor:
    """PPO, equation 7, one token: the worse of the two for whoever maximises it."""
    ratio, advantage = torch.exp(log_prob - row["old_log_probs"]), row["advantages"]
    objective = ratio * advantage
    if clip is not None:
        # A Python number where the clip holds the ratio: nothing of it depends on the student.
        moved = ratio.item()
        bounded = ratio if 1 - clip <= moved <= 1 + clip else min(max(moved, 1 - clip), 1 + clip)
        clipped = bounded * torch.tensor(advantage, dtype=DOUBLE)
        objective = objective if objective.item() <= clipped.item() else clipped
    return -row.get("importance_weights", 1.0) * objective


def k3(log_prob: Tensor, row: dict[str, float]) -> Tensor:
    ratio = torch.exp(row["reference_log_probs"] - log_prob)
    return ratio - 1 - torch.log(ratio)


@pytest.mark.parametrize("chunk_rows", [4, 64])
@pytest.mark.parametrize("weighed", [False, True], ids=["own text", "another's text"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", ["clipped", "unclipped", "reference"])
def test_losses_and_gradients_equal_a_loop(name, temperature, weighed, chunk_rows):
    clip = {"clipped": 0.2, "unclipped": None}.get(name)
    term = KLToReference(temperature) if name == "reference" else PolicyGradient(clip, temperature)
    hidden_NH, head, labels_N, values = drawn(temperature, weighed)
    result = token_pass(
        hidden_NH, head, labels_N, [term], {term.name: 0.3}, None, chunk_rows, row_values=RowValues(values)
    )
    ours = torch.autograd.grad(result.loss, [hidden_NH, head.weight])

    losses = []
    for n in range(ROWS):
        log_prob = (hidden_NH[n] @ head.weight.T / temperature).log_softmax(-1)[labels_N[n]]
        row = {key: float(values_N[n]) for key, values_N in values.items()}
        losses.append(k3(log_prob, row) if name == "reference" else surrogate(log_prob, row, clip))
    assert_close(result.losses[term.name], torch.stack(losses).detach())
    assert_close(ours, torch.autograd.grad(0.3 * torch.stack(losses).sum(), [hidden_NH, head.weight]))


def test_the_clip_silences_what_has_moved_far_enough_and_nothing_else():
    hidden_NH, head, labels_N, values = drawn(1.0, weighed=False)
    result = token_pass(
        hidden_NH, head, labels_N, [PolicyGradient(0.2)], {"policy_gradient": 1.0}, None, row_values=RowValues(values)
    )
    (ours_NH,) = torch.autograd.grad(result.loss, hidden_NH)
    log_probs_N = (hidden_NH @ head.weight.T).log_softmax(-1)[torch.arange(ROWS), labels_N]
    ratio_N = (log_probs_N - values["old_log_probs"]).exp()
    risen, fallen = ratio_N > 1.2, ratio_N < 0.8
    silent_N = (risen & (values["advantages"] > 0)) | (fallen & (values["advantages"] < 0))
    assert 2 < silent_N.sum() < ROWS - 2
    assert torch.equal((ours_NH == 0).all(-1), silent_N)


def test_terms_of_sampled_tokens_stand_beside_divergences_whose_teacher_speaks_about_some_rows():
    """Rows are then reordered inside the pass: advantages go with theirs."""
    hidden_NH, head, labels_N, values = drawn(1.0, weighed=True)
    rows = torch.tensor([17, 3, 8, 20])
    teacher = TeacherOutput(normal(len(rows), WIDTH, seed=8), Head(normal(VOCABULARY, WIDTH, seed=9)), rows)
    terms: list[Term] = [PolicyGradient(), ReverseKL()]
    coefficients = {"policy_gradient": 0.5, "reverse_kl": 2.0}
    both = token_pass(hidden_NH, head, labels_N, terms, coefficients, teacher, 5, row_values=RowValues(values))
    alone = [
        token_pass(hidden_NH, head, labels_N, [term], coefficients, teacher, 5, row_values=RowValues(values))
        for term in terms
    ]
    assert_close(both.losses, alone[0].losses | alone[1].losses)
    together, *apart = (torch.autograd.grad(part.loss, hidden_NH)[0] for part in (both, *alone))
    assert_close(together, apart[0] + apart[1])
    assert both.losses["reverse_kl"].count_nonzero() == len(rows)


class Toy:
    """A student that is a table of logits, as a head over one-hot prefixes: what the fused pass sees is the table itself."""

    def __init__(self, vocab_size: int = 3, horizon: int = 3) -> None:
        self.texts = Texts(vocab_size, horizon)
        self.student, self.teacher = (self.texts.table(seed) for seed in (0, 1))
        self.student.requires_grad_()

    def token_log_probs(self, table_SV: Tensor) -> Tensor:
        return table_SV.detach().log_softmax(-1)[self.texts.prefix_N, self.texts.token_N]

    def rows(self, values_N: Tensor, texts_B: Tensor) -> tuple[Tensor, Tensor]:
        """Values of every text's tokens, for some texts: as `[B, T]` with its mask."""
        mask_YT = torch.arange(self.texts.horizon) < self.texts.lengths_Y[:, None]
        values_YT = torch.zeros(mask_YT.shape, dtype=DOUBLE).masked_scatter(mask_YT, values_N)
        return values_YT[texts_B], mask_YT[texts_B]

    def gradients(self, reward, texts_B: Tensor, weights_B: Tensor, *more: Term) -> Tensor:
        """What the fused pass sends to the table for these texts, each with its importance weight, `[S, V]`."""
        columns = [self.rows(self.token_log_probs(table), texts_B)[0] for table in (self.student, self.teacher)]
        numbers_BT, mask_BT = self.rows(torch.arange(len(self.texts.prefix_N)).double(), texts_B)
        advantages_BT = reward(Rollout(mask_BT, *columns))
        place_N = numbers_BT[mask_BT].long()
        hidden_NS = torch.eye(len(self.texts.prefixes), dtype=DOUBLE)[self.texts.prefix_N[place_N]]
        values = {
            "advantages": advantages_BT[mask_BT],
            "old_log_probs": columns[0][mask_BT],
            "importance_weights": weights_B[:, None].expand_as(mask_BT)[mask_BT],
        }
        terms = [PolicyGradient(), *more]
        teacher = TeacherOutput(hidden_NS, Head(self.teacher.T))
        result = token_pass(
            hidden_NS, Head(self.student.T), self.texts.token_N[place_N], terms, {term.name: 1.0 for term in terms},
            teacher if more else None, row_values=RowValues(values),
        )  # fmt: skip
        return gradient(result.loss, self.student)

    @property
    def probs_Y(self) -> Tensor:
        return self.texts.log_probs(self.student).exp()

    def reverse_kl(self) -> Tensor:
        return kl(self.probs_Y, self.texts.log_probs(self.teacher).exp())


def test_over_all_texts_it_is_the_gradient_of_the_reverse_kl_between_texts():
    """Each text once, with its probability as its importance weight: the expectation itself."""
    toy = Toy()
    every = torch.arange(len(toy.texts.texts))
    ours = toy.gradients(TeacherLogRatio() >> RewardToGo(1), every, toy.probs_Y.detach())
    assert_close(ours, gradient(toy.reverse_kl(), toy.student))


def test_texts_of_another_sampler_give_the_same_gradient_by_their_weights():
    """Weights q/p~ of whole texts drawn from the teacher, in expectation over the teacher."""
    toy = Toy()
    every, teacher_Y = torch.arange(len(toy.texts.texts)), toy.texts.log_probs(toy.teacher).exp()
    weights_Y = toy.probs_Y.detach() / teacher_Y
    ours = toy.gradients(TeacherLogRatio() >> RewardToGo(1), every, teacher_Y * weights_Y)
    assert_close(ours, gradient(toy.reverse_kl(), toy.student))
    unweighed = toy.gradients(TeacherLogRatio() >> RewardToGo(1), every, teacher_Y)
    assert (unweighed - ours).norm() > 0.2 * ours.norm()


def test_an_estimate_from_samples_is_the_exact_gradient_within_its_standard_error():
    toy, size, batches = Toy(), 400, 60
    generator = torch.Generator().manual_seed(0)
    estimates = torch.stack([
        toy.gradients(
            TeacherLogRatio() >> RewardToGo(1),
            torch.multinomial(toy.probs_Y.detach(), size, replacement=True, generator=generator),
            torch.full((size,), 1 / size, dtype=DOUBLE),
        )
        for _ in range(batches)
    ])  # fmt: skip
    exact = gradient(toy.reverse_kl(), toy.student)
    error = estimates.std(0) / math.sqrt(batches)
    moved = error > 1e-9
    deviation = ((estimates.mean(0) - exact)[moved] / error[moved]).abs()
    assert moved.sum() > 10
    assert deviation.max() < 4
    assert deviation.square().mean() < 2  # of a chi-square it is 1


def test_minillms_two_parts_are_the_whole_gradient():
    """The single-step part in closed form, the rest as a policy gradient: equation 3, exactly."""
    toy = Toy()
    every = torch.arange(len(toy.texts.texts))
    weights_Y = toy.probs_Y.detach()
    long = toy.gradients(TeacherLogRatio() >> RewardToGo(1) >> SingleStepDecomposition(1), every, weights_Y)
    rows = torch.eye(len(toy.texts.prefixes), dtype=DOUBLE)
    closed = token_pass(
        rows, Head(toy.student.T), torch.zeros(len(rows), dtype=torch.long), [ReverseKL()], {"reverse_kl": 1.0},
        TeacherOutput(rows, Head(toy.teacher.T)), kernel="eager",
    ).losses["reverse_kl"]  # fmt: skip
    reach_S = toy.texts.reach(weights_Y)
    prefixes = toy.student.log_softmax(-1), toy.teacher.log_softmax(-1)
    token_kl_S = (prefixes[0].exp() * (prefixes[0] - prefixes[1])).sum(-1)
    assert_close(closed, token_kl_S.detach())
    single = gradient((reach_S * token_kl_S).sum(), toy.student)
    assert_close(long + single, gradient(toy.reverse_kl(), toy.student))


def test_minillms_language_modelling_term_has_the_gradient_of_its_release():
    """`0.5 CE + 0.5 (-sum p log q)`: the teacher's entropy, which forward KL holds, moves nothing."""
    hidden_NH, head, labels_N, _ = drawn(1.0, weighed=False)
    teacher = TeacherOutput(normal(ROWS, WIDTH, seed=8), Head(normal(VOCABULARY, WIDTH, seed=9)))
    ours = token_pass(
        hidden_NH, head, labels_N, [CrossEntropy(), ForwardKL()], {"cross_entropy": 0.5 / ROWS, "forward_kl": 0.5 / ROWS}, teacher
    )  # fmt: skip
    log_q_NV = (hidden_NH @ head.weight.T).log_softmax(-1)
    soft_N = -(teacher.logits().softmax(-1) * log_q_NV).sum(-1)
    release = 0.5 * torch.nn.functional.nll_loss(log_q_NV, labels_N) + 0.5 * soft_N.mean()
    assert_close(*(torch.autograd.grad(loss, [hidden_NH, head.weight]) for loss in (ours.loss, release)))


def test_missing_row_values_and_bad_clips_are_refused():
    hidden_NH, head, labels_N, values = drawn(1.0, weighed=False)
    del values["advantages"]
    with pytest.raises(
        ValueError, match=r"reads advantages of each row, the batch has \['old_log_probs', 'reference_log_"
    ):
        token_pass(
            hidden_NH, head, labels_N, [PolicyGradient()], {"policy_gradient": 1.0}, None, row_values=RowValues(values)
        )
    for clip in (0.0, 1.0, -0.2):
        with pytest.raises(ValueError, match="clip in \\(0, 1\\) or None, got"):
            PolicyGradient(clip)
