"""What is counted without weights, against models that exist and what PyTorch's allocator gave out for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, PreTrainedModel

from gakd.models import add_lora, hidden_rows, prune_layers
from gakd.models.loading import checkpoint_activations
from gakd.planning.footprint import shape
from gakd.planning.live_bytes import LiveBytes, fill_
from gakd.planning.loss_footprint import discriminator_entries, row_bytes
from gakd.planning.tracing import reader_activations, student_activations
from gakd.planning.weights import Adapters
from gakd.types import Batch
from tests import tiny
from tests.architectures import FULL, SLIDING, tiny_config


def batch(sequences: int, length: int, supervised: int) -> Batch:
    labels = torch.full((sequences, length), -100)
    labels[:, -supervised:] = 5
    ids = torch.ones(sequences, length, dtype=torch.int64)
    return Batch.of(ids, ids, labels)


def allocated(profiler: profile) -> tuple[int, int]:
    """The most bytes that lived while it ran, and what lived at its end."""
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest, now


def test_live_bytes_follow_what_lives_and_leave_owned_tensors_out():
    weight = torch.ones(100)
    with LiveBytes([weight]) as live:
        first = weight * 2
        view = first[:10]
        weight.add_(1)
        assert live.now == 400
        second = first.double()
        assert (live.now, live.peak) == (1200, 1200)
        del second
        assert (live.now, live.peak) == (400, 1200)
        del first
        assert live.now == 400  # a view keeps what it looks at
        del view
        live.restart()
        assert (live.now, live.peak) == (0, 0)


def test_live_bytes_see_what_autograd_keeps_and_frees():
    weight = nn.Parameter(torch.ones(10, 10))
    with LiveBytes([weight]) as live:
        loss = weight.exp().sum()
        assert live.now == 404  # exp keeps its result
        loss.backward()
        assert live.now == 404  # which is gone; the gradient is there
        assert live.peak == 400 + 400 + 4 + 4  # both at once, the loss, and its gradient


def test_filled_models_keep_ties_and_types_and_have_gradients():
    with torch.device("meta"):
        model = tiny.model(tied=True)
    with FakeTensorMode():
        owned = fill_(model, torch.bfloat16)
    head = model.get_output_embeddings().weight
    assert head is model.get_input_embeddings().weight
    assert head.dtype is torch.bfloat16
    assert head.grad is not None
    assert len(owned) == 2 * len(list(model.parameters())) + len(list(model.buffers()))


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_shapes_are_those_of_the_real_model(tied, rank):
    real = tiny.model(layers=4, tied=tied)
    counted, config = shape(real.config, (2,), Adapters(rank))
    pruned = prune_layers(real, (2,))
    student = add_lora(pruned, rank, 32, 0.1) if rank else pruned
    parameters = list(student.parameters())
    layer = list(pruned.model.layers[0].parameters())
    assert config.num_hidden_layers == counted.layers == 2
    assert counted.parameters == sum(parameter.numel() for parameter in parameters)
    assert counted.trainable == sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    assert counted.layer == sum(parameter.numel() for parameter in layer)
    assert counted.trainable_layer == sum(parameter.numel() for parameter in layer if parameter.requires_grad)
    # Embeddings and the last norm, and a head of its own.
    assert counted.rest == 272 * 32 * (1 if tied else 2) + 32
    linear = [module for module in pruned.model.layers.modules() if type(module) is nn.Linear]
    assert counted.products == sum(module.weight.numel() for module in linear)
    assert (counted.head, counted.head_trains, counted.tied) == (272 * 32, rank == 0, tied)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_the_allocator_gives_out(rank, mixed, checkpointing):
    """A real model of five layers, against what two of one and two layers say of it."""
    torch.manual_seed(0)
    compare(tiny.model(layers=5, width=64), rank, mixed, checkpointing)


# Layers of several kinds, several of each: what they hold is the sum of what a few of them hold.
MIXED = {
    "Gemma 3 (text)": {"num_hidden_layers": 7, "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING]},
    "Qwen3-MoE": {"num_hidden_layers": 6, "mlp_only_layers": [0, 1], "num_experts": 8},
    "DeepSeek-V3": {"num_hidden_layers": 5, "first_k_dense_replace": 2},
    "LFM2": {"num_hidden_layers": 6, "layer_types": ["conv", "conv", "full_attention"] * 2},
    "Qwen3.5 (text)": {"num_hidden_layers": 6, "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2},
    "Falcon-H1": {"num_hidden_layers": 5},
}  # fmt: skip
QUICK = ("Gemma 3 (text)", "Qwen3-MoE", "LFM2")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MIXED if name not in QUICK)]
)
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_activations_of_layers_that_differ(name, checkpointing):
    torch.manual_seed(0)
    config = tiny_config(name)
    for key, value in MIXED[name].items():
        setattr(config, key, value)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    compare(model, 4, mixed=False, checkpointing=checkpointing, forward=0.06)


def compare(model: PreTrainedModel, rank: int, mixed: bool, checkpointing: bool, forward: float = 0.05) -> None:
    """What is counted for a real model's configuration, and what the allocator gives out for the model."""
    model.requires_grad_(not rank)
    if hasattr(model.config, "num_experts") or hasattr(model.config, "n_routed_experts"):
        model.set_experts_implementation("grouped_mm")  # as on a GPU
    counted = student_activations(
        model.config, 3, 40, 24, Adapters(rank, 0.1), torch.float32, mixed, checkpointing, fused_dropout=False
    )
    if checkpointing:
        checkpoint_activations(model)
    student = (add_lora(model, rank, 32, 0.1) if rank else model).train()
    rows = batch(3, 40, 24)
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=mixed)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forwards, autocast:
        hidden_NH = hidden_rows(student, rows)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
        hidden_NH.backward(torch.zeros_like(hidden_NH))
    layers = model.config.num_hidden_layers
    states = layers * torch.get_rng_state().nbytes if checkpointing else 0  # of the generator, one a layer
    highest, kept = (size - states for size in allocated(forwards))
    assert counted.forward == pytest.approx(highest, rel=forward)
    assert counted.kept == pytest.approx(kept, rel=0.01, abs=4096)  # a mask more or less
    assert counted.backward == pytest.approx(kept + allocated(backward)[0], rel=0.05)
    assert counted.kept <= counted.inside <= counted.forward


