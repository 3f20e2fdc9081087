"""recipes/ablations/released.py has the defects that its docstring names: each is seen in what a run does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gakd import IGNORE_INDEX, Batch, pretrained_discriminator
from gakd.adversary import published
from gakd.cli import parse
from gakd.data import DataConfig, Windows, collate, load_data, split_window
from gakd.errors import InputError
from gakd.models import load_model, load_tokenizer, prune_layers
from tests.recipe_runs import arguments, make_material, metrics, module_of, run_here, weights


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"), longest=10, certainty=20.0)


def run_released(material: Path, output: Path, *more: str) -> list[dict[str, str]]:
    run_here("released", *arguments(material, output, "--steps", "4", "--save-every", "0", *more, recipe="released"))
    return [row for row in metrics(output) if row["gradient_norm"]]


@pytest.fixture(scope="module")
def plain(material, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("plain") / "run"
    run_released(material, output)
    return output


def test_penalties_and_critic_scale_train_nothing(material, plain, tmp_path):
    without = run_released(material, tmp_path / "without", "--r1", "0", "--r2", "0")
    assert all(float(row["discriminator_penalty"]) == 0 for row in without)
    logged = metrics(plain)
    assert any(float(row["discriminator_penalty"]) > 0 for row in logged if row["discriminator_penalty"])
    ours, theirs = weights(tmp_path / "without"), weights(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # Adam divides by its epsilon too, so not to the last bit.
    run_released(material, tmp_path / "scaled", "--critic-scale", "100")
    scaled = weights(tmp_path / "scaled")
    for name in ours:
        if name.startswith(("student.", "adversarial.")):
            torch.testing.assert_close(scaled[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_the_discriminator_steps_once_a_micro_batch_and_from_the_start(material, plain):
    state = torch.load(plain / "checkpoints" / "step-4" / "adversarial_optimizer.pt", weights_only=True)["state"]
    assert {int(moments["step"]) for moments in state.values()} == {8}
    assert all(row["discriminator"] for row in metrics(plain) if row["gradient_norm"])


def test_the_student_plays_from_the_second_epoch(material, tmp_path):
    """64 examples, 32 a step: the second epoch begins at step 2, whatever the weight of the game."""
    flags = "--adversarial-start", "None", "--batch-size", "32", "--micro-batch-size", "16"
    quiet = run_released(material, tmp_path / "quiet", *flags, "--adversarial-weight", "0")
    loud = run_released(material, tmp_path / "loud", *flags, "--adversarial-weight", "100")
    same = [ours["gradient_norm"] == theirs["gradient_norm"] for ours, theirs in zip(quiet, loud, strict=True)]
    assert same == [True, True, False, False]


def test_scores_read_padding_and_see_an_offset(material):
    """The same text at another --max-length, or logits with a constant added, scores otherwise."""
    torch.manual_seed(0)
    discriminator = pretrained_discriminator(str(material / "student"), 272, (2,))
    tokenizer = load_tokenizer(str(material / "student"))
    student = load_model(str(material / "student"))
    data = load_data(DataConfig(str(material / "data"), max_length=96, max_prompt_length=64), tokenizer)
    batch = collate(data.train[:3], tokenizer.pad_token_id)
    ids, mask, labels, rows = published.padded(batch, 96, tokenizer.eos_token_id)
    assert torch.equal(labels.flatten()[rows], batch.labels_N)
    assert int((labels != IGNORE_INDEX).sum()) == len(rows)
    assert ids.shape == mask.shape == labels.shape == (3, 96)
    assert set(ids[mask == 0].tolist()) == {tokenizer.eos_token_id}
    assert (mask[:, -1] == 0).all()
    assert (labels[mask == 0] == IGNORE_INDEX).all()
    assert torch.equal(Batch.of(ids, mask, labels).labels_N, batch.labels_N)
    with torch.no_grad():
        logits = published.whole_logits(student, ids, mask, 272)
        short = published.whole_logits(student, *published.padded(batch, 90, tokenizer.eos_token_id)[:2], 272)
        scores = published.last_position_scores(discriminator, logits)
        assert scores.shape == (3,)
        assert (published.last_position_scores(discriminator, short) - scores).abs().min() > 1e-5
        assert (published.last_position_scores(discriminator, logits + 1) - scores).abs().min() > 1e-5
        # The score hangs on what is read at the last position.
        changed = logits.clone()
        changed[:, -1] += torch.randn(272)
        assert (published.last_position_scores(discriminator, changed) - scores).abs().min() > 1e-5
        changed = logits.clone()
        changed[:, 0] += torch.randn(272)
        assert (published.last_position_scores(discriminator, changed) - scores).abs().min() > 1e-6


def test_losses_and_gradient_of_the_first_step_are_the_published_formulas(material, plain):
    """In float64, sequence by sequence: the log means over tokens, the gradient over micro-batches of means."""
    tokenizer = load_tokenizer(str(material / "student"))
    data = load_data(DataConfig(str(material / "data"), max_length=96, max_prompt_length=64), tokenizer)
    student = prune_layers(load_model(str(material / "student")), [2]).double()
    teacher = load_model(str(material / "teacher")).double()
    lengths = [example.length for example in data.train]
    groups = split_window(Windows(lengths, 8, seed=42).at(0), lengths, micro_batch_size=4)
    hard_of, soft_of, of_groups = [], [], []
    for group in groups:
        for index in group:
            batch = collate([data.train[index]], tokenizer.pad_token_id)
            q, p = (model(input_ids=batch.input_ids).logits[0].softmax(-1) for model in (student, teacher))
            for position, label in enumerate(batch.labels[0].tolist()):
                if label != IGNORE_INDEX:
                    hard_of.append(-q[position, label].log())
                    ratio = (q[position] + 1e-9).log() - (p[position].detach() + 1e-9).log()
                    soft_of.append((q[position] * ratio).sum())
        done = sum(count for count, _ in of_groups)
        mean = (torch.stack(hard_of[done:]).mean() + torch.stack(soft_of[done:]).mean()) / 2
        of_groups.append((len(hard_of) - done, mean))
    first, hard, soft = metrics(plain)[0], torch.stack(hard_of).mean(), torch.stack(soft_of).mean()
    assert float(first["cross_entropy"]) == pytest.approx(hard.item(), rel=1e-4)
    assert float(first["reverse_kl"]) == pytest.approx(soft.item(), rel=1e-4)
    expected = norm_of(sum(mean for _, mean in of_groups) / len(groups), student)
    assert float(first["gradient_norm"]) == pytest.approx(expected, rel=1e-4)
    over_tokens = norm_of((hard + soft) / 2, student)
    assert over_tokens != pytest.approx(expected, rel=3e-4)  # or this would see no difference


def norm_of(loss: torch.Tensor, student: torch.nn.Module) -> float:
    gradients = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True)
    return float(torch.nn.utils.get_total_norm(gradients))


def test_the_floor_of_the_kl_and_its_gradient():
    logits_NV = torch.tensor([[0.0, -60.0, 1.0], [2.0, 0.5, 0.0]], requires_grad=True)
    teacher_NV = torch.tensor([[0.0, 1.0, -60.0], [0.0, 0.5, 2.0]])
    losses_N = published.floored_reverse_kl(logits_NV, teacher_NV)
    p, q = (values.double().softmax(-1) for values in (teacher_NV, logits_NV.detach()))
    expected = (q * (torch.log(q + 1e-9) - torch.log(p + 1e-9))).sum(-1)
    torch.testing.assert_close(losses_N.double(), expected, rtol=1e-5, atol=1e-6)
    exact = (q * (q.log() - p.log())).sum(-1)
    assert exact[0] - losses_N[0] > 20  # where the teacher gives a token 1e-26, the floor says 1e-9
    (gradient,) = torch.autograd.grad(losses_N.sum(), logits_NV)
    assert torch.isfinite(gradient).all()


def test_a_teacher_cache_is_refused(material, tmp_path, monkeypatch):
    module = module_of("released")
    monkeypatch.setattr("gakd.teachers.loading.load_teacher", lambda *_: None)
    config = parse(module.PAPER, module.DEMO, None, arguments(material, tmp_path / "run", recipe="released"))
    with pytest.raises(InputError, match="a cache has none: leave out --teacher-cache"):
        module.main(config)
