"""Updates that are refused on the device leave everything as it was, and the host learns of them at once, at the step's end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gakd.errors import RunError
from gakd.run import Run
from gakd.run.exchange import Hosts
from gakd.run.guard import Guard
from gakd.run.step_record import StepRecord
from gakd.run.updates import Update, Updates, fuse, takes_flag
from tests.recipe_runs import arguments, make_material, metrics, run_here, weights


class Log:
    """What `Updates` uses of a step's log."""

    def __init__(self) -> None:
        self.notes: dict[str, float] = {}
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Bench:
    """Two modules, each with its optimizer, and the updates of a step."""

    def __init__(self, action: str, fused: bool, tmp_path: Path) -> None:
        torch.manual_seed(0)
        self.modules = {"student": nn.Linear(3, 2), "adversarial": nn.Linear(2, 2)}
        self.optimizers = {
            name: torch.optim.AdamW(module.parameters(), lr=0.1, fused=fused or None)
            for name, module in self.modules.items()
        }
        self.record, self.log = StepRecord(), Log()
        guard = Guard(action, self.record, lambda: tmp_path / "step-7")  # type: ignore[arg-type]
        self.updates = Updates(guard, self.record, self.log)  # type: ignore[arg-type]

    def update(self, name: str, norm: float = 1.0, refused: float = 0.0) -> None:
        module, optimizer = self.modules[name], self.optimizers[name]
        draw = torch.Generator().manual_seed(3)
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw) * norm
        update = Update(name, f"{name}_norm", torch.tensor(norm), torch.tensor(refused))
        self.updates.make(update, 7, optimizer, optimizer.step)
        optimizer.zero_grad()

    def learn(self) -> bool:
        return self.updates.learn(torch.stack(self.updates.unknown()).tolist(), 7)

    def bits(self, name: str) -> list[torch.Tensor]:
        state = self.optimizers[name].state_dict()["state"]
        moments = [value for entry in state.values() for value in entry.values()]
        return [tensor.clone() for tensor in [*self.modules[name].state_dict().values(), *moments]]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_fused_update_that_is_refused_leaves_weights_moments_and_its_count(tmp_path):
    bench, without = Bench("skip", True, tmp_path), Bench("skip", True, tmp_path)
    for each in (bench, without):
        each.update("student")
        each.learn()
    before = bench.bits("student")
    bench.update("student", torch.nan, 1.0)
    assert same(bench.bits("student"), before)
    assert bench.log.said == []  # the host does not know yet
    assert bench.learn() is False
    assert "the student's gradient norm is nan: the student is not updated" in bench.log.said[0]
    for each in (bench, without):
        each.update("student")
        each.learn()
    assert same(bench.bits("student"), without.bits("student"))
    assert bench.record.updates == without.record.updates == 2


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("action", ["stop", "skip"])
def test_after_an_update_that_broke_a_run_that_stops_makes_no_other(action, fused, tmp_path):
    bench = Bench(action, fused, tmp_path)
    for name in bench.modules:
        bench.update(name)
    if bench.updates.unknown():
        bench.learn()
    bench.record.begin_step([], [])
    before = {name: bench.bits(name) for name in bench.modules}

    def both() -> None:
        bench.update("student", torch.inf, 2.0)
        bench.update("adversarial")
        if bench.updates.unknown():
            bench.learn()

    if action == "stop":
        with pytest.raises(RunError, match=r"the student's gradient norm is inf. The student was not updated.*before"):
            both()
    else:
        both()
    assert same(bench.bits("student"), before["student"])
    assert same(bench.bits("adversarial"), before["adversarial"]) == (action == "stop")
    assert bench.log.notes["student_norm"] == torch.inf


def test_what_was_updated_before_is_told_though_it_is_learned_at_once(tmp_path):
    bench = Bench("stop", True, tmp_path)
    bench.update("student")
    bench.update("adversarial", torch.inf, 1.0)
    with pytest.raises(RunError, match="after 1 of this step's updates"):
        bench.learn()