def test_a_reader_holds_one_layer_at_a_time():
    model = tiny.model(layers=5, width=64)
    counted = reader_activations(model.config, 3, 40, 24, torch.float32)
    rows = batch(3, 40, 24)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward, torch.no_grad():
        hidden_NH = hidden_rows(model, rows)
    assert hidden_NH.shape == (72, 64)
    assert counted == pytest.approx(allocated(forward)[0], rel=0.03)


def test_a_dropout_fused_as_on_a_gpu_keeps_bytes_instead_of_floats():
    config = tiny.model(layers=2).config
    arguments = (config, 2, 32, 16, Adapters(4, 0.1), torch.float32, False, False)
    floats = student_activations(*arguments, fused_dropout=False)
    masks = student_activations(*arguments, fused_dropout=True)
    assert 0.5 * floats.kept < masks.kept < floats.kept


def test_rows_and_discriminator():
    alone, compared = row_bytes(64, 1000, 0), row_bytes(64, 1000, 1000)
    assert 64 * 1000 * 4 <= alone.peak < compared.peak <= 10 * 64 * 1000 * 4
    assert compared.kept < 64 * 1000  # the gradient has taken the logits' place
    assert row_bytes(64, 1000, 900).kept >= 64 * 1000 * 4  # other tokens of each term: a gradient of its own
    # Embedding of R = 16 in width 256, two blocks of 12 W^2 + 13 W, the last norm and the score.
    for width in (64, 256):
        blocks = 2 * (12 * width**2 + 13 * width)
        assert discriminator_entries(16, width) == (16 + 1) * width + blocks + 2 * width + width + 1
