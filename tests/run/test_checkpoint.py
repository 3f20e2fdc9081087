"""Checkpoints: whole or absent, verified, and enough for a bit-exact resume."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from gakd.errors import InputError, RunError
from gakd.files import read_sealed, write_sealed
from gakd.run import checkpoint
from tests.flips import turned


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


class Tied(nn.Module):
    """Dropout, a tied weight, a frozen weight and a buffer: what a student has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.inner.weight
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, values):
        self.steps += 1
        return self.tied(torch.dropout(self.frozen(self.inner(values)), 0.3, self.training))


def build():
    torch.manual_seed(0)
    module = Tied()
    return module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)


def train(module, optimizer, steps):
    for _ in range(steps):
        values = torch.randn(4, 6) + random.random() + np.random.rand()  # noqa: NPY002
        module(values).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def bits(module, optimizer):
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.clone() for tensor in [*module.state_dict().values(), *moments]]


def test_resume_continues_bit_for_bit(fabric, tmp_path):
    def seed():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002

    module, optimizer = build()
    seed()
    train(module, optimizer, 6)
    expected = bits(module, optimizer)

    module, optimizer = build()
    seed()
    train(module, optimizer, 3)
    checkpoint.save(fabric, tmp_path, 3, {"student": module}, {"adam": optimizer}, {}, keep=2).finish()
    train(module, optimizer, 2)  # what a killed run did after its last checkpoint

    module, optimizer = build()
    path = checkpoint.newest(tmp_path)
    assert checkpoint.load(fabric, path, {"student": module}, {"adam": optimizer}, {}) == 3
    train(module, optimizer, 3)
    assert all(torch.equal(a, b) for a, b in zip(bits(module, optimizer), expected, strict=True))


def saved(fabric, folder, steps, keep=10, scores=()):
    module, optimizer = build()
    train(module, optimizer, 1)
    for step, score in zip(steps, scores or [None] * len(steps), strict=True):
        checkpoint.save(fabric, folder, step, {"student": module}, {"adam": optimizer}, {}, keep, score).finish()


def test_frozen_weights_are_not_stored_and_tied_ones_once(fabric, tmp_path):
    from safetensors.torch import load_file

    saved(fabric, tmp_path, [1])
    assert set(load_file(tmp_path / "step-1" / "student.safetensors")) == {
        "inner.weight",
        "inner.bias",
        "tied.bias",
        "steps",
    }


