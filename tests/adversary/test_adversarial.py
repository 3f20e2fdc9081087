"""The adversary without logits against the direct computation on logits, in float64, with torch's own autograd."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2Model

from gakd import (
    Adversarial,
    AttentionPoolDiscriminator,
    CenteredLogitReadout,
    ExpectedEmbedding,
    Head,
    HiddenReadout,
    HingeGAN,
    LMDiscriminator,
    LogitReadout,
    LogProbReadout,
    MLPDiscriminator,
    NonSaturatingGAN,
    RelativisticGAN,
    SoftCappedLogitReadout,
    StudentOutput,
    TeacherOutput,
    TransformerDiscriminator,
    WassersteinGAN,
)
from gakd.adversary import GameWatch
from gakd.adversary.packing import pack, pack_mask
from gakd.objective import Coefficients
from gakd.types import IGNORE_INDEX, Batch, StudentRows

B, T, V, H_STUDENT, H_TEACHER, R = 4, 7, 40, 8, 10, 5
WEIGHT = 0.7
pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(params=["one after the other", "both at once"])
def pace(request, monkeypatch):
    """How the discriminator's two points are sent back: as on a CPU, or as where a GPU waits to be asked."""
    at_once = request.param == "both at once"
    monkeypatch.setattr(Adversarial, "_waits_for_launches", lambda self, readout_BTR: at_once)


def hidden_readout(vocab_size: int, width: int) -> HiddenReadout:
    return HiddenReadout(H_STUDENT, H_TEACHER)


