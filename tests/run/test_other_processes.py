"""A checkpoint of two processes in one and of one in two, cut or whole: weights and moments are exactly those that were saved."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.distributed.tensor import DTensor

from gakd.run import checkpoint
from gakd.run.parts import files_of, stored_state, stored_weights
from tests.processes import on_two


class Uneven(nn.Module):
    """Rows that two ranks share unevenly, one row, a frozen weight, a tied one, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.five, self.one, self.frozen = nn.Linear(4, 5), nn.Linear(5, 1), nn.Linear(1, 1).requires_grad_(False)
        nn.init.ones_(self.frozen.weight), nn.init.ones_(self.frozen.bias)  # as it would be reloaded
        self.eight = nn.Embedding(8, 4)
        self.tied = nn.Linear(4, 8, bias=False)
        self.tied.weight = self.eight.weight
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, ids):
        return self.frozen(self.one(self.five(self.eight(ids)))) + self.tied(self.eight(ids)).sum(-1, keepdim=True)


def trained(cut: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same on every rank and in one process, but for rounding: three steps."""
    module, optimizer = fresh(cut, seed=0)
    for step in range(3):
        module(torch.arange(8).roll(step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    module.seen.fill_(7.0)
    return module, optimizer


def fresh(cut: bool, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = Uneven()
    if cut:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    return module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)


def whole_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights, buffers and moments, whole."""
    moments = [value for state in optimizer.state.values() for value in state.values()]
    every = [*module.parameters(), *module.buffers(), *moments]
    return [(t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for t in every]


class AsFabric:
    """What a checkpoint asks of Fabric, in processes that it has not launched."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank, self.world_size, self.is_global_zero = rank, world_size, rank == 0


def on_ranks(rank: int, folder: Path) -> dict:
    """Save cut and whole; load, cut and whole, what one process has saved."""
    fabric, found = AsFabric(rank, 2), {}
    for kind in ("cut", "whole"):
        module, optimizer = trained(kind == "cut")
        found[kind] = whole_of(module, optimizer)
        path = checkpoint.save(fabric, folder / kind, 3, {"m": module}, {"m_optimizer": optimizer}, {}, keep=1).finish()
        for other in ("cut", "whole"):
            module, optimizer = fresh(other == "cut", seed=5)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                checkpoint.load(fabric, path, {"m": module}, {"m_optimizer": optimizer}, {})
            found[f"{kind} as {other}"] = whole_of(module, optimizer)
        module, optimizer = fresh(kind == "cut", seed=5)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            checkpoint.load(fabric, folder / "alone/step-3", {"m": module}, {"m_optimizer": optimizer}, {}, seed=1)
        found[f"alone as {kind}"] = whole_of(module, optimizer)
        found[f"drawn {kind}"], found[f"said {kind}"] = torch.rand(3), [str(each.message) for each in said]
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, list[torch.Tensor], list[dict]]:
    folder = tmp_path_factory.mktemp("ranks")
    fabric = Fabric(accelerator="cpu", devices=1)
    module, optimizer = trained(cut=False)
    checkpoint.save(fabric, folder / "alone", 3, {"m": module}, {"m_optimizer": optimizer}, {}, keep=1).finish()
    return folder, whole_of(module, optimizer), on_two(on_ranks, folder)


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", ["cut", "whole"])
def test_of_two_in_one(saved, kind):
    folder, _, ranks = saved
    path = folder / kind / "step-3"
    assert checkpoint.damage(path) is None
    names = {"m-0.safetensors", "m-1.safetensors", "m_optimizer-0.pt", "m_optimizer-1.pt"}
    assert names <= {file.name for file in path.iterdir()} if kind == "cut" else (path / "m.safetensors").exists()
    module, optimizer = fresh(False, seed=9)
    with pytest.warns(UserWarning, match=r"written by 2 processes.* has 1 process: weights and moments are those"):
        step = checkpoint.load(Fabric(accelerator="cpu"), path, {"m": module}, {"m_optimizer": optimizer}, {})
    assert step == 3
    assert same(whole_of(module, optimizer), ranks[0][kind])
    assert module.tied.weight is module.eight.weight


@pytest.mark.parametrize("kind", ["cut", "whole"])
def test_of_one_in_two(saved, kind):
    _, alone, ranks = saved
    for found in ranks:
        assert same(found[f"alone as {kind}"], alone)
    assert not torch.equal(ranks[0][f"drawn {kind}"], ranks[1][f"drawn {kind}"])  # each rank draws for itself
    assert [len(found[f"said {kind}"]) for found in ranks] == [1, 0]
    assert "was written by 1 process, this run has 2 processes" in ranks[0][f"said {kind}"][0]


@pytest.mark.parametrize("kind", ["cut", "whole"])
@pytest.mark.parametrize("other", ["cut", "whole"])
def test_of_two_in_two_cut_another_way(saved, kind, other):
    for found in saved[2]:
        assert same(found[f"{kind} as {other}"], found[kind])


def test_a_rank_that_holds_no_row_and_one_more_rank_than_rows(saved, tmp_path):
    """Three files of five rows: two, two, one; a state is put together as its weight is."""
    whole = torch.arange(20.0).view(5, 4)
    from safetensors.torch import save_file

    for rank, rows in enumerate([slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 5)]):
        save_file({"w": whole[rows].clone()}, tmp_path / f"m-{rank}.safetensors")
        torch.save(
            {"state": {0: {"step": torch.tensor(3.0), "exp_avg": whole[rows].clone()}}, "param_groups": []},
            tmp_path / f"o-{rank}.pt",
        )
    weight = nn.Parameter(torch.zeros(5, 4))
    found = stored_weights(files_of(tmp_path, "m", "safetensors", 4), {"w": weight})["w"]
    assert found.shape == (5, 4)
    assert torch.equal(found.rows, whole)
    state = stored_state(files_of(tmp_path, "o", "pt", 4), torch.optim.AdamW([weight]))["state"][0]
    assert torch.equal(state["exp_avg"], whole)
    assert state["step"].item() == 3
    longer = stored_weights(files_of(tmp_path, "m", "safetensors", 4), {"w": torch.zeros(6, 4)})["w"]
    assert (longer.shape, len(longer.rows)) == ((5, 4), 0)
    with pytest.raises(ValueError, match=r"holds no m.safetensors, and no m-4.safetensors"):
        files_of(tmp_path, "m", "safetensors", 5)