def test_only_an_adam_on_a_gpu_is_fused_and_what_was_chosen_stays(monkeypatch):
    weights = [nn.Parameter(torch.zeros(2))]
    plain = torch.optim.AdamW(weights)
    fuse(plain)
    assert not takes_flag(plain)  # a CPU's bits
    monkeypatch.setattr("gakd.run.updates.FUSED_ON", {"cpu"})
    fuse(plain)
    assert takes_flag(plain)
    for chosen in (
        torch.optim.AdamW(weights, foreach=True),
        torch.optim.AdamW(weights, fused=False),
        torch.optim.SGD(weights, lr=1.0),
        torch.optim.AdamW([nn.Parameter(torch.zeros(2, dtype=torch.complex64))]),
    ):
        fuse(chosen)
        assert not takes_flag(chosen)


def test_how_an_optimizer_steps_is_not_taken_from_a_checkpoint():
    from gakd.models.sharding import load_own_state, own_state

    states = {}
    for fused in (None, True):
        weight = nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        optimizer = torch.optim.AdamW([weight], fused=fused)
        optimizer.step()
        states[fused] = own_state(optimizer)
        load_own_state(optimizer, states.get(None) or {})
        assert optimizer.param_groups[0]["fused"] is fused
        optimizer.step()
    assert states[True]["param_groups"][0]["fused"] is True


# ---- whole steps ----


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    return make_material(tmp_path_factory.mktemp("material"))


READS = ("item", "tolist", "numpy", "__float__", "__bool__", "__int__", "__index__")


@pytest.mark.parametrize("every", ["step", "micro"])
def test_a_step_asks_its_device_once(material, tmp_path, monkeypatch, every):
    """Counted in what a run does between forwards. What hosts tell each other is on no device, and is not counted."""
    monkeypatch.setattr("gakd.run.updates.FUSED_ON", {"cpu"})
    reads: dict[int, list[str]] = {}
    watching: list[int | None] = [None]  # the step in which reads are counted

    def reading(name: str):
        call = getattr(torch.Tensor, name)

        def read(tensor, *rest):
            if watching[-1] is not None:
                reads.setdefault(watching[-1], []).append(name)
            return call(tensor, *rest)

        return read

    def watched(kind: type, name: str, step_of):
        call = getattr(kind, name)

        def within(self, *rest):
            watching.append(step_of(self))
            try:
                return call(self, *rest)
            finally:
                watching.pop()

        monkeypatch.setattr(kind, name, within)

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, reading(name))
    for name in ("counts", "backward", "update", "update_replicated", "finish_step"):
        watched(Run, name, lambda run: run.step)
    watched(Hosts, "sum", lambda hosts: None)
    flags = ("--save-every", "0", "--evaluate-every", "0", "--steps", "6", "--discriminator-every", every)
    run_here("gakd", *arguments(material, tmp_path / "run", *flags))
    assert metrics(tmp_path / "run")[3]["discriminator_gradient_norm"]
    assert [reads[step] for step in range(5)] == [["tolist"]] * 5  # the last step saves


def test_a_fused_run_trains_as_the_plain_one(material, tmp_path, monkeypatch):
    plain, fused = tmp_path / "plain", tmp_path / "fused"
    run_here("gakd", *arguments(material, plain))
    monkeypatch.setattr("gakd.run.updates.FUSED_ON", {"cpu"})
    run_here("gakd", *arguments(material, fused))
    ours, theirs = weights(fused), weights(plain)
    for name in ours:
        if ".exp_avg" not in name:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    for row, other in zip(metrics(fused), metrics(plain), strict=True):
        assert row.keys() == other.keys()
        for name in ("reverse_kl", "gradient_norm", "discriminator_gradient_norm", "learning_rate"):
            assert (row[name] == "") == (other[name] == "")
            if row[name]:
                assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-3, abs=1e-6)