def language_model(width: int) -> LMDiscriminator:
    """Of a kind that computes in its weights' dtype throughout: others have norms in fp32, whatever the rest."""
    config = GPT2Config(
        vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    return LMDiscriminator(GPT2Model(config), width)


DISCRIMINATORS = {
    "transformer": lambda width: TransformerDiscriminator(width, width=8, heads=2),
    "mlp": lambda width: MLPDiscriminator(width, width=8),
    "attention_pool": lambda width: AttentionPoolDiscriminator(width, width=8),
    "language_model": language_model,
}
READOUTS = [
    LogitReadout, CenteredLogitReadout, SoftCappedLogitReadout, LogProbReadout, ExpectedEmbedding, hidden_readout,
]  # fmt: skip


def player(discriminator: str = "transformer", readout=CenteredLogitReadout, r1=3.0, r2=5.0) -> Adversarial:
    torch.manual_seed(1)
    width = H_TEACHER if readout is hidden_readout else R
    built = DISCRIMINATORS[discriminator](width)
    return Adversarial(built, RelativisticGAN(r1, r2), readout(V, width))


def material(bias: bool = False, padded: int = 0, student_scale: float = 1.0):
    torch.manual_seed(2)
    mask = torch.rand(B, T) > 0.3
    mask[0, :3] = False
    rows = int(mask.sum())
    head = Head(
        torch.randn(V + padded, H_STUDENT, requires_grad=True),
        torch.randn(V + padded, requires_grad=True) if bias else None,
        student_scale,
    )
    teacher = TeacherOutput(torch.randn(rows, H_TEACHER), Head(torch.randn(V + 2 * padded, H_TEACHER)))
    return mask, torch.randn(rows, H_STUDENT, requires_grad=True), head, teacher


def batch_of(mask: Tensor) -> Batch:
    """A batch whose supervised positions are the mask's; the adversary reads nothing else of it."""
    ids = torch.zeros(mask.shape, dtype=torch.long)
    return Batch.of(ids, ids + 1, ids.masked_fill(~mask, IGNORE_INDEX))


FACTORED, DIRECT = float("inf"), 0.0  # rows of a step so many, or so few, that one way is taken for sure


def play(adversarial, mask, hidden, head, teacher, sequences=B, weight=WEIGHT, step_rows=FACTORED):
    """One micro-batch: the discriminator's gradient lands in its parameters, the student's loss is returned."""
    coefficients = Coefficients({"adversarial": weight / sequences}, 1 / sequences, step_rows)
    known = [own.logsumexp(-1).detach() for own in (head.logits(hidden, V), teacher.head.logits(teacher.hidden_NH, V))]
    rows = StudentRows(adversarial.readout.live(hidden, head, step_rows, known[0]), hidden.detach(), *known)
    return adversarial(StudentOutput(torch.zeros(()), {}, rows), teacher, batch_of(mask), coefficients)


def what_is_read(readout, hidden: Tensor, head: Head) -> Tensor:
    """Of a model, whole: what penalties are taken with respect to."""
    if isinstance(readout, HiddenReadout):
        return hidden @ readout.student_map.weight.T if hidden.shape[1] == H_STUDENT else hidden
    logits = head.logits(hidden, V)
    if isinstance(readout, ExpectedEmbedding):
        return logits.softmax(-1)
    return logits.log_softmax(-1) if isinstance(readout, LogProbReadout) else logits


def map_of(readout) -> Tensor | None:
    if isinstance(readout, HiddenReadout):
        return None
    weight_RV = readout.logits.weight if isinstance(readout, LogProbReadout) else readout.weight
    centered = isinstance(readout, (LogitReadout, SoftCappedLogitReadout)) and readout.centered
    return weight_RV - weight_RV.mean(-1, keepdim=True) if centered else weight_RV


def direct(adversarial, mask, hidden, head, teacher) -> tuple[Tensor, Tensor]:
    """Both losses on all that is read, `[N, V]`, as one would write them with memory to spare."""
    readout, game = adversarial.readout, adversarial.game

    def score(read: Tensor) -> Tensor:
        weight = map_of(readout)
        rows = read if weight is None else read @ weight.T
        return adversarial.discriminator(pack(rows, batch_of(mask)), pack_mask(batch_of(mask)))

    student_read = what_is_read(readout, hidden, head)
    real_in = what_is_read(readout, teacher.hidden_NH, teacher.head).detach().requires_grad_()
    fake_in = student_read.detach().requires_grad_()
    real, fake = score(real_in), score(fake_in)
    (real_gradient,) = torch.autograd.grad(real.sum(), real_in, create_graph=True)
    (fake_gradient,) = torch.autograd.grad(fake.sum(), fake_in, create_graph=True)
    penalty = game.r1 / 2 * real_gradient.square().sum() + game.r2 / 2 * fake_gradient.square().sum()
    discriminator_loss = (game.discriminator(fake, real).sum() + penalty) / B
    student_loss = game.student(score(student_read), real.detach()).sum() * WEIGHT / B
    return student_loss, discriminator_loss


class Played(NamedTuple):
    """One way to play a micro-batch: the student's loss, what it trains, and what the discriminator's trains."""

    loss: Tensor
    students: list[Tensor]
    discriminators: list[Tensor]


def both_ways(adversarial, case, way=FACTORED) -> tuple[Played, Played]:
    """As played, and as computed directly on all that is read."""
    mask, hidden, head, teacher = material(**case)
    map_weights = [adversarial.readout.student_map.weight] if adversarial.readout.student_map is not None else []
    heads = [] if isinstance(adversarial.readout, HiddenReadout) else [head.weight, head.bias]
    leaves = [tensor for tensor in (hidden, *heads, *map_weights) if tensor is not None]
    own = [parameter for parameter in adversarial.parameters() if parameter.requires_grad]
    student_loss, discriminator_loss = direct(adversarial, mask, hidden, head, teacher)
    gradients = (torch.autograd.grad(student_loss, leaves), torch.autograd.grad(discriminator_loss, own))
    expected = Played(student_loss.detach(), *map(list, gradients))

    played = play(adversarial, mask, hidden, head, teacher, step_rows=way)
    played.loss.backward()
    adversarial.flush()
    return Played(played.loss.detach(), [leaf.grad for leaf in leaves], [leaf.grad for leaf in own]), expected


@pytest.mark.parametrize("discriminator", ["transformer", "mlp"])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(
    "case", [{}, {"padded": 3}, {"bias": True, "student_scale": 0.5}, {"bias": True, "padded": 2}], ids=str
)
@pytest.mark.parametrize("way", [FACTORED, DIRECT], ids=["factored", "direct"])
def test_both_players_gradients_equal_the_direct_ones(discriminator, readout, case, way, pace):
    found, expected = both_ways(player(discriminator, readout), case, way)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.students, expected.students, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.discriminators, expected.discriminators, rtol=1e-9, atol=1e-14)


def test_a_micro_batch_runs_the_discriminator_no_more_often_than_it_must(pace):
    """One after the other the teacher's side twice: its score comes first, its graph when the student's is gone."""
    adversarial, runs = player(), []
    adversarial.discriminator.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    play(adversarial, *material()).loss.backward()
    assert runs == ([True] if adversarial._waits_for_launches(torch.empty(0)) else [False, True, True])


@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
@pytest.mark.parametrize("game", [NonSaturatingGAN, HingeGAN])
@pytest.mark.parametrize("readout", READOUTS)
def test_every_game_discriminator_and_readout_together(discriminator, game, readout, pace):
    adversarial = player(discriminator, readout)
    adversarial.game = game(r1=2.0, r2=7.0)
    found, expected = both_ways(adversarial, {"bias": True})
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.students, expected.students, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.discriminators, expected.discriminators, rtol=1e-9, atol=1e-14)


