"""Optimizers by name: which weights each steps, and that a checkpoint holds all that the next step needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gakd.errors import InputError
from gakd.models.lora import add_lora, base_of
from gakd.models.parts import tables_of
from gakd.models.sharding import load_own_state, own_state
from gakd.run.optimizers import Together, check_optimizer, student_optimizer
from gakd.run.parts import stored_state
from tests import tiny
from tests.recipe_runs import arguments, assert_identical, make_material, run_here

RATE, DECAY = 1e-2, 0.1
OWN = ("adamw", "muon", "adafactor", "sgd")


def of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    return student_optimizer(name, trainable, tables_of(base_of(model)), RATE, DECAY)  # type: ignore[arg-type]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, at: int) -> None:
    draw = torch.Generator().manual_seed(at)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.randn(weight.shape, generator=draw)
    optimizer.param_groups[0]["lr"] = RATE / (at + 1)
    optimizer.step()
    optimizer.zero_grad()


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
def test_muon_steps_the_matrices_of_layers_and_adamw_all_else(tied):
    """The matrices move along a rotation, of the size that AdamW's steps have; the others to AdamW's bits."""
    model, other = (tiny.model(tied=tied) for _ in range(2))
    before = bits(model)
    step(model, of("muon", model), 0)
    step(other, of("adamw", other), 0)
    after, plain = bits(model), bits(other)
    matrices = {
        name for name, weight in before.items() if weight.ndim == 2 and "embed" not in name and "head" not in name
    }
    assert len(matrices) == 2 * 7
    assert any("embed_tokens" in name for name in before.keys() - matrices)
    for name, weight in before.items():
        if name not in matrices:
            assert torch.equal(after[name], plain[name]), name
            continue
        moved = (weight * (1 - RATE * DECAY) - after[name]) / (RATE * 0.2 * max(weight.shape) ** 0.5)
        values = torch.linalg.svdvals(moved.double())
        # The iteration's own bounds, about 0.7 to 1.2, wider for small singular values of the gradient.
        assert 0.1 < values.min() <= values.max() < 1.5, name
        assert values.median() == pytest.approx(1.0, abs=0.35)


def test_muon_steps_the_matrices_of_lora():
    model = add_lora(tiny.model(), 2, 4, 0.0)
    optimizer = of("muon", model)
    assert isinstance(optimizer, torch.optim.Muon)  # there is nothing else to train
    before = bits(model)
    step(model, optimizer, 0)
    changed = {name for name, weight in bits(model).items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_the_rate_of_a_group_is_that_of_its_optimizer():
    model = tiny.model()
    optimizer = of("muon", model)
    assert isinstance(optimizer, Together)
    before = bits(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in bits(model).items())


@pytest.mark.parametrize("name", [*OWN, "adamw8bit"])
def test_steps_go_on_to_the_bit_from_what_a_checkpoint_holds(name, tmp_path):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    straight, broken = (tiny.model(width=64) for _ in range(2))  # with weights large enough for blocks of 8 bits
    optimizer, first = of(name, straight), of(name, broken)
    for at in range(4):
        step(straight, optimizer, at)
    for at in range(2):
        step(broken, first, at)
    path = tmp_path / "student_optimizer.pt"
    torch.save(own_state(first), path)
    second = of(name, broken)
    load_own_state(second, stored_state([path], second))
    path.unlink()
    for at in range(2, 4):
        step(broken, second, at)
    ours, theirs = bits(broken), bits(straight)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    fresh = of(name, broken)  # of no memory: what was loaded counts
    step(broken, fresh, 4)
    step(straight, optimizer, 4)
    assert not all(torch.equal(weight, bits(straight)[key]) for key, weight in bits(broken).items())


@pytest.mark.parametrize("name", ["muon", "adafactor", "adamw8bit"])
def test_weights_that_are_cut_are_refused_to_what_needs_them_whole(name):
    with pytest.raises(
        InputError, match=rf"--optimizer {name} needs whole weights, and --strategy fsdp2 cuts them: give"
    ):
        check_optimizer(name, "fsdp2")
    for fine in ("adamw", "sgd"):
        check_optimizer(fine, "fsdp2")
        check_optimizer(fine, "auto")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"adamw8bit needs bitsandbytes: pip install 'gakd\[8bit\]', or give --optimizer adamw"
    ):
        check_optimizer("adamw8bit", "auto")


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_a_run_of_it_is_lengthened_and_goes_on_to_the_bits_of_a_longer_one(name, tmp_path):
    """Also by --epochs: 64 rows, 32 a step."""
    material: Path = make_material(tmp_path)
    flags = ("--optimizer", name, "--lr-schedule", "constant", "--batch-size", "32", "--micro-batch-size", "16")
    flags = (*flags, "--evaluate-every", "0", "--save-every", "1", "--steps", "None")

    def given(folder: str, *more: str) -> list[str]:
        return arguments(material, tmp_path / folder, *flags, *more, recipe="reverse_kl")

    run_here("reverse_kl", *given("straight", "--epochs", "2"))
    run_here("reverse_kl", *given("run", "--epochs", "1"))
    run_here("reverse_kl", *given("run", "--epochs", "2", "--resume"))
    assert_identical(tmp_path / "run", tmp_path / "straight")


def test_an_older_torch_is_named_where_it_lacks_an_optimizer(monkeypatch):
    check_optimizer("muon", "auto")
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"^--optimizer muon came with torch 2.9, this is .*--optimizer adamw$"):
        check_optimizer("muon", "auto")