def test_only_the_newest_are_kept_and_ten_comes_after_nine(fabric, tmp_path):
    saved(fabric, tmp_path, [8, 9, 10], keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-9"]
    assert checkpoint.newest(tmp_path).name == "step-10"


def test_what_was_just_written_stays_even_beside_newer_ones(fabric, tmp_path):
    saved(fabric, tmp_path, [8, 9], keep=1)
    saved(fabric, tmp_path, [5], keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-5", "step-9"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(fabric, tmp_path, damage):
    saved(fabric, tmp_path, [1, 2])
    victim = tmp_path / "step-2" / ("manifest.json" if damage == "manifest" else "student.safetensors")
    content = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    elif damage == "flip":
        content[-1] ^= 1
        victim.write_bytes(content)
    else:
        victim.write_bytes(content[:-9])
    with pytest.warns(UserWarning, match=r"step-2 is damaged \((student|manifest).*trying the one before it"):
        assert checkpoint.newest(tmp_path).name == "step-1"


def looked_at(folder):
    """The newest good checkpoint, and what is said of those that are passed over."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return checkpoint.newest(folder), [str(warning.message) for warning in said]


def test_any_bit_of_a_manifest_that_is_another_means_the_one_before(fabric, tmp_path):
    saved(fabric, tmp_path, [1, 2], scores=[1.5, 2.5])
    path = tmp_path / "step-2" / "manifest.json"
    whole, passed_over = path.read_bytes(), 0
    for changed in turned(whole, 400):
        path.write_bytes(changed)
        found, said = looked_at(tmp_path)
        if found == tmp_path / "step-2":  # of white space
            assert read_sealed(path)["files"] == json.loads(whole)["files"]
            assert checkpoint.score_of(found) == 2.5
        else:
            passed_over += 1
            assert found == tmp_path / "step-1"
            assert "step-2 is damaged (manifest.json: " in said[0]
            assert checkpoint.score_of(tmp_path / "step-2") is None
            assert checkpoint.best(tmp_path) == tmp_path / "step-1"
    assert passed_over > 300


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", "{}", '{"step": 2}', '{"step": 2, "world_size": 1, "score": [], "files": []}', "[" * 100_000],
)
def test_a_manifest_of_another_shape_means_the_one_before(fabric, tmp_path, text):
    saved(fabric, tmp_path, [1, 2])
    (tmp_path / "step-2" / "manifest.json").write_text(text)
    assert looked_at(tmp_path)[0] == tmp_path / "step-1"
    assert checkpoint.best(tmp_path) is None


def test_a_folder_of_another_step_means_the_one_before(fabric, tmp_path):
    saved(fabric, tmp_path, [1, 2])
    (tmp_path / "step-2").rename(tmp_path / "step-7")
    found, said = looked_at(tmp_path)
    assert found == tmp_path / "step-1"
    assert "it is of step 2, its folder of step 7" in said[0]


def test_a_checkpoint_from_before_manifests_had_a_digest_is_taken(fabric, tmp_path):
    saved(fabric, tmp_path, [1, 2], scores=[1.0, 2.0])
    path = tmp_path / "step-2" / "manifest.json"
    path.write_text(json.dumps(read_sealed(path), indent=2))
    assert looked_at(tmp_path) == (tmp_path / "step-2", [])
    assert checkpoint.score_of(tmp_path / "step-2") == 2.0


@pytest.mark.parametrize(
    "held", [torch.zeros(1, 6), torch.zeros(6), torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, 1)]
)
def test_weights_of_another_shape_are_not_broadcast(fabric, tmp_path, held):
    from safetensors.torch import load_file, save_file

    saved(fabric, tmp_path, [1])
    path = tmp_path / "step-1" / "student.safetensors"
    save_file(load_file(path) | {"inner.weight": held}, path)
    module, _ = build()
    before = module.inner.weight.clone()
    with pytest.raises(
        InputError, match=r"student.safetensors holds inner.weight as .*, this student has it as \[6, 6\]"
    ):
        checkpoint.load_modules(fabric, tmp_path / "step-1", {"student": module})
    assert torch.equal(module.inner.weight, before)


def test_a_damaged_checkpoint_that_is_set_aside_takes_no_good_ones_place(fabric, tmp_path):
    def names() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    def look() -> Path | None:
        with pytest.warns(UserWarning, match="step-6 is damaged"):
            return checkpoint.newest(tmp_path)

    saved(fabric, tmp_path, [2, 4, 6], keep=3)
    (tmp_path / "step-6" / "manifest.json").write_text("{")
    good = look()
    assert good == tmp_path / "step-4"
    checkpoint.set_damaged_aside(tmp_path, good)
    assert names() == ["step-2", "step-4", "step-6.damaged"]
    saved(fabric, tmp_path, [5], keep=1)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-5"
    saved(fabric, tmp_path, [6], keep=1)  # and is in no later one's way
    (tmp_path / "step-6" / "manifest.json").write_text("{")
    assert look() is None
    checkpoint.set_damaged_aside(tmp_path, None)
    assert names() == ["step-6.damaged"]


def test_a_half_written_checkpoint_is_no_checkpoint(fabric, tmp_path):
    saved(fabric, tmp_path, [1])
    (tmp_path / "step-2.tmp").mkdir()
    (tmp_path / "step-2.tmp" / "student.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path).name == "step-1"
    assert checkpoint.newest(tmp_path / "nothing") is None
    saved(fabric, tmp_path, [2])
    assert checkpoint.newest(tmp_path).name == "step-2"


def test_a_finished_checkpoint_is_never_replaced(fabric, tmp_path):
    saved(fabric, tmp_path, [1])
    before = (tmp_path / "step-1" / "manifest.json").read_bytes()
    module, optimizer = build()
    train(module, optimizer, 5)
    checkpoint.save(fabric, tmp_path, 1, {"student": module}, {"adam": optimizer}, {}, keep=2).finish()
    assert (tmp_path / "step-1" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(fabric, tmp_path):
    saved(fabric, tmp_path, [1, 2])
    (tmp_path / "step-2" / "student.safetensors").write_bytes(b"short")
    saved(fabric, tmp_path, [2])
    assert checkpoint.newest(tmp_path).name == "step-2"


def test_the_first_of_the_highest_score_is_kept_beside_the_newest(fabric, tmp_path):
    saved(fabric, tmp_path, [1, 2, 3, 4, 5, 6], keep=2, scores=[1.0, 3.0, None, 3.0, 2.0, None])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-5", "step-6"]
    assert checkpoint.best(tmp_path).name == "step-2"
    assert checkpoint.score_of(tmp_path / "step-5") == 2.0
    saved(fabric, tmp_path, [7], keep=1, scores=[3.5])
    assert [path.name for path in tmp_path.iterdir()] == ["step-7"]


def test_without_scores_none_is_the_best(fabric, tmp_path):
    saved(fabric, tmp_path, [1])
    assert checkpoint.best(tmp_path) is None
    assert checkpoint.best(tmp_path / "nothing") is None


def test_what_a_killed_run_left_is_cleared_away(fabric, tmp_path):
    for name in ("step-3.tmp", "step-1.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "student.safetensors").write_bytes(b"half")
    saved(fabric, tmp_path, [2])
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


@pytest.mark.parametrize("room", [0, 3000, 6000, 8500])
def test_where_there_is_no_room_the_checkpoint_before_stays_as_it_was(fabric, tmp_path, room):
    """The operating system refuses files above `room` bytes: each of the files there are, and none of it by name."""
    resource = pytest.importorskip("resource")
    saved(fabric, tmp_path, [1])
    sizes = [path.stat().st_size for path in (tmp_path / "step-1").iterdir()]
    assert any(size > room for size in sizes)
    before = {path.name: path.read_bytes() for path in (tmp_path / "step-1").iterdir()}
    module, optimizer = build()
    train(module, optimizer, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*step-2: .*; .*step-1 is intact\. Make room.*--resume"):
            checkpoint.save(fabric, tmp_path, 2, {"student": module}, {"adam": optimizer}, {}, keep=1).finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "step-1").iterdir()} == before
    checkpoint.save(fabric, tmp_path, 2, {"student": module}, {"adam": optimizer}, {}, keep=1).finish()
    assert checkpoint.newest(tmp_path).name == "step-2"


def test_other_weights_are_refused_and_of_other_processes_what_belongs_to_each(fabric, tmp_path):
    saved(fabric, tmp_path, [1])
    _, optimizer = build()
    with pytest.raises(ValueError, match="holds other weights"):
        checkpoint.load(fabric, tmp_path / "step-1", {"student": nn.Linear(3, 3)}, {"adam": optimizer}, {})
    manifest = tmp_path / "step-1" / "manifest.json"
    held = read_sealed(manifest)
    write_sealed(manifest, held | {"world_size": 4})
    with pytest.raises(InputError, match=r"the buffer of each of 4 processes, this run has 1: resume with 4"):
        checkpoint.load(fabric, tmp_path / "step-1", {}, {}, {"buffer": optimizer})
    with pytest.warns(
        UserWarning, match="written by 4 processes, this run has 1 process: .* random numbers are drawn anew"
    ):
        checkpoint.load(fabric, tmp_path / "step-1", {}, {}, {})