def raw_capped(vocab_size: int, width: int) -> SoftCappedLogitReadout:
    return SoftCappedLogitReadout(vocab_size, width, centered=False)


@pytest.mark.parametrize("readout", [SoftCappedLogitReadout, raw_capped, ExpectedEmbedding])
@pytest.mark.parametrize("teachers", [None, 3.0])
def test_soft_capped_heads_are_read_as_they_are_or_through_their_probabilities(readout, teachers):
    adversarial = player(readout=readout)
    mask, hidden, head, teacher = material(bias=True, student_scale=0.5)
    head = head._replace(softcap=2.0)
    teacher = TeacherOutput(teacher.hidden_NH, teacher.head._replace(softcap=teachers))
    student_loss, discriminator_loss = direct(adversarial, mask, hidden, head, teacher)
    leaves, own = (hidden, head.weight, head.bias), tuple(adversarial.parameters())
    expected = torch.autograd.grad(student_loss, leaves) + torch.autograd.grad(discriminator_loss, own)
    play(adversarial, mask, hidden, head, teacher).loss.backward()
    adversarial.flush()
    for leaf, gradient in zip(leaves + own, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-9, atol=1e-14)


def test_an_embedding_that_does_not_train_gets_no_gradient_and_scores_as_it_was_given():
    given = torch.randn(V, R)
    adversarial = player()
    adversarial.readout = ExpectedEmbedding(V, R, embeddings_VR=given, trains=False)
    mask, hidden, head, teacher = material()
    student_loss, discriminator_loss = direct(adversarial, mask, hidden, head, teacher)
    own = list(adversarial.discriminator.parameters())
    expected = torch.autograd.grad(discriminator_loss, own)
    torch.testing.assert_close(play(adversarial, mask, hidden, head, teacher).loss, student_loss)
    adversarial.flush()
    assert adversarial.readout.weight.grad is None
    for parameter, gradient in zip(own, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-14)


def test_hidden_states_of_one_width_are_read_as_they_are():
    readout = HiddenReadout(6, 6)
    assert readout.student_map is None
    hidden, head = torch.randn(5, 6), Head(torch.randn(V, 6))
    assert torch.equal(readout.live(hidden, head, 5.0), hidden)
    assert torch.equal(readout.detached(hidden, None, 5.0), hidden)
    with pytest.raises(ValueError, match="width 6, the teacher's have 7"):
        readout.detached(torch.randn(5, 7), head, 5.0)


def test_the_map_of_a_narrower_student_is_the_students_and_not_the_discriminators():
    adversarial = player(readout=hidden_readout)
    map_weight = adversarial.readout.student_map.weight
    assert all(parameter is not map_weight for parameter in adversarial.parameters())
    step = material()
    played = play(adversarial, *step)
    assert map_weight.grad is None  # the discriminator's own update leaves it alone
    played.loss.backward()
    assert map_weight.grad.abs().sum() > 0


