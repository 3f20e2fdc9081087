"""A step's micro-batches: made ahead bit for bit as in the loop, cut by sequences or by positions, pinned for a GPU alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from gakd.data import Data, DataConfig, DataError, Example, Row, Windows, collate, load_data, split_window
from gakd.run import Run, RunConfig
from gakd.run.checkpoint import rng_state
from gakd.run.micro_batches import MicroBatches
from gakd.types import Batch, RowValues
from tests import tiny
from tests.recipe_runs import make_material
from tests.test_distiller import Step, assert_same, sequences

CPU = torch.device("cpu")
EXAMPLES = [
    Example(ids[:prompt], ids[prompt:], Row("", where=f"rows:{at}")) for at, (ids, prompt) in enumerate(sequences(40))
]


@dataclass
class Writes:
    """A recipe's flags."""

    student_max_new_tokens: int = 20
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class Replays(Writes):
    replay_capacity: int = 100


def data_of(examples: list[Example], max_length: int = 512) -> Data:
    return Data(examples, [], [], 0, DataConfig(max_length=max_length))


def assert_equal(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        for name, value in batch._asdict().items():
            wanted = getattr(other, name)
            assert torch.equal(value, wanted) if torch.is_tensor(value) else value == wanted, name


def drawn(state: dict[str, Any]) -> list[Any]:
    """A random state as what can be compared."""
    return [state["python"], state["numpy"][1].tolist(), state["numpy"][2:], state["torch"].tolist()]


def test_windows_made_ahead_are_those_of_the_loop_bit_for_bit(tmp_path):
    """From a table on disk that the loop reads meanwhile, as a validation does; of the random numbers none is drawn."""
    material = make_material(tmp_path)
    data = load_data(DataConfig(dataset=str(material / "data"), max_length=96, max_prompt_length=64), tiny.tokenizer())
    config = RunConfig(output_dir=tmp_path / "run", steps=20, batch_size=8, micro_batch_size=3, evaluate_every=0)
    run = Run(config, config)
    lengths = [example.length for example in data.train]
    windows, before, seen = Windows(lengths, 8, config.seed), drawn(rng_state()), 0
    for window in run.steps(data):
        read = [example.key for example in data.train]
        groups = split_window(windows.at(run.step), lengths, 3)
        chosen = [[data.train[index] for index in group] for group in groups]
        assert_equal(window, [collate(group, data.pad_token_id) for group in chosen])
        assert read == data.train.keys
        assert drawn(run._random_state) == before
        rows = [rows for _, rows in run._record._rows]
        assert rows == [tuple(example.row.where for example in group) for group in chosen]
        run.step, seen = run.step + 1, seen + 1
    assert seen == 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gakd-prefetch")]
    run.close()


def test_an_example_that_cannot_be_read_stops_the_loop_at_its_own_step(tmp_path):
    class Vanishing(list):
        def __getitem__(self, index):
            if index == unreadable:
                raise DataError("rows.jsonl:7: the file has gone")
            return super().__getitem__(index)

    config = RunConfig(output_dir=tmp_path / "run", steps=6, batch_size=4, micro_batch_size=2, evaluate_every=0)
    unreadable = Windows([example.length for example in EXAMPLES], 4, config.seed).at(3)[1]
    run, finished = Run(config, config), []

    def train() -> None:
        for _ in run.steps(data_of(Vanishing(EXAMPLES))):
            finished.append(run.step)
            run.step += 1

    with pytest.raises(DataError, match=r"^rows\.jsonl:7: the file has gone$"):
        train()
    assert finished == [0, 1, 2]
    run.close()


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_gradient_does_not_depend_on_how_a_window_is_cut(double, world_size):
    """GAKD with its adversary, in float64: by sequences, by positions, on one rank or dealt to two."""
    data, gradients, shapes = data_of(EXAMPLES), [], []
    for size, tokens, ranks in ((1, None, 1), (5, None, 1), (1, 60, world_size), (1, 16384, world_size)):
        config = RunConfig(batch_size=8, micro_batch_size=size, micro_batch_tokens=tokens)
        made = [MicroBatches(config, config, data, rank, ranks, CPU).at(1).batches for rank in range(ranks)]
        batches = [batch for rank in made for batch in rank]
        shapes.append([len(batch.labels) for batch in batches])
        gradients.append(Step().run(batches))
    assert shapes[:2] == [[1] * 8, [5, 3]]
    assert len(shapes[2]) > len(shapes[3]) == world_size
    assert gradients[0]["student.model.embed_tokens.weight"].dtype == torch.float64
    for other in gradients[1:]:
        assert_same(other, gradients[0], tolerance=1e-10)


def test_text_that_will_be_written_has_its_room_in_a_micro_batch():
    """Prompts alone are short; a micro-batch of them keeps its size when their responses come."""
    prompts = [Example(list(range(1, 2 + at % 30)), [5], Row("")) for at in range(64)]
    config = RunConfig(batch_size=32, micro_batch_tokens=100)
    by_size = MicroBatches(RunConfig(batch_size=32), Writes(), data_of(prompts), 0, 1, CPU)
    in_order = [key for batch in by_size.at(1).batches for key in batch.keys]
    for recipe, longest in (
        (config, lambda example: example.length),
        (Writes(), lambda example: min(len(example.prompt_ids) + 20, 40)),
        (Replays(), lambda example: 40),
    ):
        made = MicroBatches(config, recipe, data_of(prompts, max_length=40), 0, 1, CPU)
        assert made.room == [longest(example) for example in prompts]
        for step in range(2):
            for batch in made.at(step).batches:
                width = max(
                    length for length, prompt in zip(made.room, prompts, strict=True) if prompt.key in batch.keys
                )
                assert len(batch.labels) * (width - 1) <= 100
        assert [key for batch in made.at(1).batches for key in batch.keys] == in_order  # which samplers' draws go by
    no_limit = MicroBatches(config, Writes(), Data(prompts, [], [], 0), 0, 1, CPU)
    assert max(no_limit.room) == 50


def test_longer_examples_than_the_bound_run_alone_and_are_warned_of(tmp_path, capsys):
    lengths = sorted(example.length for example in EXAMPLES)
    bound, config = lengths[-3] - 1, RunConfig(batch_size=8)
    longer = sum(length - 1 > bound for length in lengths)
    warning = (
        f"{longer} of 40 examples have more positions than --micro-batch-tokens {bound}, up to {lengths[-1] - 1}: each is a "
        "micro-batch of its own, of that many"
    )
    assert 1 <= longer <= 2
    assert MicroBatches(config, config, data_of(EXAMPLES), 0, 1, CPU).warning() is None
    config = RunConfig(output_dir=tmp_path / "run", steps=5, batch_size=8, micro_batch_tokens=bound, evaluate_every=0)
    run = Run(config, config)
    alone = 0
    for window in run.steps(data_of(EXAMPLES)):
        alone += sum(batch.labels.numel() > bound for batch in window)
        assert all(len(batch.labels) == 1 for batch in window if batch.labels.numel() > bound)
        run.step += 1
    assert alone == longer
    assert capsys.readouterr().out.count(warning) == 1
    run.close()


def test_memory_is_pinned_for_a_gpu_alone(monkeypatch):
    pinned, devices = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    monkeypatch.setattr("torch.cuda.set_device", devices.append)
    config, data = RunConfig(batch_size=8, micro_batch_size=4), data_of(EXAMPLES)
    on_cpu = MicroBatches(config, config, data, 0, 1, CPU).at(0)
    assert (pinned, devices) == ([], [])
    second = torch.device("cuda", 1)
    on_gpu = MicroBatches(config, config, data, 0, 1, second).at(0)
    assert devices == [second]
    assert len(pinned) == 2 * 5  # ids, mask, labels, rows and slots of each batch
    assert_equal(on_gpu.batches, on_cpu.batches)

    pinned.clear()
    values_N = torch.arange(float(len(on_cpu.batches[0].rows_N)))
    batch = on_cpu.batches[0]._replace(row_values=RowValues({"advantages": values_N})).pinned()
    assert any(tensor is values_N for tensor in pinned)
    assert torch.equal(batch.row_values.values["advantages"], values_N)