@pytest.mark.parametrize("way", [FACTORED, DIRECT], ids=["factored", "direct"])
@pytest.mark.parametrize("readout", [LogitReadout, CenteredLogitReadout])
def test_the_wasserstein_penalty_on_interpolates_of_logits_equals_the_direct_one(readout, way, pace):
    adversarial = player(readout=readout)
    adversarial.game = WassersteinGAN(penalty_weight=7.0)
    mask, hidden, head, teacher = material()
    student_logits, teacher_logits = (hidden @ head.weight.T).detach(), teacher.logits()
    weight = adversarial.readout.weight - (
        adversarial.readout.weight.mean(-1, keepdim=True) if adversarial.readout.centered else 0
    )

    def score(logits: Tensor) -> Tensor:
        return adversarial.discriminator(pack(logits @ weight.T, batch_of(mask)), pack_mask(batch_of(mask)))

    torch.manual_seed(5)
    share = torch.rand(B)[mask.nonzero()[:, 0], None]
    between = (share * teacher_logits + (1 - share) * student_logits).requires_grad_()
    (gradient,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    norms = torch.zeros(B).index_add(0, mask.nonzero()[:, 0], gradient.square().sum(-1)).sqrt()
    penalty = 7 * (norms - 1).square()
    loss = ((score(student_logits) - score(teacher_logits)) + penalty).sum() / B
    expected = torch.autograd.grad(loss, list(adversarial.parameters()))

    torch.manual_seed(5)
    played = play(adversarial, mask, hidden, head, teacher, step_rows=way)
    played.loss.backward()
    adversarial.flush()
    torch.testing.assert_close(played.losses["discriminator_penalty"], penalty.detach())
    torch.testing.assert_close(played.losses["adversarial"], -score(student_logits).detach())
    for parameter, gradient in zip(adversarial.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-13)


def test_one_pass_pays_on_a_gpu_where_the_discriminator_is_small():
    small, large = player("mlp"), player("mlp")
    large.discriminator = MLPDiscriminator(4096, width=8192)
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    assert small._waits_for_launches(on_gpu)
    assert not large._waits_for_launches(on_gpu)
    assert not small._waits_for_launches(torch.zeros(1))


@pytest.mark.slow
def test_gradcheck_of_the_students_loss():
    adversarial = player()
    mask, hidden, head, teacher = material()

    def loss(hidden, weight):
        adversarial.flush()
        return play(adversarial, mask, hidden, Head(weight), teacher).loss

    assert torch.autograd.gradcheck(loss, (hidden, head.weight))


def discriminator_gradients(adversarial, *material_of_step, **options) -> list[Tensor]:
    play(adversarial, *material_of_step, **options)
    adversarial.flush()
    gradients = [parameter.grad.clone() for parameter in adversarial.parameters()]
    adversarial.zero_grad()
    return gradients


@pytest.mark.parametrize("penalties", [(10.0, 0.0), (0.0, 10.0)], ids=["r1", "r2"])
@pytest.mark.parametrize("discriminator", ["transformer", "mlp"])
def test_each_penalty_changes_the_discriminators_gradient(penalties, discriminator, pace):
    step = material()
    without = discriminator_gradients(player(discriminator, r1=0, r2=0), *step)
    with_penalty = discriminator_gradients(player(discriminator, r1=penalties[0], r2=penalties[1]), *step)
    moved = [not torch.allclose(a, b, rtol=1e-3, atol=1e-9) for a, b in zip(without, with_penalty, strict=True)]
    # The released code's penalties are constants: there nothing would move.
    assert sum(moved) > len(moved) / 2


def test_the_students_loss_leaves_the_discriminator_alone_and_the_discriminators_the_student():
    adversarial = player()
    mask, hidden, head, teacher = material()
    played = play(adversarial, mask, hidden, head, teacher)
    assert hidden.grad is None
    assert head.weight.grad is None
    adversarial.flush()
    before = [parameter.grad.clone() for parameter in adversarial.parameters()]
    played.loss.backward()
    assert all(torch.equal(a, parameter.grad) for a, parameter in zip(before, adversarial.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in adversarial.parameters())


def test_a_frozen_head_gets_no_gradient():
    adversarial = player()
    mask, hidden, head, teacher = material()
    frozen = Head(head.weight.detach())
    play(adversarial, mask, hidden, frozen, teacher).loss.backward()
    assert frozen.weight.grad is None
    assert hidden.grad is not None


def split(mask: Tensor, rows: Tensor, sequences: slice) -> Tensor:
    owner = mask.nonzero()[:, 0]
    return rows[(owner >= sequences.start) & (owner < sequences.stop)]


EVERY = pytest.mark.parametrize(
    ("discriminator", "readout"),
    [(name, kind) for name in DISCRIMINATORS for kind in READOUTS],
)


@EVERY
@pytest.mark.parametrize("way", [FACTORED, DIRECT], ids=["factored", "direct"])
def test_gradients_do_not_depend_on_how_the_step_is_cut_into_micro_batches(discriminator, readout, way):
    mask, hidden, head, teacher = material()
    whole, cut = player(discriminator, readout), player(discriminator, readout)
    play(whole, mask, hidden, head, teacher).loss.backward()
    whole.flush()
    expected = [leaf.grad for leaf in leaves_of(whole, hidden, head)]
    hidden.grad = head.weight.grad = None
    for part in (slice(0, 1), slice(1, 4)):
        own = TeacherOutput(split(mask, teacher.hidden_NH, part), teacher.head)
        play(cut, mask[part], split(mask, hidden, part), head, own, step_rows=way).loss.backward()
    cut.flush()
    for leaf, gradient in zip(leaves_of(cut, hidden, head), expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


def leaves_of(adversarial: Adversarial, hidden: Tensor, head: Head) -> list[Tensor]:
    """Whatever a step trains, of both players."""
    trained = [parameter for parameter in adversarial.parameters() if parameter.requires_grad]
    if isinstance(adversarial.readout, HiddenReadout):
        return [hidden, adversarial.readout.student_map.weight, *trained]
    return [hidden, head.weight, *trained]


@EVERY
def test_padding_prompts_and_the_order_of_sequences_change_nothing(discriminator, readout):
    def fresh() -> Adversarial:
        return player(discriminator, readout)

    mask, hidden, head, teacher = material()
    reference = play(fresh(), mask, hidden, head, teacher)
    # A longer prompt in front and padding behind move the rows' positions, not what is read of them.
    padded = torch.cat([torch.zeros(B, 3, dtype=torch.bool), mask, torch.zeros(B, 5, dtype=torch.bool)], 1)
    assert torch.equal(
        play(fresh(), padded, hidden, head, teacher).losses["adversarial"], reference.losses["adversarial"]
    )
    order = torch.tensor([2, 0, 3, 1])
    rows = torch.cat([(mask.nonzero()[:, 0] == index).nonzero()[:, 0] for index in order])
    shuffled = play(fresh(), mask[order], hidden[rows], head, TeacherOutput(teacher.hidden_NH[rows], teacher.head))
    for name, values in reference.losses.items():
        torch.testing.assert_close(shuffled.losses[name], values[order])


def test_a_sequence_without_supervised_tokens_counts_for_nothing(pace):
    mask, hidden, head, teacher = material()
    reference = play(player(), mask, hidden, head, teacher)
    empty = torch.cat([mask, torch.zeros(1, T, dtype=torch.bool)])
    played = play(player(), empty, hidden, head, teacher)
    torch.testing.assert_close(played.loss, reference.loss)
    assert all(values[-1] == 0 for values in played.losses.values())


def test_centered_readouts_are_blind_to_an_offset_of_the_logits_and_raw_ones_are_not():
    mask, hidden, head, teacher = material(bias=True)
    shifted = head._replace(bias=head.bias + 3.0)
    for readout in READOUTS:
        blind = readout is not LogitReadout
        scores = [
            play(player(readout=readout), mask, hidden, own, teacher).losses["adversarial"] for own in (head, shifted)
        ]
        assert torch.allclose(*scores, rtol=1e-9) is blind


@pytest.mark.parametrize("readout", [kind for kind in READOUTS if kind is not hidden_readout])
def test_identical_networks_score_a_draw(readout):
    adversarial = player(readout=readout)
    mask, hidden, head, _ = material()
    played = play(adversarial, mask, hidden, head, TeacherOutput(hidden.detach(), Head(head.weight.detach())))
    torch.testing.assert_close(played.losses["adversarial"], torch.full((B,), 2.0).log())
    torch.testing.assert_close(played.losses["discriminator"], torch.full((B,), 2.0).log())
    assert (played.losses["discriminator_accuracy"] == 0.5).all()


def test_nothing_happens_while_the_weight_is_zero():
    adversarial = player()
    mask, hidden, head, teacher = material()
    played = play(adversarial, mask, hidden, head, teacher, weight=0.0)
    assert played.loss == 0
    assert played.losses == {}
    adversarial.flush()
    assert all(parameter.grad is None for parameter in adversarial.parameters())


def test_the_discriminator_learns_to_tell_them_apart():
    adversarial = player(r1=0.01, r2=0.01)
    optimizer = torch.optim.AdamW(adversarial.parameters(), lr=1e-2)
    mask, hidden, head, teacher = material()
    margins = []
    for _ in range(40):
        margins.append(play(adversarial, mask, hidden, head, teacher).losses["discriminator_margin"].mean())
        adversarial.flush()
        optimizer.step()
        optimizer.zero_grad()
    assert margins[-1] > margins[0] + 0.5


def test_a_lost_game_is_noticed_once_with_what_to_change():
    watch = GameWatch(patience=3)
    said = [watch.observe(accuracy) for accuracy in (1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.7)]
    assert [bool(text) for text in said] == [False] * 5 + [True] + [False] * 3 + [True, False]
    assert "won by the discriminator for 3 steps" in said[5]
    assert "lower --discriminator-learning-rate" in said[5]
    assert "raise --discriminator-learning-rate" in said[9]


def test_heads_a_linear_readout_cannot_read_are_refused():
    mask, hidden, head, teacher = material()
    with pytest.raises(ValueError, match=r"soft-capped at 30.*use SoftCappedLogitReadout, or logit_readout\(...\)"):
        play(player(), mask, hidden, head._replace(softcap=30.0), teacher)
    with pytest.raises(ValueError, match="maps 40 tokens, the student's head has 39"):
        play(player(), mask, hidden, Head(head.weight[:39]), teacher)
